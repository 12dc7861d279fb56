import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from safetensors.torch import load_file

import lit_hf.checkpoints
import lit_hf.run
from lit_hf.checkpoints import STATE, found
from lit_hf.cli.fit import RESUMES_FROM, _newest, _told_to_others
from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from lit_hf.tasks import TextClassification

WORDS = {"good": ["great", "good", "fine", "very good"], "bad": ["bad", "poor", "dull", "very bad"]}


def write_rows(path, repeat):
    rows = [
        {"text": f"the {thing} was {word}" + " indeed" * (number % 4), "label": label}
        for number in range(repeat)
        for thing in ("film", "plot")
        for label, words in WORDS.items()
        for word in words
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_text_model):
    """A working directory with data and a config that trains a tiny model in seconds."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", 6)
    write_rows(tmp_path / "validation.jsonl", 2)
    write_rows(tmp_path / "test.jsonl", 1)
    config = {
        "name": "tiny",
        "task": {"class_path": "TextClassification"},
        "model": {
            "checkpoint": str(tiny_text_model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "source": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
            "batch_size": 8,
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def fit(*options):
    return main(["fit", "-c", "tiny.yaml", *options])


def metrics(name="tiny"):
    with RunFolder(f"runs/{name}").metrics.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_a_folder_that_says_everything_about_it(folder, capsys):
    assert fit() == 0
    run = RunFolder("runs/tiny")
    record, config = run.read_record(), run.read_config()
    assert record["state"] == "finished"
    assert record["steps"] == 2 * 12
    assert record["parameters"]["total"] == record["parameters"]["trainable"]
    assert config["data"]["batch_size"] == 8
    kept = {run.checkpoint("best").parent.name, run.checkpoint("last").parent.name}
    assert {path.name for path in run.checkpoints.iterdir()} == kept
    losses = [float(row["train/loss"]) for row in metrics() if row["train/loss"]]
    assert losses[-1] < losses[0]
    best = torch.load(run.checkpoint("best"), weights_only=True)
    exported = load_file(run.export / "model.safetensors")
    assert all(torch.equal(value, best["state_dict"][f"model.{name}"]) for name, value in exported.items())
    shown = capsys.readouterr().out
    assert f"best accuracy   {record['best']['value']:.4f}" in shown
    assert "majority class  0.5000" in shown
    assert "lit-hf predict runs/tiny" in shown


def test_validation_of_the_run_gives_the_metrics_that_were_logged(folder, capsys):
    fit()
    logged = {row["epoch"]: row for row in metrics() if row["val/loss"]}
    best = max(float(row["val/accuracy"]) for row in logged.values())
    capsys.readouterr()
    assert main(["validate", "runs/tiny"]) == 0
    assert f"{best:.4f}" in capsys.readouterr().out
    assert main(["test", "-c", "tiny.yaml"]) == 0
    assert "test/accuracy" in capsys.readouterr().out


def test_a_finished_run_is_not_trained_again_and_goes_on_with_more_epochs(folder, capsys):
    fit()
    assert fit() == 0
    assert "is finished already" in capsys.readouterr().err
    assert fit("--trainer.max_epochs", "3") == 0
    record = RunFolder("runs/tiny").read_record()
    assert record["steps"] == 3 * 12
    steps = [int(row["step"]) for row in metrics()]
    assert steps == sorted(steps)


def test_a_finished_run_without_its_export_is_exported_as_it_is_asked_for_now(folder, capsys):
    lora = {"model": {"adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 2}}}}
    (folder / "lora.yaml").write_text(yaml.safe_dump(lora))
    run, options = RunFolder("runs/tiny"), ["-c", "lora.yaml", "--name", "tiny", "--trainer.max_steps", "2"]
    assert fit(*options) == 0
    shutil.rmtree(run.export)
    assert fit(*options) == 0
    assert (run.export / "adapter_model.safetensors").is_file()
    assert fit(*options, "--merge", "true") == 0
    assert (run.export / "model.safetensors").is_file()
    assert capsys.readouterr().err.count("is finished already") == 2


def test_a_run_goes_on_with_more_of_what_ended_it(folder, capsys):
    run = RunFolder("runs/tiny")
    assert fit("--trainer.max_steps", "2", "--patience", "3") == 0
    assert fit("--trainer.max_steps", "2", "--patience", "4") == 0  # which did not end it
    assert "nothing was done" in (told := capsys.readouterr().err) and "go on with more --trainer.max_steps." in told
    assert fit("--trainer.max_steps", "3", "--trainer.max_time", "00:00:00:00") == 0
    assert run.read_record()["steps"] == 2  # there was no time left
    assert fit("--trainer.max_steps", "3", "--trainer.max_time", "00:00:00:00") == 0
    assert "go on with more --trainer.max_time." in capsys.readouterr().err
    assert fit("--trainer.max_steps", "3", "--trainer.max_time", "00:01:00:00") == 0
    assert run.read_record()["steps"] == 3


def test_a_run_that_was_stopped_early_goes_on_with_more_patience(folder, capsys):
    options = ["--model.optimizer.lr", "0", "--trainer.max_epochs", "30", "--trainer.limit_train_batches", "1"]
    assert fit(*options, "--patience", "1") == 0
    epochs = RunFolder("runs/tiny").read_record()["epochs"]
    assert fit(*options, "--patience", "1") == 0
    assert "go on with more --patience." in capsys.readouterr().err
    assert fit(*options, "--patience", "3") == 0
    assert RunFolder("runs/tiny").read_record()["epochs"] == epochs + 2


def test_switches_of_the_model_reach_the_run_and_the_precision_is_told(folder, capsys):
    options = ["--model.gradient_checkpointing", "true", "--model.freeze", "[embeddings]"]
    assert fit("--trainer.max_epochs", "1", "--model.rates.layer_decay", "0.9", *options) == 0
    assert "precision: 32-true" in capsys.readouterr().err
    parameters = RunFolder("runs/tiny").read_record()["parameters"]
    assert 0 < parameters["trainable"] < parameters["total"]


def test_settings_of_model_and_trainer_that_contradict_each_other_are_refused(folder, capsys):
    contradictions = ["--model.dtype", "bfloat16", "--trainer.precision", "16-mixed", "--model.attention", "spda"]
    assert fit(*contradictions, "--model.optimizer.fused", "true") == 2
    told = capsys.readouterr().err
    assert "trainer.precision: 16-mixed computes in float16, but the weights are bfloat16." in told
    assert "model.attention: no attention is named 'spda'." in told
    assert "model.optimizer.init_args.fused" in told


def test_a_run_is_not_resumed_with_other_settings(folder, capsys):
    fit("--trainer.max_epochs", "1")
    assert fit("--trainer.max_epochs", "2", "--data.batch_size", "4", "--task.label_smoothing", "0.1") == 2
    told = capsys.readouterr().err
    assert "data.batch_size: the run 'tiny' was started with 8, now it is 4." in told
    assert "task.init_args.label_smoothing" in told
    assert RunFolder("runs/tiny").read_config()["data"]["batch_size"] == 8


def test_a_run_that_ends_by_steps_is_validated_and_exported(folder):
    assert fit("--trainer.max_steps", "3") == 0
    record = RunFolder("runs/tiny").read_record()
    assert record["steps"] == 3
    assert (RunFolder("runs/tiny").export / "model.safetensors").is_file()


class Poison(Callback):
    """Spoils the weights at a step, as a bad batch on a bad day does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            pl_module.model.classifier.weight.data.fill_(float("nan"))


def test_nan_ends_the_run_with_the_last_good_checkpoint(folder, capsys):
    poison = [{"class_path": f"{__name__}.Poison", "init_args": {"step": 15}}]
    (folder / "poison.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": poison}}))
    assert fit("-c", "poison.yaml", "--name", "tiny") == 3
    told = capsys.readouterr().err
    assert "step 16" in told
    assert str(RunFolder("runs/tiny").checkpoint("last").parent) in told
    for path in (RunFolder("runs/tiny").checkpoint("best"), RunFolder("runs/tiny").checkpoint("last")):
        kept = torch.load(path, weights_only=True)
        assert kept["global_step"] == 12
        assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert RunFolder("runs/tiny").read_record()["state"] == "failed"


class SpoilGradients(Callback):
    """Spoils the gradients of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step + 1 == self.step:
            pl_module.model.classifier.weight.grad.fill_(float("inf"))


def test_a_step_is_skipped_where_that_is_asked_for_and_it_is_recorded(folder, capsys):
    spoil = "--trainer.callbacks+=" + json.dumps(
        [{"class_path": f"{__name__}.SpoilGradients", "init_args": {"step": 3}}]
    )
    assert fit("--skip_nonfinite", "2", "--loss_spike", "50", "--trainer.max_epochs", "1", spoil) == 0
    told = capsys.readouterr().err
    assert "warning: step 3, epoch 1: the gradient is not finite. The step is skipped: 1 of 2 that may be" in told
    record = RunFolder("runs/tiny").read_record()
    assert (record["skipped_steps"], record["loss_spikes"], record["steps"]) == (1, 0, 12)


def test_guards_that_make_no_sense_are_refused(folder, capsys):
    assert fit("--skip_nonfinite", "-1", "--loss_spike", "0.5") == 2
    told = capsys.readouterr().err
    assert "skip_nonfinite: -1 is no number of steps." in told
    assert "loss_spike: 0.5 times the usual loss is no spike." in told


def test_a_run_that_failed_before_its_first_checkpoint_starts_anew_with_other_settings(folder, capsys):
    poison = "--trainer.callbacks+=" + json.dumps([{"class_path": f"{__name__}.Poison", "init_args": {"step": 3}}])
    assert fit(poison) == 3
    assert "No checkpoint had been saved yet." in capsys.readouterr().err
    assert fit("--data.batch_size", "16", "--trainer.max_epochs", "1") == 0
    assert RunFolder("runs/tiny").read_record()["steps"] == 6
    assert [int(row["step"]) for row in metrics()] == sorted({int(row["step"]) for row in metrics()})


def test_early_stopping_stops(folder):
    assert fit("--patience", "1", "--trainer.max_epochs", "30", "--model.optimizer.lr", "0") == 0
    assert RunFolder("runs/tiny").read_record()["epochs"] < 5


def test_every_problem_is_told_at_once_and_nothing_is_started(folder, capsys):
    (folder / "train.jsonl").write_text('{"text": "good", "label": "a"}\n{"text": " ", "label": "b"}\n')
    assert fit("--monitor", "acuracy", "--data.max_length", "99", "--model.schedule.warmup", "-1") == 2
    told = capsys.readouterr().err
    assert "train.jsonl:2: column 'text': the text is missing or empty." in told
    assert "monitor: no metric is named 'acuracy'." in told
    assert "data.max_length: 99 tokens are longer than the model takes: 64." in told
    assert "model.schedule.warmup: -1.0 is negative." in told
    assert not (folder / "runs").exists()


def test_an_adapter_trains_and_exports_alone_or_merged(folder):
    lora = {"model": {"adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 2}}}}
    (folder / "lora.yaml").write_text(yaml.safe_dump(lora))
    assert fit("-c", "lora.yaml", "--name", "lora") == 0
    assert (RunFolder("runs/lora").export / "adapter_model.safetensors").is_file()
    assert RunFolder("runs/lora").read_record()["parameters"]["trainable"] < 1000
    assert fit("-c", "lora.yaml", "--name", "merged", "--merge", "true") == 0
    assert (RunFolder("runs/merged").export / "model.safetensors").is_file()


def test_predictions_come_from_the_export(folder, capsys):
    fit()
    capsys.readouterr()
    assert main(["predict", "runs/tiny", "--input", "test.jsonl", "--output", "out.jsonl"]) == 0
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    predicted = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["text"] for row in predicted] == [row["text"] for row in rows]
    assert all("score" in row for row in predicted)


def test_a_run_does_not_go_on_with_other_rows(folder, capsys):
    fit("--trainer.max_epochs", "1")
    with (folder / "train.jsonl").open("a") as file:
        file.write('\n{"text": "fine", "label": "good"}')
    assert fit("--trainer.max_epochs", "2") == 2
    assert (
        "data.source.train: the rows of its train split changed since the run was started." in capsys.readouterr().err
    )


def test_a_run_does_not_go_on_with_other_batches(folder, capsys):
    fit("--trainer.max_epochs", "1")
    assert fit("--trainer.max_epochs", "2", "--trainer.accumulate_grad_batches", "2") == 2
    assert "trainer.accumulate_grad_batches: the run 'tiny' was started with 1, now it is 2." in capsys.readouterr().err


def test_a_run_without_a_valid_checkpoint_is_told_before_anything_changes(folder, capsys):
    fit("--trainer.max_epochs", "1")
    last = RunFolder("runs/tiny").checkpoint("last")
    last.write_bytes(last.read_bytes()[:1000])
    before = RunFolder("runs/tiny").config.read_text()
    assert fit("--trainer.max_epochs", "2") == 2
    told = capsys.readouterr().err
    assert "step-00000012: the checkpoint cannot be used: state.ckpt has 1,000 bytes instead of" in told
    assert RunFolder("runs/tiny").config.read_text() == before


def test_a_damaged_checkpoint_is_skipped_for_an_older_one_and_the_run_ends_as_if_nothing_had_happened(folder, capsys):
    assert fit("--checkpoint_every", "5", "--name", "whole") == 0
    run = RunFolder("runs/tiny")
    assert fit("--checkpoint_every", "5", "--trainer.callbacks+=" + json.dumps(STOP_AFTER_20)) == 1
    assert [path.name for path in found(run.checkpoints)] == ["step-00000020", "step-00000012"]
    newest = run.checkpoint("last")
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert fit("--checkpoint_every", "5") == 0
    assert "step-00000020 is skipped: state.ckpt is not what was written" in capsys.readouterr().err
    for name in ("export/model.safetensors", "metrics.csv"):
        assert (run.path / name).read_bytes() == (folder / "runs" / "whole" / name).read_bytes()


def test_a_crash_while_a_checkpoint_was_replaced_costs_nothing(folder, capsys):
    assert fit("--trainer.max_epochs", "1") == 0
    (checkpoint,) = found(Path("runs/tiny/checkpoints"))
    checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.replaced"))
    left = checkpoint.with_name(".step-00000777.partial")
    left.mkdir()
    RunFolder("runs/tiny").update_record(state="running")
    capsys.readouterr()
    assert fit("--trainer.max_epochs", "2") == 0
    assert "from step 12" in capsys.readouterr().err
    assert not left.exists()


def test_only_the_first_process_reads_a_checkpoint_to_verify_it(folder, monkeypatch):
    assert fit("--trainer.max_epochs", "1") == 0
    run = RunFolder("runs/tiny")
    (checkpoint,) = found(run.checkpoints)
    with _told_to_others(checkpoint / STATE):
        monkeypatch.setattr(rank_zero_only, "rank", 1)
        monkeypatch.setattr(lit_hf.checkpoints, "_describe", lambda path: pytest.fail(f"{path} was read"))
        assert _newest(run) == checkpoint / STATE
        monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert RESUMES_FROM not in os.environ


class NotMapped(Callback):
    """Fails if a checkpoint's file is still open in memory when the training starts."""

    def on_train_start(self, trainer, pl_module):
        assert trainer.global_step == 12
        if "state.ckpt" in Path("/proc/self/maps").read_text():
            raise RuntimeError("a checkpoint is mapped")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
def test_what_a_run_resumes_from_is_not_held_on_the_disk(folder):
    assert fit("--trainer.max_epochs", "1") == 0
    callback = {"class_path": f"{__name__}.NotMapped"}
    assert fit("--trainer.max_epochs", "2", "--trainer.callbacks+", json.dumps(callback)) == 0


def test_the_best_checkpoint_stays_the_best_where_the_folder_was_moved(folder):
    fit("--trainer.max_epochs", "2")
    best = RunFolder("runs/tiny").checkpoint("best").parent.name
    (folder / "runs").rename(folder / "moved")
    spoil = [{"class_path": f"{__name__}.Forget", "init_args": {}}]
    (folder / "spoil.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": spoil}}))
    options = ["--name", "tiny", "--output_dir", "moved", "--trainer.max_epochs", "3"]
    assert fit("-c", "spoil.yaml", *options) == 0
    assert RunFolder("moved/tiny").checkpoint("best").parent.name == best


STOP_AFTER_20 = [{"class_path": f"{__name__}.StopAfter", "init_args": {"steps": 20}}]


class StopAfter(Callback):
    """Fails right after some optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.steps:
            raise RuntimeError("stopped")


class Forget(Callback):
    """Makes the model worse than guessing before it is validated."""

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            pl_module.model.classifier.weight.data.neg_()
            pl_module.model.classifier.bias.data.neg_()


def test_metrics_are_written_beside_a_logger_of_the_user_s(folder):
    own = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "own"}}
    (folder / "own.yaml").write_text(yaml.safe_dump({"trainer": {"logger": own, "max_epochs": 1}}))
    assert fit("-c", "own.yaml", "--name", "tiny") == 0
    assert any(row["val/loss"] for row in metrics())
    assert list((folder / "own").rglob("metrics.csv"))


def test_without_a_checkpoint_it_says_that_nothing_is_exported(folder, capsys):
    assert fit("--trainer.enable_checkpointing", "false", "--trainer.max_steps", "1") == 0
    assert "nothing is exported" in capsys.readouterr().err
    assert not RunFolder("runs/tiny").export.exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_says_so_and_can_be_resumed(folder, monkeypatch, sent, code):
    if sent == signal.SIGUSR1:  # in a job of SLURM, where Lightning's own handler would save a checkpoint of its own
        job = {"JOB_ID": "1", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "127.0.0.1"}
        for name, value in job.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
    command = [sys.executable, "-m", "lit_hf", "fit", "-c", "tiny.yaml", "--trainer.max_epochs", "10000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while "epoch 1/10000  validation" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(sent)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert RunFolder("runs/tiny").read_record()["state"] == "preempted"
    assert not list(Path("runs/tiny").glob("hpc_ckpt*"))
    assert fit("--trainer.max_epochs", "1") == 0  # as far as it got is enough


def rows_and_an_end() -> Iterator[dict]:
    """Tell the process to end while it reads its data."""
    os.kill(os.getpid(), signal.SIGTERM)
    yield {"text": "good", "label": "good"}


class EndsInExport(TextClassification):
    """Tells the process to end while it exports, once."""

    def export_files(self, folder):
        if not Path("told").exists():
            Path("told").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        super().export_files(folder)


def test_a_process_that_is_told_to_end_before_it_trains_leaves_nothing(folder, capsys):
    before = signal.getsignal(signal.SIGTERM)
    (folder / "own.yaml").write_text(yaml.safe_dump({"data": {"source": {"generator": f"{__name__}.rows_and_an_end"}}}))
    assert fit("--data.source.train", "null", "-c", "own.yaml", "--name", "tiny") == 75
    told = capsys.readouterr().err
    assert "runs/tiny: the process was told to end." in told and "No checkpoint had been saved yet." in told
    assert not (folder / "runs").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_export_that_is_told_to_end_is_caught_up_on(folder, capsys):
    (folder / "own.yaml").write_text(yaml.safe_dump({"task": {"class_path": f"{__name__}.EndsInExport"}}))
    options = ["-c", "own.yaml", "--name", "tiny", "--trainer.max_epochs", "1"]
    assert fit(*options) == 75
    told = capsys.readouterr().err
    assert "the process was told to end.\n    The last checkpoint is runs/tiny/checkpoints/step-" in told
    assert not (folder / "runs" / "tiny" / "export" / "model.safetensors").exists()
    assert fit(*options) == 0
    assert (folder / "runs" / "tiny" / "export" / "model.safetensors").is_file()


def test_a_run_is_trained_by_one_process_at_a_time(folder, monkeypatch, capsys):
    monkeypatch.setattr(lit_hf.run, "SECONDS_TO_LET_GO", 0.0)
    with RunFolder("runs/tiny").held():
        assert fit() == 2
    assert "error: name: another process is training the run runs/tiny." in capsys.readouterr().err
    assert not (folder / "runs").exists()
