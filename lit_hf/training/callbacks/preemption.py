"""Several ranks that are told to end do so before the same batch."""

from __future__ import annotations

import signal
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_hf.training.agreement import Ranks


class EndTogether(Callback):
    """Ends all ranks before the next batch once one of them got SIGTERM.

    Lightning's own handler speaks to the other ranks from within the signal, wherever each of them is: in the middle of
    another exchange, for which they then wait for ever. A single process is left to Lightning.
    """

    def __init__(self) -> None:
        self._ranks = Ranks()
        self._is_told = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take SIGTERM over from Lightning, which gives it back when it is done."""
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Find out whether a rank was told to end.

        Raises:
            SIGTERMException: On all ranks, if one was.
        """
        if trainer.world_size > 1 and self._ranks.any(self._is_told)[0]:
            raise SIGTERMException

    def _note(self, *_: object) -> None:
        self._is_told = True
