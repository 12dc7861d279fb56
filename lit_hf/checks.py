"""Checks that need two blocks of the config: settings that are right each alone and wrong together."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from lit_hf.errors import Problem, nearest
from lit_hf.task import Task

BYTES_FLOAT32 = 4


def monitored(task: Task, monitor: str | None) -> str:
    """Return the metric that tells the best checkpoint: the config's, or the task's own."""
    return (monitor or task.monitor).removeprefix("val/")


def monitor_mode(task: Task, monitor: str) -> str:
    """Return `max` or `min`, whichever is better for the metric."""
    return "min" if monitor == "loss" else task.monitors[monitor]


def monitor_problems(task: Task, monitor: str, has_validation: bool, patience: int | None) -> Iterator[Problem]:
    """Find a metric to monitor that is never logged, or patience that has nothing to wait for."""
    names = ["loss", *task.monitors]
    if monitor not in names:
        yield Problem("monitor", f"no metric is named {monitor!r}.", nearest(monitor, names))
    if patience is not None and not has_validation:
        yield Problem("patience", "there is no validation split to watch.", "Give data.source.validation.")


def callback_problems(callbacks: Iterable[object]) -> Iterator[Problem]:
    """Find callbacks that would work against how a step's loss is weighed."""
    if any(type(callback).__name__ == "GradientAccumulationScheduler" for callback in callbacks):
        yield Problem(
            "trainer.callbacks",
            "GradientAccumulationScheduler changes how many batches make a step, which the data must know beforehand.",
            "Set trainer.accumulate_grad_batches instead.",
        )


def disk_problems(folder: Path, trainable: int, total: int) -> Iterator[Problem]:
    """Find a disk that is too small for the checkpoints: the best, the last, and one that is being written.

    Args:
        folder: An existing folder on the disk.
        trainable: Number of trainable parameters; AdamW keeps two more numbers of each.
        total: Number of all parameters.
    """
    needed = 3 * BYTES_FLOAT32 * (total + 2 * trainable)
    free = shutil.disk_usage(folder).free
    if free < needed:
        yield Problem(
            "output_dir",
            f"the disk of {folder} has {free / 1e9:.1f} GB free, the checkpoints need about {needed / 1e9:.1f} GB.",
            "Free some space, or give another folder: --output_dir <folder>.",
        )
