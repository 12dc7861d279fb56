"""A disk that is full, or another one for temporary files: the older checkpoint stays, and the run goes on from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback

from lit_hf.checkpoints import found, newest_valid
from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from lit_hf.training import saving
from tests.conftest import ROOT
from tests.killing import digest

WORDS = {"good": ["great", "good", "fine"], "bad": ["bad", "poor", "dull"]}


@pytest.fixture
def disk(tmp_path):
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        if "CI" in os.environ:
            raise  # CI runs as root: a run without these tests must not look like one with them
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a checkpoint may still be mapped


@pytest.fixture
def config(tmp_path, tiny_text_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"the film was {word}", "label": label} for label, words in WORDS.items() for word in words] * 4
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "task": {"class_path": "TextClassification"},
        "model": {"checkpoint": str(tiny_text_model), "schedule": {"name": "constant", "warmup": 0}},
        "data": {"source": {"train": "rows.jsonl", "validation": "rows.jsonl"}, "batch_size": 8},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))


class Fill(Callback):
    """Fills the disk in the second epoch, but for some bytes."""

    def __init__(self, disk: str, left: int) -> None:
        self.disk, self.left = Path(disk), left

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 0:
            with (self.disk / "ballast").open("wb") as file:
                for _ in range((shutil.disk_usage(self.disk).free - self.left) // 4096):
                    file.write(bytes(4096))


class FillBeforeStep(Callback):
    """Fills the disk before a step, and lets each one take a while, as those of larger models do."""

    def __init__(self, disk: str, step: int) -> None:
        self.disk, self.step = Path(disk), step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.is_global_zero and trainer.global_step == self.step:
            (self.disk / "ballast").write_bytes(bytes(shutil.disk_usage(self.disk).free - 2**20))
        time.sleep(0.2)


def fit(folder, *options):
    return main(["fit", "-c", "run.yaml", "--name", "run", "--output_dir", str(folder), *options])


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_ends_the_run_and_the_older_checkpoint_stays(disk, config, tmp_path, monkeypatch, capsys, foreseen):
    assert fit(disk) == 0
    (older,) = found(disk / "run" / "checkpoints")
    size = sum(file.stat().st_size for file in older.iterdir())
    if not foreseen:  # others write at the same time
        monkeypatch.setattr(saving, "SLACK", -(10**12))
    fill = {"class_path": f"{__name__}.Fill", "init_args": {"disk": str(disk), "left": size // 2}}
    capsys.readouterr()
    assert fit(disk, "--trainer.max_epochs", "3", f"--trainer.callbacks+={json.dumps(fill)}") == 3
    told = capsys.readouterr().err
    expected = ["MiB are free on its disk"] if foreseen else ["the disk is full", "could not be written"]
    assert any(words in told for words in expected)
    assert f"The last checkpoint is {older}; the same command goes on from there." in told
    assert newest_valid(disk / "run" / "checkpoints") == (older, [])
    (disk / "ballast").unlink()
    assert fit(disk, "--trainer.max_epochs", "3") == 0
    assert fit(tmp_path / "whole", "--trainer.max_epochs", "3") == 0
    whole, resumed = digest(tmp_path / "whole" / "run"), digest(disk / "run")
    assert [whole[key] for key in ("weights", "export")] == [resumed[key] for key in ("weights", "export")]
    assert list((disk / "run" / "checkpoints").glob(".*")) == []


def test_temporary_files_on_another_file_system_are_not_in_the_way(disk, config, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.setattr("tempfile.tempdir", None)
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
    assert fit(tmp_path / "runs") == 0
    assert newest_valid(tmp_path / "runs" / "run" / "checkpoints").folder is not None


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_ends_all_processes_at_the_next_step(disk, config, processes):
    """The checkpoint of step 4 fails; the next one is of step 8, and each process is on its own until then."""
    fill = {"class_path": f"{__name__}.FillBeforeStep", "init_args": {"disk": str(disk), "step": 3}}
    options = ["--checkpoint_every", "4", "--data.batch_size", "1", f"--trainer.callbacks+={json.dumps(fill)}"]
    options += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp" if processes > 1 else "auto"]
    command = [sys.executable, "-m", "lit_hf", "fit", "-c", "run.yaml", "--name", "run", "--output_dir", str(disk)]
    env = os.environ | {"PYTHONPATH": str(ROOT)}  # so that the callback is found
    done = subprocess.run([*command, *options], env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("MiB are free on its disk") == 1 and "Traceback" not in done.stderr
    (disk / "ballast").unlink()
    record = RunFolder(disk / "run").read_record()
    assert record["state"] == "failed"
    assert 4 <= record["steps"] <= 6
