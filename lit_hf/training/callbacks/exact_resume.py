"""A run that resumes goes on as if it had never stopped."""

from __future__ import annotations

import math
import warnings
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_hf.randomness import reseed


class ExactResume(Callback):
    """Starts the loader at the batch that comes next, and makes each batch's random numbers its own.

    The order of the batches is a pure function of seed and epoch, and the trainer's progress is in the checkpoint: that
    is all the position there is. Dropout and the like draw from generators that are seeded at each batch, so that
    their state need not be kept, and what validation draws changes nothing.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go to the position in the epoch."""
        # said of loaders that keep a state of their own, which ours needs not
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch")
        _validate_between_steps(trainer)
        loops: Any = trainer.fit_loop
        done = loops.epoch_loop.batch_progress.current.ready
        if loops.restarted_on_epoch_end:
            _end_epoch(loops)
            done = 0
        loader: Any = trainer.train_dataloader
        if 0 < done < trainer.num_training_batches:
            loader.start = done
        epoch = loops.epoch_progress.current.processed
        if math.isinf(trainer.num_training_batches) and (done or epoch):
            # Lightning reads a batch ahead of a loader that has no length, and did so before it knew the position
            loader.set_epoch(epoch)
            iter(loops._data_fetcher)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed the generators for the batch."""
        # the step that is logged: Lightning loses one where a run was validated at its end, and now goes on from there
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        reseed(self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)


def _end_epoch(loops: Any) -> None:
    """End the epoch that was saved at its end: with a number of steps Lightning ends it twice, and passes over one."""
    loops.epoch_progress.increment_completed()
    loops.reset_restart_stage()
    loops._restarting = False  # its setter would keep it
    loops.epoch_loop.restarting = False


def _validate_between_steps(trainer: Trainer) -> None:
    """Let a share of an epoch (`val_check_interval: 0.25`) end with an optimizer step, as its checkpoint does."""
    batches, accumulate = trainer.val_check_batch, trainer.accumulate_grad_batches
    if isinstance(batches, int) and batches < trainer.num_training_batches:
        trainer.val_check_batch = max(batches - batches % accumulate, accumulate)
