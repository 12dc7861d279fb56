"""Two processes that hold half of everything each (fsdp2) learn what two whole ones do (ddp), and what one does."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_hf.checkpoints import MANIFEST, STATE, found, newest_valid
from lit_hf.cli.main import main
from lit_hf.cli.runs import read_checkpoint
from lit_hf.run import RunFolder
from lit_hf.training.saving import CheckpointFiles
from tests import tiny_run
from tests.conversations import save_chat_model
from tests.killing import digest, run

pytestmark = pytest.mark.slow

LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}}
EVERYTHING = {"max_epochs": 1, "gradient_clip_val": 0.1, "log_every_n_steps": 1}
NO_DIFFERENCE = "key.bias"
"""What a softmax does not see: its gradient is rounding alone, which Adam makes steps of."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(name: str, strategy: str, *options: str, config: str = "tiny.yaml", ranks: int = 2, code: int = 0) -> RunFolder:
    Path("log.txt").unlink(missing_ok=True)
    arguments = ["fit", "-c", config, "--name", name, "--trainer.strategy", strategy, "--trainer.devices", str(ranks)]
    ending = run([*arguments, *options], ranks=ranks)
    assert ending.code == code, Path("log.txt").read_text()[-3000:]
    return RunFolder(Path("runs") / name)


def assert_same(one: RunFolder, two: RunFolder, losses: bool = True, rtol: float = 1e-6) -> None:
    """Weights, the optimizer's state, the export, metrics and, where they are of the same batches, losses."""
    first, second = (read_checkpoint(run.checkpoint("last")) for run in (one, two))
    close(first["state_dict"], second["state_dict"], rtol)
    states = ([state["state"] for state in found["optimizer_states"]] for found in (first, second))
    for left, right in zip(*states, strict=True):
        assert left.keys() == right.keys() and len(left) > 4
        for index in left:
            close(left[index], right[index], 100 * rtol)  # moments of the second order are squares of small numbers
    close(*(load_file(next(run.export.glob("*.safetensors"))) for run in (one, two)), rtol)
    records = [run.read_record() for run in (one, two)]
    assert records[0]["parameters"] == records[1]["parameters"]
    assert records[0]["steps"] == records[1]["steps"] >= 5
    assert records[0]["metrics"] == pytest.approx(records[1]["metrics"], rel=rtol)
    if losses:
        assert logged(one) == pytest.approx(logged(two), rel=rtol) and len(logged(one)) == records[0]["steps"]


def close(first: dict, second: dict, rtol: float) -> None:
    assert first.keys() == second.keys()
    for name in first.keys() - {name for name in first if str(name).endswith(NO_DIFFERENCE)}:
        scale = max(second[name].abs().max().item(), 1e-6)
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=rtol * scale, msg=str(name))


def logged(run: RunFolder) -> list[float]:
    with run.metrics.open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def write_chats(folder: Path, **data: object) -> None:
    rows = [{"prompt": f"what is {'red ' * (n % 5)}?", "completion": "a colour. " * (n % 3 + 1)} for n in range(24)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = {
        "task": {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}},
        "model": {
            "checkpoint": str(save_chat_model(folder / "decoder")),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {"source": {"train": "chats.jsonl", "validation": "chats.jsonl"}, "batch_size": 2, **data},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, **EVERYTHING},
    }
    (folder / "chat.yaml").write_text(yaml.safe_dump(config))


def test_a_classifier_in_full(folder, tiny_text_model):
    trainer = {f"trainer__{name}": value for name, value in EVERYTHING.items()}
    tiny_run.write(folder, tiny_text_model, data__batch_size=4, **trainer)
    sharded, whole = fit("sharded", "fsdp2"), fit("whole", "ddp")
    assert_same(sharded, whole)
    state = sharded.checkpoint("last")
    assert sorted(path.name for path in state.iterdir()) == ["common.ckpt", "rows-00000.ckpt", "rows-00001.ckpt"]
    sizes = [sum(value.numel() for value in torch.load(state / f"rows-0000{rank}.ckpt").values()) for rank in (0, 1)]
    assert sum(sizes) == 3 * sharded.read_record()["parameters"]["total"]  # with AdamW's two moments
    assert abs(sizes[0] - sizes[1]) < 0.02 * sum(sizes)
    assert sharded.read_record()["hardware"]["world_size"] == 2


def test_a_language_model_by_the_lean_loss_in_accumulated_batches(folder):
    write_chats(folder)
    accumulated = ("--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "2")
    sharded = fit("sharded", "fsdp2", *accumulated, config="chat.yaml")
    assert "computes all of its logits" not in Path("log.txt").read_text()
    assert_same(sharded, fit("whole", "ddp", *accumulated, config="chat.yaml"))
    alone = fit("alone", "auto", *accumulated, "--data.batch_size", "4", config="chat.yaml", ranks=1)
    # four rows are added up in another order than twice two: with DDP it differs as much
    assert_same(sharded, alone, losses=False, rtol=1e-5)


def test_lora_on_packed_rows_checkpointed_in_bfloat16(folder):
    write_chats(folder, packing=True, batch_tokens=64)
    options = ["--model.gradient_checkpointing", "true", "--trainer.precision", "bf16-mixed", "--model.adapter"]
    options.append(json.dumps(LORA))
    sharded = fit("sharded", "fsdp2", *options, config="chat.yaml")
    assert_same(sharded, fit("whole", "ddp", *options, config="chat.yaml"))
    names = read_checkpoint(sharded.checkpoint("last"))["state_dict"]
    assert names and all("lora_" in name for name in names), "the base model is not in the checkpoints"


def test_tied_embeddings_and_generated_text(folder):
    rows = [{"source": "red " * (number % 4 + 1), "target": "rot " * (number % 4 + 1)} for number in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "tie_word_embeddings": True}
    generation = {"kind": "translation", "metrics": ["chrf"], "generation": {"max_new_tokens": 8}}
    config = {
        "task": {"class_path": "Seq2Seq", "init_args": generation},
        "model": {"config": {"model_type": "t5", "dropout_rate": 0.0, **shape}},
        # 7 rows to validate: in the end one rank writes a text, and the other one a filler's
        "data": {"source": {"train": "rows.jsonl", "validation": "rows.jsonl"}, "batch_size": 2, "eval_batch_size": 3}
        | {"tokenizer": {"train": {"vocab_size": 300}}},
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, **EVERYTHING},
    }
    (folder / "t5.yaml").write_text(yaml.safe_dump(config))
    assert_same(fit("sharded", "fsdp2", config="t5.yaml"), fit("whole", "ddp", config="t5.yaml"))


def test_what_cannot_be_cut_is_told_before_weights_load(folder, tiny_text_model, capsys):
    tiny_run.write(folder, tiny_text_model, trainer__strategy="fsdp2", trainer__devices=2)
    adapter = {"class_path": "peft.AdaLoraConfig", "init_args": {"total_step": 10}}
    options = ["--trainer.precision", "16-mixed", "--model.adapter", json.dumps(adapter)]
    assert main(["fit", "-c", "tiny.yaml", *options, "--model.optimizer", "bitsandbytes.optim.AdamW8bit"]) == 2
    told = capsys.readouterr().err
    assert "3 problems" in told and "trainer.precision: " in told and "model.optimizer: AdamW8bit" in told
    shared = {"class_path": "peft.VBLoRAConfig", "init_args": {"vector_length": 8, "target_modules": ["query"]}}
    assert main(["fit", "-c", "tiny.yaml", "--model.adapter", json.dumps(shared)]) == 2
    assert "layers share weights" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_text_model):
    """A run of two sharded ranks, in the folder of its data."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_run.write(folder, tiny_text_model, data__batch_size=4, checkpoint_every=1, trainer__max_epochs=2)
        fit("tiny", "fsdp2")
    shutil.copytree(folder / "runs", folder / "as_it_was")
    return folder


@pytest.fixture
def copied(finished, monkeypatch):
    """That run, as it was, in the working directory."""
    monkeypatch.chdir(finished)
    shutil.rmtree("runs")
    shutil.copytree("as_it_was", "runs")
    return RunFolder(Path("runs") / "tiny")


def test_later_verbs_need_one_process(copied, capsys):
    one = ("--trainer.devices", "1", "--trainer.strategy", "auto")
    assert main(["validate", "runs/tiny", *one]) == 0
    record = copied.read_record()
    assert f"{record['best']['value']:.4f}" in capsys.readouterr().out
    assert main(["checkpoints", "runs/tiny", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["checkpoints"]
    assert all(row["world_size"] == 2 and row["problem"] is None for row in listed)
    assert main(["predict", "runs/tiny", "--text", "a fine film"]) == 0
    from_run = json.loads(capsys.readouterr().out)
    assert main(["predict", "runs/tiny/export", "--text", "a fine film"]) == 0
    assert json.loads(capsys.readouterr().out) == from_run
    assert main(["export", "runs/tiny", "--output", "again"]) == 0
    again, exported = (load_file(Path(place) / "model.safetensors") for place in ("again", "runs/tiny/export"))
    torch.testing.assert_close(again, exported, rtol=0, atol=0)


def test_a_checkpoint_with_a_damaged_part_is_passed_over(copied, capsys):
    expected = digest(copied.path)
    newest, *older = found(copied.checkpoints)
    rows = newest / STATE / "rows-00001.ckpt"
    whole = rows.read_bytes()
    rows.unlink()
    assert newest_valid(copied.checkpoints).folder == older[0]
    rows.write_bytes(whole[:-100])
    assert main(["checkpoints", "runs/tiny"]) == 0
    assert f"{STATE}/{rows.name} has {len(whole) - 100:,} bytes" in " ".join(capsys.readouterr().out.split())
    copied.update_record(state="failed")
    fit("tiny", "fsdp2")
    told = " ".join(Path("log.txt").read_text().split())
    assert f"the checkpoint {newest} is skipped: {STATE}/{rows.name} has" in told
    assert f"resuming runs/tiny from step {int(older[0].name[5:])}" in told
    assert digest(copied.path) == expected


def test_it_goes_on_with_other_numbers_of_processes_where_that_is_allowed(copied, capsys):
    assert main(["fit", "-c", "tiny.yaml", "--trainer.devices", "1", "--trainer.strategy", "fsdp2"]) == 2
    assert "--allow-inexact-resume" in capsys.readouterr().err
    more = ("--trainer.max_epochs", "3", "--allow-inexact-resume", "--data.batch_size", "8", "--checkpoint_every", "2")
    before = read_checkpoint(copied.checkpoint("last"))
    for ranks, strategy in ((1, "fsdp2"), (1, "auto")):
        shutil.copytree("runs/tiny", f"runs/{strategy}")
        fit(strategy, strategy, *more, ranks=ranks)
        assert "resuming" in Path("log.txt").read_text()
    first, second = (read_checkpoint(RunFolder(f"runs/{name}").checkpoint("last")) for name in ("fsdp2", "auto"))
    assert first["global_step"] == second["global_step"] > before["global_step"]
    close(first["state_dict"], second["state_dict"], 1e-6)


def fail_on_rank_1() -> None:
    """Have the disk of rank 1 fail at the second checkpoint."""
    if os.environ["LOCAL_RANK"] != "1":
        return
    write, count = CheckpointFiles.write, iter(range(10))

    def failing(self, state, path, ranks=1):
        if next(count) == 1:
            self.writer.submit(lambda: (time.sleep(0.2), path.joinpath("no", "such").write_bytes(b"")))
        else:
            write(self, state, path, ranks)

    CheckpointFiles.write = failing


def test_what_one_rank_could_not_write_is_no_checkpoint(folder, tiny_text_model):
    tiny_run.write(folder, tiny_text_model, data__batch_size=4, checkpoint_every=1)
    options = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2"]
    ending = run(["fit", "-c", "tiny.yaml", *options], sabotage=fail_on_rank_1, ranks=2)
    assert ending.code == 3
    assert [path.name for path in found(folder / "runs" / "tiny" / "checkpoints")] == ["step-00000001"]
    told = " ".join(Path("log.txt").read_text().split())
    assert "another process could not write the checkpoint" in told
    assert "The last checkpoint is runs/tiny/checkpoints/step-00000001" in told
    assert (folder / "runs" / "tiny" / "checkpoints" / "step-00000001" / MANIFEST).is_file()
