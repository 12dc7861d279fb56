"""Runs on a stream: they learn, are refused at once where they cannot, and end the same after they were killed."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer

from lit_hf.checkpoints import STATE, newest_valid
from lit_hf.cli.main import main
from tests.conversations import save_chat_model
from tests.hub import Hub
from tests.killing import Moment, digest, run

WORDS = {"good": ("great", "good", "fine"), "bad": ("bad", "poor", "dull")}
ROWS = 42
WINDOW = 16


@pytest.fixture(scope="module")
def models(tiny_text_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An encoder with dropout, and a decoder."""
    folder = tmp_path_factory.mktemp("models")
    encoder = AutoModel.from_pretrained(tiny_text_model, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    encoder.save_pretrained(folder / "encoder")
    AutoTokenizer.from_pretrained(tiny_text_model).save_pretrained(folder / "encoder")
    return {"encoder": str(folder / "encoder"), "decoder": str(save_chat_model(folder / "decoder"))}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder, the working one, with rows in two files of unequal length."""
    before, chance = Path.cwd(), random.Random(0)
    os.chdir(tmp_path)
    rows = []
    for label in chance.choices(list(WORDS), k=ROWS + 12):
        text = f"the film was {chance.choice(WORDS[label])}" + " very" * chance.randint(0, 5)
        rows.append({"text": text, "label": label, "prompt": text, "completion": label * chance.randint(1, 4)})
    for name, part in (("train-0", rows[:30]), ("train-1", rows[30:ROWS]), ("validation", rows[ROWS:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in part))
    yield tmp_path
    os.chdir(before)


def write(folder: Path, models: dict[str, str], kind: str = "grouped", **trainer: Any) -> None:
    """Write a config: windows of four batches each, and checkpoints after every step."""
    source = {"train": "train-*.jsonl", "validation": "validation.jsonl", "streaming": True}
    data = {"source": source, "window_rows": WINDOW, "batch_size": 4}
    classify = {"text": "text", "label": "label", "labels": ["bad", "good"]}
    config: dict[str, Any] = {
        "task": {"class_path": "TextClassification", "init_args": classify},
        "model": {
            "checkpoint": models["encoder"],
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": data,
        "checkpoint_every": 1,
        "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, "max_steps": 12}
        | trainer,
    }
    if kind == "packed":
        config["task"] = {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}}
        config["model"]["checkpoint"] = models["decoder"]
        data |= {"packing": True, "batch_tokens": 128}
    if kind == "mixed":
        one, two = ({**source, "train": f"train-{number}.jsonl"} for number in range(2))
        data["source"] = [{**one, "weight": 2.0}, {**two, "validation": None}]
        data |= {"mixing": "interleave", "stopping": "all_exhausted"}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def fit(folder: Path, name: str, kill_at: Moment | None = None, ranks: int = 1) -> dict[str, str]:
    """Return what a run left; empty if it was killed."""
    ending = run(["fit", "-c", "run.yaml", "--name", name], kill_at, ranks=ranks)
    if kill_at is not None:
        assert ending.code == -signal.SIGKILL, f"{kill_at} was not reached"
        return {}
    assert ending.code == 0, (folder / "log.txt").read_text()[-3000:]
    return digest(folder / "runs" / name) | {"calls": json.dumps(ending.calls[0])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "trainer", "moments"),
    [
        ("grouped", {"accumulate_grad_batches": 2}, [("step", 0.2), ("step", 0.5), ("validation", 0.4), ("save", 0.8)]),
        ("packed", {"val_check_interval": 3}, [("step", 0.3), ("step", 0.7), ("save", 0.5)]),
        ("mixed", {"val_check_interval": 3, "max_steps": 20}, [("step", 0.4), ("step", 0.8)]),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    folder: Path, models: dict[str, str], kind: str, trainer: dict[str, Any], moments: list[tuple[str, float]]
) -> None:
    write(folder, models, kind, **trainer)
    whole = fit(folder, "whole")
    calls = json.loads(whole.pop("calls"))

    for number, (phase, share) in enumerate(moments):
        fit(folder, f"killed-{number}", Moment(phase, int(share * calls[phase])))
        resumed = fit(folder, f"killed-{number}")
        resumed.pop("calls")
        assert resumed == whole, (phase, share)


@pytest.mark.slow
def test_one_of_two_ranks_that_is_killed_changes_nothing(folder: Path, models: dict[str, str]) -> None:
    write(folder, models, devices=2, strategy="ddp", val_check_interval=3, max_steps=8)
    whole = fit(folder, "whole", ranks=2)
    calls = json.loads(whole.pop("calls"))

    for rank, phase, share in ((1, "step", 0.7), (0, "save", 0.4)):
        fit(folder, f"killed-{rank}", Moment(phase, int(share * calls[phase]), rank), ranks=2)
        resumed = fit(folder, f"killed-{rank}", ranks=2)
        resumed.pop("calls")
        assert resumed == whole, (phase, share)


def test_a_run_makes_several_passes_and_keeps_its_place_in_checkpoints(folder: Path, models: dict[str, str]) -> None:
    write(folder, models)

    assert main(["fit", "-c", "run.yaml", "--trainer.max_steps", "26"]) == 0

    record = json.loads(Path("runs/run/run.json").read_text())
    assert (record["steps"], record["epochs"], record["state"]) == (26, 2, "finished")
    newest = newest_valid(Path("runs/run/checkpoints")).folder
    assert newest is not None
    place = torch.load(newest / STATE, weights_only=True)["LitDataModule"]["stream"]
    # a pass has 11 batches, so the last steps were those of the third one's first window
    assert [place[key] for key in ("epoch", "window", "batch", "row")] == [2, 1, 4, WINDOW]


def test_a_finished_run_goes_on_for_more_steps(folder: Path, models: dict[str, str]) -> None:
    write(folder, models)
    fit_on = ["fit", "-c", "run.yaml", "--model.schedule.name", "constant", "--model.schedule.warmup", "0"]

    assert main([*fit_on, "--name", "whole", "--trainer.max_steps", "20"]) == 0
    assert main([*fit_on, "--name", "part", "--trainer.max_steps", "15"]) == 0
    assert main([*fit_on, "--name", "part", "--trainer.max_steps", "20"]) == 0

    whole, part = (digest(folder / "runs" / name) for name in ("whole", "part"))
    assert (part["weights"], part["optimizer"]) == (whole["weights"], whole["optimizer"])


def test_settings_that_need_to_know_the_number_of_rows_are_refused_at_once(
    folder: Path, models: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    write(folder, models, max_steps=-1, max_epochs=2, val_check_interval=0.5)

    assert main(["fit", "-c", "run.yaml"]) == 2

    told = capsys.readouterr().err
    assert "trainer.max_steps: nobody knows how long a stream is" in told
    assert "trainer.val_check_interval: 0.5 is a share of an epoch" in told


def test_a_fault_in_the_middle_keeps_what_was_saved(
    folder: Path, models: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    write(folder, models)
    lines = (folder / "train-1.jsonl").read_text().splitlines()
    lines[4] = json.dumps({"text": "the film", "label": "middling", "prompt": "", "completion": ""})
    (folder / "train-1.jsonl").write_text("\n".join(lines))

    assert main(["fit", "-c", "run.yaml"]) == 3

    told = capsys.readouterr().err
    assert "train-1.jsonl:5: column 'label'" in told
    assert "the same command goes on from there" in told
    (folder / "train-1.jsonl").write_text("\n".join(lines[:4] + lines[5:]))
    assert main(["fit", "-c", "run.yaml"]) == 0


def test_a_dataset_of_the_hub_is_streamed(folder: Path, models: dict[str, str], hub: Hub) -> None:
    repository = folder / "repository"
    repository.mkdir()
    for name in ("train-0", "train-1", "validation"):
        (folder / f"{name}.jsonl").rename(repository / f"{name}.jsonl")
    hub.add_dataset("someone/reviews", repository)
    write(folder, models)
    config = yaml.safe_load((folder / "run.yaml").read_text())
    config["data"]["source"] = {"path": "someone/reviews", "streaming": True}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))

    assert main(["fit", "-c", "run.yaml"]) == 0
    assert main(["test", "runs/run", "--data.source.test", "validation"]) == 0

    assert json.loads(Path("runs/run/run.json").read_text())["steps"] == 12
