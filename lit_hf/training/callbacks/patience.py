"""Early stopping whose patience is the config's, also in a run that resumes."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_only

_log = logging.getLogger("lit_hf")


class StopOnPatience(EarlyStopping):
    """Stops as Lightning's own does, and says so; a value that is not finite is no better one, and no end by itself.

    A run that resumes keeps its count of validations, not its earlier patience. One that was killed between its last
    checkpoint and its end does not train on.

    Args:
        monitor: The logged metric.
        patience: Validations in a row that may bring none better.
        mode: `max` or `min`, whichever is better.
    """

    def __init__(self, monitor: str, patience: int, mode: str) -> None:
        # not at the end of an epoch, which a resumed run may come to without a validation
        super().__init__(monitor, patience=patience, mode=mode, check_finite=False, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the best score and the count."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop a run that had come to its end; its state is back by now."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count a validation, and tell of the end."""
        before = self.wait_count
        super().on_validation_end(trainer, pl_module)
        if before < self.wait_count >= self.patience:
            self._tell()

    @rank_zero_only
    def _tell(self) -> None:
        name = self.monitor.removeprefix("val/")
        _log.info("patience: %s was not better than %.4g in %s validations", name, self.best_score, self.wait_count)
