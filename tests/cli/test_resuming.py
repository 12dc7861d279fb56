import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback

from lit_hf.checkpoints import MANIFEST
from lit_hf.cli.main import main
from lit_hf.cli.resuming import FLAG, Resumption, other_end
from lit_hf.errors import InputError
from lit_hf.run import RunFolder
from tests import tiny_run
from tests.killing import digest


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_text_model):
    """A working directory with a run of two epochs of six steps, and a model folder of its own."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(tiny_text_model, folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # a schedule that does not depend on the number of steps
        tiny_run.write(folder, "model", model__schedule={"name": "constant", "warmup": 0})
        assert main(["fit", "-c", "tiny.yaml"]) == 0
    return folder


@pytest.fixture(scope="module")
def whole(trained):
    """The digest of a run that never stopped, of three epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        assert main(["fit", "-c", "tiny.yaml", "--output_dir", "whole", "--trainer.max_epochs", "3"]) == 0
    return digest(trained / "whole" / "tiny")


@pytest.fixture
def folder(trained, tmp_path, monkeypatch, messages_restored):
    """That directory, with a copy of the run; what a test changes of data and model is changed back."""
    monkeypatch.chdir(trained)
    shutil.copytree(trained / "runs", tmp_path / "runs")
    kept = [*trained.glob("*.jsonl"), *(trained / "model").iterdir()]
    for path in kept:
        shutil.copy2(path, tmp_path / path.name)
    yield tmp_path
    for path in kept:
        shutil.copy2(tmp_path / path.name, path)


def run_in(folder):
    return RunFolder(folder / "runs" / "tiny")


def resume(folder, *options):
    place = ["--output_dir", str(folder / "runs"), "--name", "tiny"]
    return main(["fit", "-c", "tiny.yaml", "--trainer.max_epochs", "3", *place, *options])


HELD = {
    "data.batch_size": "4",
    "data.group_by_length": "false",
    "data.max_length": "16",
    "data.packing": "true",
    "data.pad_to_multiple_of": "8",
    "data.source.train": "validation.jsonl",
    "data.source.limit": "40",
    "data.tokenizer.checkpoint": "other",
    "model.checkpoint": "other",
    "model.compile": "true",
    "model.dtype": "bfloat16",
    "model.freeze": "[embeddings]",
    "model.optimizer.init_args.lr": "0.02",
    "model.schedule.name": "cosine",
    "seed_everything": "7",
    "task.init_args.label_smoothing": "0.1",
    "trainer.accelerator": "auto",
    "trainer.accumulate_grad_batches": "2",
    "trainer.check_val_every_n_epoch": "3",
    "trainer.devices": "2",
    "trainer.gradient_clip_val": "0.5",
    "trainer.limit_train_batches": "3",
    "trainer.num_nodes": "2",
    "trainer.precision": "bf16-mixed",
    "trainer.strategy": "ddp",
    "trainer.val_check_interval": "3",
}
"""What would make another run of it."""

FREE = {
    "checkpoint_every": "2",
    "data.eval_batch_size": "4",
    "data.num_proc": "1",
    "data.num_workers": "1",
    "data.pin_memory": "false",
    "merge": "true",
    "model.gradient_checkpointing": "true",
    "patience": "9",
    "tracker": "tensorboard",
    "trainer.enable_progress_bar": "true",
    "trainer.log_every_n_steps": "1",
    "trainer.max_steps": "18",
    "trainer.max_time": "00:01:00:00",
    "trainer.num_sanity_val_steps": "0",
}
"""What changes nothing of what is learnt."""


@pytest.mark.parametrize(("key", "value"), HELD.items())
def test_what_would_break_exactness_is_refused_with_the_difference(folder, capsys, key, value):
    before = run_in(folder).config.read_bytes()
    assert resume(folder, f"--{key}", value) == 2
    told = capsys.readouterr().err
    old = run_in(folder).read_config()
    for name in key.split("."):
        old = old[name]
    shown = yaml.safe_load(value)
    assert f"{key}: the run 'tiny' was started with {old!r}, now it is " in told
    assert (repr(shown) if isinstance(shown, str | bool | list) else value) in told
    assert FLAG in told
    assert run_in(folder).config.read_bytes() == before


@pytest.mark.parametrize(("key", "value"), FREE.items())
def test_what_changes_nothing_may_change(whole, folder, capsys, key, value):
    assert resume(folder, f"--{key}", value) == 0
    told = capsys.readouterr().err
    assert "from step 12" in told and "NOT exact" not in told
    assert run_in(folder).read_record()["steps"] == 18
    ended = digest(folder / "runs" / "tiny")
    assert [ended[part] for part in ("weights", "optimizer")] == [whole[part] for part in ("weights", "optimizer")]


def replace_in(name, old, new):
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))


def other_rows(folder):
    replace_in("train.jsonl", "great", "poor")


def other_tokenizer(folder):
    replace_in("model/tokenizer.json", '"lowercase": true', '"lowercase": false')


def other_model(folder):
    replace_in("model/config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"')


def other_world(folder):
    path = folder / "runs" / "tiny" / "checkpoints" / "step-00000012" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "world_size": 4}))


def other_precision(folder):
    record = run_in(folder).read_record()
    run_in(folder).update_record(hardware={**record["hardware"], "precision": "bf16-mixed"})


SURROUNDINGS = {
    "rows": (other_rows, "data.source.train: the rows of its train split changed since the run was started."),
    "tokenizer": (other_tokenizer, "data.tokenizer: the tokenizer changed since the run was started."),
    "model": (other_model, "model.checkpoint: the model it started from changed since the run was started."),
    "world size": (other_world, "trainer.devices: it was trained by 4 processes, now there are 1"),
    "precision": (other_precision, "trainer.precision: the run was trained in bf16-mixed, now it is 32-true"),
}


@pytest.mark.parametrize(("change", "difference"), SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
def test_what_is_not_in_the_config_is_compared_as_well_and_may_be_overruled(folder, capsys, change, difference):
    change(folder)
    assert resume(folder) == 2
    assert difference in capsys.readouterr().err
    assert resume(folder, FLAG) == 0
    told = capsys.readouterr().err
    assert "warning: this resume is NOT exact" in told and difference in told
    assert run_in(folder).read_record()["steps"] == 18
    assert resume(folder, "--trainer.max_epochs", "4") == 0  # from here on it is as it is
    assert "NOT exact" not in capsys.readouterr().err


@pytest.mark.parametrize("change", [other_world, other_precision])
def test_a_resume_that_is_refused_starts_no_tracker(folder, change):
    change(folder)
    assert resume(folder, "--tracker", "tensorboard") == 2
    assert not (run_in(folder).path / "tensorboard").exists()


def move_rows(folder):
    """Copy the rows to other names, in another folder."""
    (folder / "elsewhere").mkdir()
    for split in ("train", "validation"):
        shutil.copy(f"{split}.jsonl", folder / "elsewhere" / f"{split}-rows.jsonl")
    return [
        word
        for split in ("train", "validation")
        for word in (f"--data.source.{split}", str(folder / "elsewhere" / f"{split}-rows.jsonl"))
    ]


def test_rows_that_lie_elsewhere_are_the_same_rows(folder, capsys):
    elsewhere = move_rows(folder)
    assert resume(folder, *elsewhere) == 0
    told = capsys.readouterr().err
    assert "from step 12" in told and "NOT exact" not in told
    assert "train: 48 rows reused from the cache" in told
    assert run_in(folder).read_record()["steps"] == 18
    assert run_in(folder).read_config()["data"]["source"]["train"] == elsewhere[1]


def test_other_rows_that_lie_elsewhere_are_refused_by_where_they_lie(folder, capsys):
    elsewhere = move_rows(folder)
    replace_in(elsewhere[1], "great", "poor")
    assert resume(folder, *elsewhere) == 2
    told = capsys.readouterr().err
    assert "error: data.source.train: the run 'tiny' was started with 'train.jsonl', now it is '" in told
    assert "data.source.validation" not in told and FLAG in told


def test_a_split_that_is_gone_is_another_one(folder, capsys):
    assert resume(folder, "--data.source.validation", "null") == 2  # a tenth of the training rows is held out now
    told = capsys.readouterr().err
    assert "data.source.validation: the run 'tiny' was started with 'validation.jsonl', now it is None." in told


def test_it_goes_on_when_told_to_with_one_warning_of_all_that_differs(folder, capsys):
    other_rows(folder)
    options = ["--data.batch_size", "4", "--trainer.accumulate_grad_batches", "2", "--seed_everything", "7"]
    assert resume(folder, FLAG, *options) == 0
    told = capsys.readouterr().err
    assert told.count("NOT exact") == 1
    for key in ("data.batch_size", "trainer.accumulate_grad_batches", "seed_everything", "data.source.train"):
        assert f"  {key}: " in told
    assert run_in(folder).read_config()["data"]["batch_size"] == 4
    assert run_in(folder).read_record()["epochs"] == 3


def test_a_run_that_is_stopped_in_an_epoch_goes_on_with_other_batches_when_told_to(folder, capsys):
    stop = [{"class_path": f"{__name__}.StopAt", "init_args": {"step": 14}}]
    (folder / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": stop}}))
    assert resume(folder, "-c", "stop.yaml", "--checkpoint_every", "1") != 0
    capsys.readouterr()
    assert resume(folder, FLAG, "--data.batch_size", "16") == 0  # three batches an epoch now, two of which are done
    assert "data.batch_size: the run 'tiny' was started with 8, now it is 16." in capsys.readouterr().err


def test_a_run_resumes_on_a_disk_that_its_own_checkpoints_fill(folder, monkeypatch):
    usage, all_three = shutil.disk_usage(folder), 3 * 4 * 3 * run_in(folder).read_record()["parameters"]["total"]
    monkeypatch.setattr("lit_hf.cli.checks.shutil.disk_usage", lambda _: usage._replace(free=all_three - 1))
    for module in ("export.package", "training.saving"):  # what these want beside is more than all of this model
        monkeypatch.setattr(f"lit_hf.{module}.SLACK", 0)
    assert resume(folder) == 0


def test_without_a_difference_there_is_no_warning(folder, capsys):
    assert resume(folder, FLAG) == 0
    assert "NOT exact" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--task.init_args.class_weights", "balanced"],
        ["--model.adapter", "peft.LoraConfig", "--model.adapter.init_args.r", "8"],
    ],
)
def test_what_the_checkpoint_holds_is_refused_whatever_is_asked_for(folder, capsys, options):
    """It would be ignored: the run goes on with what the checkpoint has."""
    assert resume(folder, FLAG, "--data.batch_size", "4", *options) == 2
    told = capsys.readouterr().err
    assert f"{options[0][2:]}" in told and f"now it is '{options[1]}'." in told
    assert "Its checkpoints hold it: change it back, or start another one (--name <name>)." in told
    assert FLAG not in told and "data.batch_size" not in told


def test_a_key_that_is_added_to_a_map_is_a_change_and_a_setting_that_is_younger_is_none():
    before = {"model": {"checkpoint": "a"}, "task": {"class_path": "Chat", "init_args": {"roles": {"human": "user"}}}}
    now = copy.deepcopy(before)
    now["model"]["liger"] = False
    now["task"]["init_args"]["mask"] = None
    Resumption("run", inexact=False).compare_settings(before, now)
    now["task"]["init_args"]["roles"]["gpt"] = "assistant"
    with pytest.raises(InputError, match=r"task\.init_args\.roles\.gpt: .*None, now it is 'assistant'"):
        Resumption("run", inexact=False).compare_settings(before, now)


class StopAt(Callback):
    """Fails after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


def test_another_end_changes_a_schedule_that_knows_it():
    trainer = {"max_epochs": None, "max_steps": 10, "max_time": None}
    before = {"trainer": trainer, "patience": None}
    assert other_end(before, {**before, "patience": 3}) == ""
    told = other_end(before, {**before, "trainer": {**trainer, "max_steps": 20}})
    assert told.startswith("trainer.max_steps was 10 and is 20: from here on the learning rate goes")
