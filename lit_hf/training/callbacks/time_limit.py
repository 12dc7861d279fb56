"""A limit of time that ends a run between its optimizer steps, where it can go on exactly with more time."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer


class StopOnTime(Timer):
    """Stops as Lightning's own does, but lets the batches of an optimizer step come to its end."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Look at the time, if the batch ended an optimizer step."""
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            super().on_train_batch_end(trainer, pl_module, *args, **kwargs)
