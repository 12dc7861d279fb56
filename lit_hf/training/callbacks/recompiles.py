"""Compilation that is worth its time: evaluation does without it, and what compiles again and again is told."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch._dynamo.callback import CallbackArgs, CallbackTrigger, callback_handler

log = logging.getLogger("lit_hf")


class WarnOnRecompiles(Callback):
    """Warns with the count when training compiles again what was compiled before.

    The first epoch's first batches may compile a second time, for a batch with a mask or of one row; from then on each
    doubling of the count is told. Evaluation runs uncompiled: it would compile everything once more, without gradients.

    Args:
        free: Recompilations that are not worth a word.

    Attributes:
        recompiles: Recompilations so far, of all compiled code of the process while training.
    """

    def __init__(self, free: int = 2) -> None:
        self.recompiles = 0
        self._told = free

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        callback_handler.register_start_callback(self._count)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Warn if there are twice as many recompilations as were told, or more than are free."""
        if self.recompiles > self._told:
            self._told = 2 * self.recompiles - 1
            _warn(
                f"torch.compile has compiled {self.recompiles} times again by step {trainer.global_step}, which takes "
                "more time than it saves if it goes on. TORCH_LOGS=recompiles tells why; data.pad_to_multiple_of makes "
                "fewer shapes, model.compile: false compiles nothing."
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile nothing in evaluation."""
        torch.compiler.set_stance("force_eager")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with compiled layers."""
        torch.compiler.set_stance("default")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stop to count, also after an error."""
        torch.compiler.set_stance("default")
        if self._count in callback_handler.start_callbacks:
            callback_handler.remove_start_callback(self._count)

    def _count(self, compilation: CallbackArgs) -> None:
        """Count a compilation of code that has been compiled before: `3/1` is the second one of the third frame."""
        is_again = not compilation.compile_id.endswith("/0")
        self.recompiles += compilation.callback_trigger is CallbackTrigger.DYNAMO and is_again


@rank_zero_only
def _warn(message: str) -> None:
    log.warning(message)
