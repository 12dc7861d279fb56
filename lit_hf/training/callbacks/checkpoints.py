"""When a run's checkpoints are saved, and which of them are kept: the newest and the best."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lit_hf.checkpoints import STATE, Best, Manifest, folder_name, found, partial_folder, publish
from lit_hf.errors import Problem, TrainingError
from lit_hf.run import RunFolder
from lit_hf.training.agreement import Ranks
from lit_hf.training.saving import Writer

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that a checkpoint between validations waits for the one before: small ones, at each step, are all kept."""


class RunCheckpoints(Checkpoint):
    """Saves after each validation, at the end of an epoch that has none, and every so many optimizer steps.

    Where a run ends within an epoch, by its steps or its time, it saves there, as one that goes on with more of them is
    still in that epoch.

    Never between the batches of one optimizer step, and not right before a validation, which saves anyway: a run that
    is killed in it does it again. The training waits while the state is copied. Where the checkpoint before is not
    written by then, one that is due by its step is left out; that of a validation or an epoch's end waits for it.

    Args:
        run: Where to.
        writer: Writes and publishes, after the state.
        monitor: The logged metric that tells the best; None keeps the newest as the best.
        mode: `max` or `min`, whichever is better.
        every: Optimizer steps between two checkpoints; None saves at validations only.
        versions: Of the packages, for the manifest.

    Attributes:
        best: The best checkpoint so far; None before the first.
    """

    def __init__(
        self,
        run: RunFolder,
        writer: Writer,
        monitor: str | None,
        mode: str,
        every: int | None = None,
        versions: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        self.monitor = monitor
        self.mode = mode
        self.every = every
        self.best: Best | None = None
        self._writer = writer
        self._versions = dict(versions or {})
        self._saved_at = -1
        self._ranks = Ranks()
        self._is_writing = False  # on some rank; all know it alike
        self._asked_at = -1
        self._is_told = False  # that writing is too slow

    def state_dict(self) -> dict[str, Any]:
        """Return what was best so far."""
        return {"best": None if self.best is None else list(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what was best so far."""
        self.best = None if state_dict["best"] is None else Best(*state_dict["best"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that what the run resumes from need not be saved again."""
        self._saved_at = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Raise what went wrong with the checkpoint that is being written, before the next optimizer step begins.

        The ranks ask each other only while one is being written, once a step.
        """
        if self._is_writing and trainer.global_step != self._asked_at:
            self._asked_at = trainer.global_step
            self._ask()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if enough optimizer steps are done, or if no more are to be done in the middle of an epoch."""
        if trainer.global_step == self._saved_at or not self._is_step_within_epoch(trainer):
            return
        if _stops(trainer):
            self._save(trainer)
        elif self.every is not None and trainer.global_step % self.every == 0:
            self._save_unless_busy(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, and find out whether it is the best."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer, validated=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after an epoch that nothing was saved at the end of."""
        if trainer.global_step != self._saved_at:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last checkpoint."""
        self._wait()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let what is being written come to its end."""
        self._writer.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """End the thread that writes."""
        self._writer.close()

    def _is_step_within_epoch(self, trainer: Trainer) -> bool:
        """Say whether a batch ends a step that neither a validation nor the epoch's end follows, which save."""
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        validates = self.monitor is not None and loop._should_check_val_fx(fetcher)
        return not (trainer.is_last_batch or loop._should_accumulate() or validates)

    def _save_unless_busy(self, trainer: Trainer) -> None:
        if self._is_writing:
            self._writer.wait(PATIENCE)
            self._ask()
        if not self._is_writing:
            self._save(trainer)
        elif not self._is_told and trainer.is_global_zero:
            self._is_told = True
            log.warning(
                "writing a checkpoint takes longer than the %s steps until the next one: checkpoints are left out, "
                "not waited for; a larger checkpoint_every would do",
                self.every,
            )

    def _save(self, trainer: Trainer, *, validated: bool = False) -> None:
        self._saved_at = trainer.global_step
        folder = self.run.checkpoints / folder_name(trainer.global_step)
        # metrics of an earlier validation are still there
        score = trainer.callback_metrics.get(self.monitor) if validated and self.monitor else None
        self.best = self._best_with(folder.name, None if score is None else float(score))
        epoch = trainer.current_epoch + 1
        manifest = Manifest(trainer.global_step, epoch, trainer.world_size, self.best, self._versions)
        self._wait()
        if trainer.is_global_zero:
            shutil.rmtree(partial_folder(folder), ignore_errors=True)
            partial_folder(folder).mkdir(parents=True)
        trainer.strategy.barrier("checkpoint folder")
        self._is_writing = True
        trainer.save_checkpoint(partial_folder(folder) / STATE)
        if trainer.is_global_zero:
            self._writer.submit(lambda: self._publish(folder, manifest))

    def _wait(self) -> None:
        """Wait for the checkpoint that is being written; raise on all ranks what went wrong on the one that writes."""
        self._writer.wait()
        (failed,) = self._ranks.any(self._writer.has_failed)
        self._is_writing = False
        self._raise(failed)

    def _ask(self) -> None:
        """Find out whether a rank still writes, and raise on all what went wrong on one."""
        is_busy = self._writer.is_busy  # asked first: what is not busy any more fails no more
        failed, self._is_writing = self._ranks.any(self._writer.has_failed, is_busy)
        self._raise(failed)

    def _raise(self, failed: bool) -> None:
        if failed:
            self._writer.check()
            raise TrainingError(Problem("checkpoints", "another process could not write the checkpoint."))

    def _publish(self, folder: Path, manifest: Manifest) -> None:
        """Publish a checkpoint, and only then delete those that are neither the newest nor the best."""
        self.run.flush_metrics()
        publish(folder, manifest)
        for other in found(self.run.checkpoints):
            if other.name not in (folder.name, manifest.best.name):
                _remove(other)

    def is_better(self, score: float) -> bool:
        """Say whether a score is better than the best one so far."""
        if self.best is None or self.best.value is None or math.isnan(self.best.value):
            return True
        return score > self.best.value if self.mode == "max" else score < self.best.value

    def _best_with(self, name: str, score: float | None) -> Best:
        """Return the best checkpoint, a new one among them, which without a score is the best until there is one."""
        best = self.best
        if best is None or best.value is None or (score is not None and self.is_better(score)):
            return Best(name, score)
        return best


def _remove(folder: Path) -> None:
    """Remove a checkpoint that is not needed any more; what cannot go now is tried again after the next one."""
    try:
        shutil.rmtree(folder)
    except OSError as error:  # as with a file that is in use, on some file systems
        log.warning("the old checkpoint %s could not be removed: %s.", folder, error)


def _stops(trainer: Trainer) -> bool:
    """Say whether no more steps are to be done; Lightning waits with a stop until the least epochs or steps are."""
    ends = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop and (ends or trainer.fit_loop._can_stop_early)
