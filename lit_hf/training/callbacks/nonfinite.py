"""Training must not go on, and nothing must be saved, once the loss or the weights are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.nn.utils import get_total_norm

from lit_hf.errors import Problem, TrainingError
from lit_hf.training.shards import local

_log = logging.getLogger("lit_hf")

EVERY = 50
"""Batches between two looks at what an accelerator has computed, for which it is waited for."""


class StopOnNonFinite(Callback):
    """Ends the run when a training loss or a trained weight is NaN or infinite, before that is saved.

    The losses stay on the device and are read together: every `every_n_batches`, before each validation, before each
    checkpoint and at the end of each epoch; on the CPU after every batch, since it costs nothing there. The weights
    are looked at before each validation and each checkpoint: one step with a finite loss can still spoil them.

    With `skip`, losses and gradients are looked at before each optimizer step, which the device is waited for, and
    that many steps are left out: none of the weights and none of the optimizer's state change then, on no rank. The
    step still counts, and the learning rate goes on. Gradients that overflow under float16's scaler are the scaler's.

    Lightning calls `on_save_checkpoint` before it opens the file, so that an error raised there leaves the earlier
    file as it was. It does not call it for checkpoints that hold the weights only.

    Args:
        every_n_batches: How often the device is waited for; by default 50, and 1 on the CPU.
        skip: Optimizer steps that may be left out in the whole run.

    Attributes:
        skipped: Those that were.
    """

    def __init__(self, every_n_batches: int | None = None, skip: int = 0) -> None:
        self.every_n_batches = every_n_batches
        self.skip = skip
        self.skipped = 0
        self._losses: list[tuple[int, int, Tensor]] = []
        self._of_step: list[Tensor] = []  # the losses of the batches of the optimizer step to come

    def state_dict(self) -> dict[str, Any]:
        """Return how many steps were left out so far."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.skipped = state_dict["skipped"]

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss, if steps may be left out."""
        if self.skip:
            self._of_step.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Leave the step out if a loss or a gradient of it is not finite, and it may be left out."""
        if not self.skip:
            return
        losses, self._of_step = self._of_step, []
        what = next((f"training loss is {float(loss)}" for loss in losses if not math.isfinite(float(loss))), None)
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        is_scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if what is None and not is_scaled and not _finite(weight.grad for weight in weights if weight.grad is not None):
            what = "gradient is not finite"
        if trainer.strategy.reduce_boolean_decision(what is None, all=True):
            return
        what = what or "training loss of another process is not finite"
        step, epoch = trainer.global_step + 1, trainer.current_epoch + 1
        if self.skipped == self.skip:
            raise self._error(step, epoch, f"{what}, and {self.skip} such steps were skipped before (skip_nonfinite)")
        self.skipped += 1
        for weight in weights:
            weight.grad = None  # optimizers pass over weights without one
        _warn(f"step {step}, epoch {epoch}: the {what}. The step is skipped: {self.skipped} of {self.skip} that may be")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss, and read those kept when it is time to."""
        if self.skip:
            return  # it was judged before the step
        self._losses.append((trainer.global_step, trainer.current_epoch + 1, outputs["mean_loss"]))
        every = self.every_n_batches or (1 if pl_module.device.type == "cpu" else EVERY)
        if (batch_idx + 1) % every == 0:
            self._check_losses(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the losses."""
        self._check_losses(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the losses and look at the weights, so that no result of a broken model counts."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._check(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the losses and look at the weights, so that no broken model is saved."""
        self._check(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn of a validation loss that is not finite, although the training loss and the weights are."""
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.sanity_checking or loss is None or math.isfinite(value := float(loss)):
            return
        _warn(
            f"the validation loss is {value} in epoch {trainer.current_epoch + 1}, step {trainer.global_step}, "
            "although the weights are finite. Look for rows without a target in the validation split, and "
            "for a precision (trainer.precision) that is too low."
        )

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check_losses(trainer)
        finite = _finite(weight.detach() for weight in pl_module.parameters() if weight.requires_grad)
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise self._error(trainer.global_step, trainer.current_epoch + 1, "weights are no longer finite")

    def _check_losses(self, trainer: Trainer) -> None:
        """Raise on every rank where one rank has a loss that is not finite, so that no rank waits for the others."""
        values = torch.stack([loss.float() for *_, loss in self._losses]).tolist() if self._losses else []
        bad = next((index for index, value in enumerate(values) if not math.isfinite(value)), None)
        if trainer.strategy.reduce_boolean_decision(bad is None, all=True):
            self._losses.clear()
        elif bad is None:
            step, epoch = trainer.global_step, trainer.current_epoch + 1
            raise self._error(step, epoch, "training loss of another process is not finite")
        else:
            step, epoch, _ = self._losses[bad]
            raise self._error(step, epoch, f"training loss is {values[bad]}")

    def _error(self, step: int, epoch: int, what: str) -> TrainingError:
        cure = (
            "Try a lower learning rate (model.optimizer.init_args.lr), gradient clipping (trainer.gradient_clip_val), "
            "a wider precision (trainer.precision), and look for broken rows in the data."
        )
        return TrainingError(Problem(f"step {step}, epoch {epoch}", f"the {what}.", cure))


def _finite(tensors: Iterable[Tensor]) -> bool:
    """Say whether all is finite that this rank has of the tensors."""
    here = [part for part in map(local, tensors) if part.numel()]  # of one row, one rank alone has something
    return bool(torch.isfinite(get_total_norm(here, norm_type=math.inf)))


@rank_zero_only
def _warn(message: str) -> None:
    _log.warning(message)
