"""What a run is at, so that a failure can say which batch it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class InHand(NamedTuple):
    """A batch, or what was done when there was none.

    Attributes:
        doing: What was done, in words.
        shapes: Of the batch's tensors, by name; the batch itself is not kept.
    """

    doing: str
    shapes: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        """Return it as a few words: `training batch 3 of epoch 1 (input_ids 8 x 64, labels 8)`."""
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape)) or 'scalar'}" for name, shape in self.shapes.items())
        return f"{self.doing} ({shapes})" if shapes else self.doing


class BatchInHand(Callback):
    """Knows the batch that is being worked on.

    Attributes:
        now: It, or what is done between batches.
        evaluates: Whether it is a batch of an evaluation.
    """

    def __init__(self) -> None:
        self.now = InHand("loading the model", {})
        self.evaluates = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch is being made."""
        self._note("making the first batch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note a training batch."""
        epoch, step = trainer.current_epoch + 1, trainer.global_step + 1
        self._note(f"training batch {batch_idx + 1} of epoch {epoch}, step {step}", batch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The next batch is being made."""
        self._note(f"making the batch after training batch {batch_idx + 1} of epoch {trainer.current_epoch + 1}")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note a batch of validation."""
        self._note(f"validation batch {batch_idx + 1}", batch, evaluates=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The next batch is being made, or a checkpoint."""
        self._note("going on after the validation")

    def _note(self, doing: str, batch: Any = None, *, evaluates: bool = False) -> None:
        tensors = batch.items() if isinstance(batch, Mapping) else ()
        self.now = InHand(doing, {name: tuple(value.shape) for name, value in tensors if isinstance(value, Tensor)})
        self.evaluates = evaluates
