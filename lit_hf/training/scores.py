"""What an evaluation counts: the loss and the task's metrics, over the batches of a split."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchmetrics import MetricCollection

from lit_hf.errors import InputError, Problem
from lit_hf.evaluation.metrics import MeanLoss
from lit_hf.task import Batch, Sizes, Task

NO_LOSS = Problem("task", "the model returned no loss: its batches have no labels.", "Check the task's columns.")


class Scores(nn.Module):
    """The mean loss over a split's targets, and the metrics of the task."""

    def __init__(self, metrics: MetricCollection) -> None:
        super().__init__()
        self.loss = MeanLoss()
        self.metrics = metrics

    def add(self, task: Task, model: Any, inputs: Batch, sizes: Sizes) -> None:
        """Run a batch and count it; a filler, which has no rows, is run only.

        Raises:
            InputError: If there is no loss.
        """
        if sizes.rows == 0:  # keeps the ranks in step where a forward pass communicates; its result is dropped
            task.evaluate(model, inputs, task.metrics().to(self.loss.device))
            return
        loss: torch.Tensor | None = task.evaluate(model, inputs, self.metrics)
        if loss is None:
            raise InputError(NO_LOSS)
        self.loss.update(loss.detach(), sizes.targets)

    def compute(self) -> dict[str, torch.Tensor]:
        """Return the values of all batches and ranks, by name."""
        return {"loss": self.loss.compute(), **self.metrics.compute()}

    def reset(self) -> None:
        """Forget all batches."""
        self.loss.reset()
        self.metrics.reset()
