"""A module of one linear layer and batches of known sizes, to try callbacks on a real trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lit_hf.task import Sizes

SIZES = (Sizes(4, 10, 16, 4, 4), Sizes(4, 14, 20, 4, 4), Sizes(2, 6, 6, 2, 2))
"""The sizes of the batches of an epoch, over and over."""


class Batches:
    """A loader of a given number of batches, each with its sizes; without a number, an endless one of no length."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(self.number):
            yield batch(index)


class Stream(torch.utils.data.IterableDataset):
    """Batches without an end and without a length."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        index = 0
        while True:
            yield batch(index)
            index += 1


def batch(index: int) -> dict[str, Any]:
    sizes = SIZES[index % len(SIZES)]
    inputs = torch.randn(sizes.rows, 4, generator=torch.Generator().manual_seed(index))
    return {"inputs": inputs, "targets": inputs.sum(1, keepdim=True), "sizes": sizes}


class TinyModule(LightningModule):
    """Learns the sum of four numbers.

    Args:
        spoil: Is given the number of the batch (from 0) and its loss, and returns the loss to train on.
        val_losses: What the validations log, one after the other; the true loss without it.
    """

    def __init__(
        self,
        spoil: Callable[[int, Tensor], Tensor] = lambda _, loss: loss,
        val_losses: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.frozen = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        self.spoil = spoil
        self.val_losses = list(val_losses)
        self.seen = 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        loss = self.spoil(self.seen, self._loss(batch))
        self.seen += 1
        self.log("train/loss", loss.detach(), batch_size=batch["sizes"].rows)
        return {"loss": loss, "mean_loss": loss.detach()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if not self.val_losses:
            self.log("val/loss", self._loss(batch), batch_size=batch["sizes"].rows)

    def on_validation_epoch_end(self) -> None:
        if self.val_losses and not self.trainer.sanity_checking:
            loss = self.val_losses.pop(0)
            self.log_dict({"val/loss": loss, "val/accuracy": 1 - loss / 2})

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch), batch_size=batch["sizes"].rows)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self.layer(batch["inputs"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        return torch.nn.functional.mse_loss(self.layer(batch["inputs"]), batch["targets"])


def tiny_trainer(folder: Path, **settings: Any) -> Trainer:
    """Return a quiet trainer on the CPU that writes nothing by itself."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "logger": False,
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**defaults | settings)


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
