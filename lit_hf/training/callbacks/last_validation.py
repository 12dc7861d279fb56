"""A run that ends by its number of steps is validated at its last step, not only at the end of an epoch."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ValidateAtLastStep(Callback):
    """Asks for the stop that `max_steps` would make anyway: Lightning validates before a stop that is asked for.

    Without it a run of ten steps would end without a metric, a checkpoint and an export.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for a stop once the last step is done."""
        if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True
