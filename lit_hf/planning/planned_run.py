"""The run that is planned: what its config makes, before anything of it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_hf.data.datamodule import LitDataModule
from lit_hf.task import Task
from lit_hf.training.module import LitModule


@dataclass(frozen=True)
class TrainerSettings:
    """The trainer's settings that a plan depends on, by Lightning's names and with its defaults."""

    accelerator: Any = "auto"
    devices: Any = "auto"
    num_nodes: int = 1
    strategy: Any = "auto"
    precision: Any = None
    accumulate_grad_batches: int = 1
    max_epochs: int | None = None
    max_steps: int = -1
    limit_train_batches: int | float | None = None


@dataclass(frozen=True)
class PlannedRun:
    """A run that nothing was loaded of yet.

    Attributes:
        module: Its model, adapter and optimizer; not built.
        data: Its rows; not read.
        trainer: How the trainer is set.
    """

    module: LitModule
    data: LitDataModule
    trainer: TrainerSettings

    @property
    def task(self) -> Task:
        """What is to be learnt."""
        return self.module.task
