"""Adapters that move ranks between layers while they train: AdaLoRA, and AdaMSS with `use_asa`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftConfig

from lit_hf.errors import Problem, raise_problems

STATE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What AdaLoRA knows of the importance of each weight, by the names that PEFT gives it."""


def moves_ranks(adapter: PeftConfig | None) -> bool:
    """Say whether the adapter asks for a call after each optimizer step."""
    return hasattr(adapter, "total_step") or bool(getattr(adapter, "use_asa", False))


def schedule_problems(adapter: Any, steps: float) -> Iterator[Problem]:
    """Find a schedule without room for ranks to move between its beginning and its end.

    Args:
        adapter: AdaLoRA's config.
        steps: Optimizer steps of the whole training; infinite, or negative, if there is no end.
    """
    if steps < 0 or math.isinf(steps):
        what = "ranks move until a last step that the schedule counts back from, and the training has no end."
        yield Problem("model.adapter", what, "Set trainer.max_steps or trainer.max_epochs.")
    elif steps - adapter.tfinal <= adapter.tinit:
        what = (
            f"{adapter.tinit} steps before ranks move and {adapter.tfinal} after leave none of the run's {steps:.0f}."
        )
        yield Problem("model.adapter.init_args.tinit", what, "Give less (also of tfinal), or train longer.")


class RankBudget(Callback):
    """Tells the adapter how many steps there are, and lets it share out its ranks after each of them.

    Args:
        adapter: The adapter's config.
    """

    def __init__(self, adapter: PeftConfig) -> None:
        self.adapter = adapter
        self.step = 0
        self.importance: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the schedule against the run's steps: the data is there by now, and no weights are.

        Raises:
            InputError: If the schedule has no room between its beginning and its end.
        """
        if stage == "fit" and hasattr(self.adapter, "total_step"):
            raise_problems(schedule_problems(self.adapter, trainer.estimated_stepping_batches))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the end of the adapter's schedule, and go on from a checkpoint's importances."""
        tuner = _tuner(pl_module)
        config = tuner.peft_config["default"]
        self.step = trainer.global_step
        if not hasattr(config, "total_step"):
            return
        config.total_step = int(trainer.estimated_stepping_batches)
        for name, values in self.importance.items():
            setattr(tuner.rankallocator, name, {key: value.to(pl_module.device) for key, value in values.items()})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the adapter share out its ranks, if the batch ended an optimizer step; its gradients are still there."""
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            tuner = _tuner(pl_module)
            allocator = getattr(tuner, "rankallocator", None)
            if allocator is None:
                tuner.update_and_allocate(self.step)
            else:
                self._allocate(tuner, allocator)

    def _allocate(self, tuner: Any, allocator: Any) -> None:
        """Have PEFT share out AdaLoRA's ranks: it weighs them up to the last move, and forgets the weights in it."""
        step, last = self.step, allocator.peft_config.total_step - allocator.peft_config.tfinal
        if step > last and allocator.ipt:
            step = last  # overdue: the run was made shorter as it was resumed
        if step == last and not allocator.ipt:
            allocator.update_ipt(tuner.model)  # there were no steps before it
        tuner.update_and_allocate(step)
        self.importance = {name: getattr(allocator, name) for name in STATE}

    def state_dict(self) -> dict[str, Any]:
        """Return the importances of all weights so far."""
        return {"importance": self.importance}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back; the model has them once the fit starts."""
        self.importance = state_dict["importance"]


def _tuner(module: Any) -> Any:
    """Return PEFT's model of the adapter, inside of the one that is trained."""
    return module.model.base_model
