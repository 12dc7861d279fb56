"""A run that came to its end within an epoch and is given more is the one that had been given as much at once."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lit_hf.training.callbacks.time_limit import StopOnTime
from tests.conversations import save_chat_model
from tests.killing import digest, run
from tests.tiny_run import write

UNVALIDATED = ("--data.source.validation", "null", "--data.source.validation_share", "0")
CONSTANT = ("--model.schedule.name", "constant", "--model.schedule.warmup", "0")
KINDS = {
    "rows": {"data": {"batch_size": 2}, "trainer": {"accumulate_grad_batches": 2}},
    "stream": {
        "task": {"init_args": {"labels": ["bad", "good"]}},
        "data": {"source": {"streaming": True}, "window_rows": 16, "batch_size": 2},
        "trainer": {"accumulate_grad_batches": 2},
    },
    "packed": {
        "task": {"class_path": "Chat", "init_args": {"prompt": "text", "completion": "label"}},
        "data": {"packing": True, "batch_tokens": 64},
    },
}
"""What differs from the tiny run; an epoch has 24, 24 and 14 batches."""

ENDS = {"rows": (5, 12, 17, 26), "stream": (5, 12, 17, 26), "packed": (5, 9, 20)}
"""Steps after which the parts of a run end: within epochs, and at one's end."""


@pytest.fixture
def folder(tmp_path: Path, tiny_text_model: Path) -> Iterator[Path]:
    """The working folder, with the tiny run's rows and config."""
    before = Path.cwd()
    os.chdir(tmp_path)
    write(tmp_path, tiny_text_model, trainer__max_epochs=-1, trainer__log_every_n_steps=1)
    save_chat_model(tmp_path / "decoder")
    for kind, changes in KINDS.items():
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(changes))
    yield tmp_path
    os.chdir(before)


def fit(folder: Path, name: str, *options: str, sabotage=None) -> None:
    ending = run(["fit", "-c", "tiny.yaml", *options, *CONSTANT, "--name", name], sabotage=sabotage)
    assert ending.code == 0, (folder / "log.txt").read_text()[-3000:]


def left(folder: Path, name: str, validated: bool) -> dict[str, object]:
    """Return what a run left, but for what comes of one more validation at where it ended."""
    run_folder = folder / "runs" / name
    whole = digest(run_folder)
    with (run_folder / "metrics.csv").open() as file:
        losses = [(row["step"], row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    same = ("weights", "optimizer", "schedule") + (() if validated else ("export", "checkpoints", "results"))
    return {"losses": losses} | {key: whole[key] for key in same}


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize(("kind", "ends"), ENDS.items())
def test_more_steps(folder: Path, kind: str, ends: tuple[int, ...], validated: bool) -> None:
    options = ["-c", f"{kind}.yaml"] if kind != "packed" else ["-c", "packed.yaml", "--model.checkpoint", "decoder"]
    options += [] if validated else UNVALIDATED

    fit(folder, "whole", *options, "--trainer.max_steps", str(ends[-1]))
    for end in ends:
        fit(folder, "part", *options, "--trainer.max_steps", str(end))

    assert left(folder, "part", validated) == left(folder, "whole", validated)


def hurry() -> None:
    """Let a second pass whenever somebody asks for the time that is left."""
    StopOnTime.start_time = lambda self, stage="train": self._offset or 0.0
    StopOnTime.time_elapsed = lambda self, stage="train": setattr(self, "_offset", self._offset + 1) or self._offset


@pytest.mark.parametrize("validated", [True, False])
def test_more_time(folder: Path, validated: bool) -> None:
    options = ["-c", "rows.yaml", *(() if validated else UNVALIDATED)]

    fit(folder, "whole", *options, "--trainer.max_steps", "20")
    fit(folder, "part", *options, "--trainer.max_steps", "20", "--trainer.max_time", "00:00:00:08", sabotage=hurry)
    assert not (folder / "runs/part/checkpoints/step-00000020").exists()
    fit(folder, "part", *options, "--trainer.max_steps", "20")

    assert left(folder, "part", validated) == left(folder, "whole", validated)


def test_epochs_that_were_left_are_not_counted(folder: Path) -> None:
    fit(folder, "part", "--trainer.max_epochs", "1", "--trainer.max_steps", "4")
    fit(folder, "part", "--trainer.max_epochs", "1", "--trainer.max_steps", "-1")

    assert (folder / "runs/part/checkpoints/step-00000006").is_dir()
    assert '"epochs": 1' in (folder / "runs/part/run.json").read_text()
