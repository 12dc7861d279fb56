"""Which parameters decay, and how the learning rate goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from lit_hf.errors import InputError, Problem

NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Names of parameters that do not decay, as in the Hugging Face Trainer; those of any LayerNorm neither."""


@dataclass
class Schedule:
    """How the learning rate goes over the optimizer's steps.

    Args:
        name: `linear` and `cosine` fall to zero at the last step, `warmup_stable_decay` only in the end.
        warmup: Steps of linear warm-up; below 1 a share of all steps.
        decay: For `warmup_stable_decay`: the steps of the fall at the end; below 1 a share of all steps.
    """

    name: Literal["linear", "cosine", "constant", "warmup_stable_decay"] = "linear"
    warmup: float = 0.1
    decay: float = 0.2

    def problems(self) -> list[Problem]:
        """Find settings that make no schedule."""
        wrong = [key for key in ("warmup", "decay") if getattr(self, key) < 0]
        return [
            Problem(f"model.schedule.{key}", f"{getattr(self, key)} is negative.", "Give 0 or more.") for key in wrong
        ]

    def build(self, optimizer: Optimizer, total_steps: float) -> LRScheduler:
        """Return the scheduler; step it once an optimizer step.

        Args:
            optimizer: Its learning rates are the highest ones of the schedule.
            total_steps: Optimizer steps of the whole training; infinite if there is no end.

        Raises:
            InputError: If the schedule needs an end and there is none.
        """
        if total_steps < 0:  # what Lightning answers for a loader without a length
            total_steps = math.inf
        needs_end = self.name != "constant" or 0 < self.warmup < 1
        if math.isinf(total_steps) and needs_end:
            raise InputError(
                Problem(
                    "model.schedule",
                    "the schedule needs to know the last step, and the training has no end.",
                    "Set trainer.max_steps or trainer.max_epochs, or the schedule to constant with a warmup in steps.",
                )
            )
        warmup = _steps(self.warmup, total_steps)
        if self.name == "constant":
            return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=warmup)
        extra: dict[str, Any] = {}
        if self.name == "warmup_stable_decay":
            extra = {"num_decay_steps": _steps(self.decay, total_steps)}
        return get_scheduler(
            self.name,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=int(total_steps),
            scheduler_specific_kwargs=extra,
        )


def _steps(amount: float, total_steps: float) -> int:
    """Return a number of steps that is given as such or, below 1, as a share of all."""
    return math.ceil(amount * total_steps) if 0 < amount < 1 else int(amount)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups: with the optimizer's weight decay, and without (biases, norms)."""
    decaying = set(get_parameter_names(model, [nn.LayerNorm], NO_DECAY))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for name, parameter in named if name in decaying]},
        {"params": [parameter for name, parameter in named if name not in decaying], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
