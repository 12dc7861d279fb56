"""Keeps a run's record: what it ran with, where, how it ended and what came of it."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import lit_hf
from lit_hf.errors import without_secrets
from lit_hf.models.accounting import count_parameters
from lit_hf.run import RunFolder
from lit_hf.training.callbacks.checkpoints import RunCheckpoints
from lit_hf.training.callbacks.nonfinite import StopOnNonFinite
from lit_hf.training.callbacks.spikes import LossSpikes
from lit_hf.training.callbacks.throughput import Throughput, peak_memory
from lit_hf.training.tracking import MetricsFile

PACKAGES = ("torch", "lightning", "transformers", "datasets", "peft", "liger-kernel", "cut-cross-entropy")


class RunRecorder(Callback):
    """Writes `run.json` when a run starts, and again when it ends, however it ends; only rank zero writes.

    A run that resumes starts a new record, and the earlier ones move to its list `starts`, the oldest first. The rows
    of `metrics.csv` that lie beyond the step it resumes from are taken out, as those steps are done again.

    Args:
        run: Whose record it is.
        throughput: Knows how fast it trained.
        fingerprints: What the data and the model were, by name.
        limits: What ends the training, by name.
    """

    def __init__(
        self,
        run: RunFolder,
        throughput: Throughput,
        fingerprints: Mapping[str, str] | None = None,
        limits: Mapping[str, float | None] | None = None,
    ) -> None:
        self.run = run
        self.throughput = throughput
        self.fingerprints = dict(fingerprints or {})
        self.limits = dict(limits or {})
        self._started: float | None = None  # only on rank zero
        self._ended_within_epoch = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Record the start and its surroundings, before anything large is loaded."""
        if not trainer.is_global_zero or stage != "fit":
            return
        self._started = time.monotonic()
        earlier = self.run.read_record()
        start = {
            "state": "running",
            "started": _now(),
            "ended": None,
            "seconds": None,
            "error": None,
            "versions": versions(),
            "git": _git(Path.cwd()),
            "hardware": _hardware(trainer),
            "fingerprints": self.fingerprints,
            "parameters": None,
            "steps": None,
            "epochs": None,
            "limits": None,
            "skipped_steps": 0,
            "loss_spikes": 0,
            "metrics": {},
            "best": None,
            "throughput": None,
            "peak_memory_bytes": None,
        }
        starts = earlier.get("starts", [])
        if "started" in earlier:
            starts = [*starts, {name: value for name, value in earlier.items() if name in start}]
        self.run.update_record(**start, starts=starts)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the size of the model, which is built by now."""
        if trainer.is_global_zero:
            self.run.update_record(parameters=count_parameters(pl_module)._asdict())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take out the logged rows of steps that are to be done again."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.truncate(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record how fast it trains, for those who look while it runs."""
        if self._started is not None and not trainer.sanity_checking:
            self.run.update_record(steps=trainer.global_step, throughput=self.throughput.summary())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note whether the epoch came to its end, which Lightning counts as one where it was stopped, too."""
        self._ended_within_epoch = not trainer.is_last_batch

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the end and what came of it."""
        self._end(trainer, pl_module, "finished", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Record the end and its cause: `preempted` where the process was told to stop (SIGINT, SIGTERM)."""
        told_to_stop = isinstance(exception, KeyboardInterrupt | SystemExit)
        error = {"type": type(exception).__name__, "message": without_secrets(str(exception))}
        with suppress(OSError):  # the disk may be full, and the cause is what must be told
            self._end(trainer, pl_module, "preempted" if told_to_stop else "failed", error)

    def _end(self, trainer: Trainer, pl_module: LightningModule, state: str, error: dict[str, str] | None) -> None:
        if self._started is None:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.run.update_record(
            state=state,
            ended=_now(),
            seconds=time.monotonic() - self._started,
            error=error,
            steps=trainer.global_step,
            epochs=trainer.current_epoch - self._ended_within_epoch,
            limits=self.limits,
            skipped_steps=sum(one.skipped for one in callbacks if isinstance(one, StopOnNonFinite)),
            loss_spikes=sum(one.count for one in callbacks if isinstance(one, LossSpikes)),
            metrics=_metrics(trainer, pl_module),
            best=self._best(trainer),
            throughput=self.throughput.summary(),
            peak_memory_bytes=peak_memory(trainer.strategy.root_device),
        )

    def _best(self, trainer: Trainer) -> dict[str, Any] | None:
        checkpoints = trainer.checkpoint_callback
        if not isinstance(checkpoints, RunCheckpoints) or checkpoints.best is None:
            return None
        name, score = checkpoints.best
        folder = self.run.checkpoints / name
        return {
            "metric": checkpoints.monitor,
            "value": None if score is None else _json(score),
            "checkpoint": os.path.relpath(folder, self.run.path),
        }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, float | str]:
    """Return the latest validation's metrics, which may be from before a resume."""
    before = {
        name: value for name, value in getattr(pl_module, "results", {}).items() if isinstance(value, int | float)
    }
    metrics = {**before, **trainer.callback_metrics}
    return {name: _json(value) for name, value in metrics.items() if name.startswith("val/")}


def _json(value: torch.Tensor | float) -> float | str:
    # JSON has no NaN
    number = float(value)
    return number if math.isfinite(number) else str(number)


def versions() -> dict[str, str | None]:
    """Return the versions of lit-hf, of Python and of the packages that results depend on; None for one not there."""
    found: dict[str, str | None] = {"lit_hf": lit_hf.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """Return the checked-out revision and whether tracked files differ from it; None outside a repository."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"revision": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _hardware(trainer: Trainer) -> dict[str, Any]:
    device = trainer.strategy.root_device
    accelerators = []
    if device.type == "cuda":
        accelerators = [torch.cuda.get_device_name(index) for index in trainer.device_ids]
    elif device.type != "cpu":
        accelerators = [device.type] * trainer.num_devices
    return {
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cpu_cores": os.cpu_count(),
        "accelerators": accelerators,
        "nodes": trainer.num_nodes,
        "world_size": trainer.world_size,
        "precision": str(trainer.precision),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
