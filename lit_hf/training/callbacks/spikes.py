"""A loss that jumps is said aloud: a bad batch, or the beginning of the end of a run."""

from __future__ import annotations

import logging
import math
from collections import deque
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

_log = logging.getLogger("lit_hf")

WINDOW, FEWEST, EVERY = 100, 20, 50
"""Batches that the usual loss is the median over, those that it takes to know it, and those between two looks at it."""


class LossSpikes(Callback):
    """Warns of training losses far above the usual one, and counts them; the training goes on.

    What is compared is the mean over the ranks of a batch's loss. The losses stay on the device and are read together;
    on the CPU after every batch, since it costs nothing there.

    Args:
        factor: A loss is a spike if it is more than that many times the median of the last hundred.
        every_n_batches: How often the device is waited for; by default 50, and 1 on the CPU.

    Attributes:
        count: The spikes so far.
    """

    def __init__(self, factor: float, every_n_batches: int | None = None) -> None:
        self.factor = factor
        self.every_n_batches = every_n_batches
        self.count = 0
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._unread: list[tuple[int, int, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return the count, and the losses that tell the usual one."""
        return {"count": self.count, "window": list(self._window)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.count = state_dict["count"]
        self._window.extend(state_dict["window"])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and read those kept when it is time to."""
        self._unread.append((trainer.global_step, batch_idx + 1, outputs["mean_loss"]))
        every = self.every_n_batches or (1 if pl_module.device.type == "cpu" else EVERY)
        if (batch_idx + 1) % every == 0:
            self._read(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the losses."""
        self._read(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the losses, and have the checkpoint know them: its state was taken before."""
        self._read(trainer)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def _read(self, trainer: Trainer) -> None:
        if not self._unread:
            return
        unread, self._unread = self._unread, []
        losses: Any = trainer.strategy.reduce(torch.stack([loss.float() for *_, loss in unread]), reduce_op="mean")
        for (step, batch, _), loss in zip(unread, losses.tolist(), strict=True):
            self._judge(f"step {step}, epoch {trainer.current_epoch + 1}, batch {batch}", loss, trainer.is_global_zero)

    def _judge(self, place: str, loss: float, tells: bool) -> None:
        usual = median(self._window) if len(self._window) >= FEWEST else math.inf
        if loss > self.factor * usual:
            self.count += 1
            if tells:
                what = f"the training loss jumped to {loss:.4g}, {loss / usual:.1f} times the usual {usual:.4g}"
                _log.warning("%s: %s (loss_spike: %g).", place, what, self.factor)
        if math.isfinite(loss):
            self._window.append(loss)
