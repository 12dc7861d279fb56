from __future__ import annotations

import math
import os
import platform
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

import lit_hf
from lit_hf.errors import holds_secret, without_secrets
from lit_hf.run import RunFolder
from lit_hf.training.callbacks.checkpoints import RunCheckpoints
from lit_hf.training.callbacks.record import PACKAGES, RunRecorder
from lit_hf.training.callbacks.throughput import Throughput
from lit_hf.training.saving import CheckpointFiles, Writer
from lit_hf.training.tracking import MetricsFile
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


def fit(run: RunFolder, module: TinyModule | None = None, *callbacks: Callback, **settings: Any) -> None:
    throughput = Throughput(warmup_batches=1)
    best = RunCheckpoints(run, writer := Writer(), "val/loss", "min")
    recorder = RunRecorder(run, throughput, {"data": "d1", "model": "m1"})
    ckpt_path = settings.pop("ckpt_path", None)
    plugins = [CheckpointFiles(writer)]
    settings = {"enable_checkpointing": True, "max_epochs": 2, "plugins": plugins} | settings
    trainer = tiny_trainer(run.path, callbacks=[throughput, recorder, best, *callbacks], **settings)
    trainer.fit(module or TinyModule(), Batches(4), Batches(2), ckpt_path=ckpt_path, weights_only=True)


class Do(Callback):
    """Does something after a batch, counted from 1."""

    def __init__(self, at: int, what: Any) -> None:
        self.at = at
        self.what = what

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.at:
            self.what()


def test_a_finished_run_is_recorded(run: RunFolder) -> None:
    started = datetime.now(UTC).replace(microsecond=0)

    fit(run, TinyModule(val_losses=[0.25, 0.5]))

    record = run.read_record()
    assert record["state"] == "finished"
    assert started <= datetime.fromisoformat(record["started"]) <= datetime.fromisoformat(record["ended"])
    assert record["seconds"] > 0
    assert (record["steps"], record["epochs"]) == (8, 2)
    assert record["metrics"] == {"val/loss": 0.5, "val/accuracy": 0.75}
    assert record["best"] == {"metric": "val/loss", "value": 0.25, "checkpoint": "checkpoints/step-00000004"}
    assert record["parameters"] == {"trainable": 5, "total": 8}
    assert record["fingerprints"] == {"data": "d1", "model": "m1"}
    assert record["versions"] | dict.fromkeys(PACKAGES[2:], 0) == {
        "lit_hf": lit_hf.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        **dict.fromkeys(PACKAGES[2:], 0),
    }
    assert record["throughput"]["tokens"] == 2 * (10 + 14 + 6 + 10)
    assert list(record["peak_memory_bytes"]) == ["process_resident"]
    assert (record["error"], record["starts"]) == (None, [])


def test_the_surroundings_are_recorded(run: RunFolder) -> None:
    fit(run, precision="bf16-mixed", max_epochs=1)

    hardware = run.read_record()["hardware"]
    assert hardware["cpu"] and hardware["cpu_cores"] == os.cpu_count()
    assert hardware | {"cpu": "", "cpu_cores": 0} == {
        "host": platform.node(),
        "cpu": "",
        "cpu_cores": 0,
        "accelerators": [],
        "nodes": 1,
        "world_size": 1,
        "precision": "bf16-mixed",
    }


def test_a_run_says_that_it_is_running(run: RunFolder) -> None:
    seen: list[dict[str, Any]] = []

    fit(run, None, Do(3, lambda: seen.append(run.read_record())))

    assert (seen[0]["state"], seen[0]["ended"], seen[0]["steps"]) == ("running", None, None)
    assert seen[0]["parameters"] == {"trainable": 5, "total": 8}


def test_a_failed_run_is_recorded_with_its_error_and_without_secrets(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", "not-to-be-seen")

    def fail() -> None:
        raise ValueError("401 for key not-to-be-seen")

    with pytest.raises(ValueError, match="401"):
        fit(run, TinyModule(val_losses=[0.25, 0.5]), Do(6, fail))

    record = run.read_record()
    assert record["state"] == "failed"
    assert record["error"] == {"type": "ValueError", "message": "401 for key ***"}
    assert (record["steps"], record["epochs"]) == (6, 1)
    assert record["best"]["value"] == 0.25
    assert "not-to-be-seen" not in "".join(path.read_text() for path in run.path.glob("*.json"))


@pytest.mark.parametrize(
    ("number", "error", "name"),
    [(signal.SIGTERM, SIGTERMException, "SIGTERMException"), (signal.SIGINT, SystemExit, "KeyboardInterrupt")],
)
def test_a_run_that_was_told_to_stop_is_preempted(
    run: RunFolder, number: signal.Signals, error: type[BaseException], name: str
) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(error):
            fit(run, None, Do(3, lambda: os.kill(os.getpid(), number)))
    finally:
        signal.signal(signal.SIGINT, before)

    record = run.read_record()
    assert (record["state"], record["steps"], record["error"]["type"]) == ("preempted", 3, name)


def test_a_resumed_run_keeps_its_earlier_starts(run: RunFolder) -> None:
    run.update_record(wandb_id="abc")
    with pytest.raises(RuntimeError):
        fit(run, None, Do(6, _fail))
    failed = run.read_record()

    fit(run, None, ckpt_path=run.checkpoint("last"), max_epochs=3)
    fit(run, None, ckpt_path=run.checkpoint("last"), max_epochs=4)

    record = run.read_record()
    assert (record["state"], record["steps"], record["error"]) == ("finished", 16, None)
    assert record["wandb_id"] == "abc"
    assert [(start["state"], start["steps"]) for start in record["starts"]] == [("failed", 6), ("finished", 12)]
    assert record["starts"][0] == {name: failed[name] for name in record["starts"][0]}
    assert record["starts"][0]["error"]["type"] == "RuntimeError"
    assert not {"starts", "wandb_id"} & record["starts"][0].keys()


def test_a_resumed_run_drops_the_logged_rows_of_steps_it_does_again(run: RunFolder) -> None:
    for number, stop_at in enumerate((7, None)):
        callbacks = [Do(stop_at, _fail)] if stop_at else []
        settings = {"logger": [MetricsFile(run)], "ckpt_path": run.checkpoint("last") if number else None}
        if stop_at:
            with pytest.raises(RuntimeError):
                fit(run, None, *callbacks, **settings)
            assert run.metrics.read_text().count("\n") == 1 + 6
        else:
            fit(run, None, **settings)

    rows = [line.split(",") for line in run.metrics.read_text().splitlines()]
    assert rows[0] == ["step", "epoch", "train/loss", "val/loss"]
    assert [row[:2] for row in rows[1:]] == [[str(step), str(step // 4)] for step in range(8)]
    assert [row[3] != "" for row in rows[1:]] == [step % 4 == 3 for step in range(8)]


def test_metrics_that_are_not_finite_are_valid_json(run: RunFolder) -> None:
    fit(run, TinyModule(val_losses=[math.nan, math.inf]))

    assert run.read_record()["metrics"] == {"val/loss": "inf", "val/accuracy": "-inf"}


def test_only_rank_zero_records(run: RunFolder) -> None:
    fit(run, None, devices=2, strategy="ddp_fork", use_distributed_sampler=False)

    record = run.read_record()
    assert (record["state"], record["hardware"]["world_size"], record["starts"]) == ("finished", 2, [])
    assert record["throughput"]["tokens"] == 2 * 2 * 40


def test_the_revision_of_the_working_folder_is_recorded(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    fit(run, max_epochs=1)
    assert run.read_record()["git"] is None

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout

    git("init")
    (work / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    revision = git("rev-parse", "HEAD").strip()
    fit(run, max_epochs=1)
    assert run.read_record()["git"] == {"revision": revision, "dirty": False}

    (work / "file").write_text("two")
    fit(run, max_epochs=1)
    assert run.read_record()["git"] == {"revision": revision, "dirty": True}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:pass@host/x failed", "https://***host/x failed"),
        ("token hf_abcdefghijklmnopqrstuv is bad", "token *** is bad"),
        ("clone with ghp_abcdefghijklmnopqrstuvwxyz failed", "clone with *** failed"),
        ("key sk-abcdefghijklmnopqrstuvwxyz is bad", "key *** is bad"),
        ("it is planted-password", "it is ***"),
        ("no file /home/someone/token", "no file /home/someone/token"),
        ("https://longtokenofsomekind123@host failed", "https://***host failed"),
        ("ssh://git@host/x failed", "ssh://git@host/x failed"),
        ("https://host/x?a=b failed at hf_hub", "https://host/x?a=b failed at hf_hub"),
    ],
)
def test_secrets_are_starred_out_and_nothing_else(text: str, clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "planted-password")
    monkeypatch.setenv("HF_TOKEN_PATH", "/home/someone/token")
    assert without_secrets(text) == clean
    assert holds_secret(text) == (text != clean)


def _fail() -> None:
    raise RuntimeError("no")


def test_the_speed_is_recorded_while_it_runs(run: RunFolder) -> None:
    seen: list[dict[str, Any]] = []

    fit(run, None, Do(6, lambda: seen.append(run.read_record())))

    assert (seen[0]["state"], seen[0]["steps"]) == ("running", 4)
    assert seen[0]["throughput"]["tokens"] == 40
