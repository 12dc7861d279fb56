"""W&B's own files, written here by W&B itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_hf.training.wandb_files import logged_steps

SCRIPT = """
import sys, wandb
folder, run_id, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
with wandb.init(dir=folder, id=run_id, mode="offline", settings=wandb.Settings(silent=True)) as run:
    for step in range(steps):
        run.log({"trainer/global_step": step, "loss": 0.5, "long": "x" * 5000})
    run.log({"loss": 1.0})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of 20 steps, whose rows go over several blocks of the file."""
    folder = tmp_path_factory.mktemp("wandb")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), "mine", "20"]
    subprocess.run(command, env=clean | {"HOME": str(folder)}, capture_output=True, check=True, timeout=120)
    return folder


def test_each_row_with_a_step_is_found_once_and_in_order(folder: Path) -> None:
    assert list(logged_steps(folder, "mine")) == list(range(20))


def test_other_runs_are_others(folder: Path) -> None:
    assert list(logged_steps(folder, "min")) == []


def test_a_file_that_was_cut_short_tells_the_rows_before_the_cut(folder: Path, tmp_path: Path) -> None:
    (whole,) = folder.glob("wandb/offline-run-*-mine/run-mine.wandb")
    data = whole.read_bytes()
    start = tmp_path / "wandb" / whole.parent.name
    start.mkdir(parents=True)
    known = []
    for size in (7, len(data) // 3, len(data) // 2, len(data) - 1):
        (start / whole.name).write_bytes(data[:size])
        known.append(list(logged_steps(tmp_path, "mine")))
    assert [steps == list(range(len(steps))) for steps in known] == [True] * 4
    assert [len(steps) for steps in known] == sorted(len(steps) for steps in known)
    assert known[0] == [] and 0 < len(known[1]) < len(known[2]) < 20
