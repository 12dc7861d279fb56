"""Adapters that move ranks between layers while they train: AdaLoRA, and AdaMSS with `use_asa`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftConfig

from lit_hf.errors import InputError, Problem

STATE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What AdaLoRA knows of the importance of each weight, by the names that PEFT gives it."""


def moves_ranks(adapter: PeftConfig | None) -> bool:
    """Say whether the adapter asks for a call after each optimizer step."""
    return hasattr(adapter, "total_step") or bool(getattr(adapter, "use_asa", False))


class RankBudget(Callback):
    """Tells the adapter how many steps there are, and lets it share out its ranks after each of them."""

    def __init__(self) -> None:
        self.step = 0
        self.importance: dict[str, Any] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the end of the adapter's schedule, and go on from a checkpoint's importances.

        Raises:
            InputError: If the schedule has no room between its beginning and its end.
        """
        tuner = _tuner(pl_module)
        config = tuner.peft_config["default"]
        self.step = trainer.global_step
        if not hasattr(config, "total_step"):
            return
        steps = trainer.estimated_stepping_batches
        if steps == float("inf") or config.tinit >= steps - config.tfinal:
            what = f"{config.tinit} steps before ranks move and {config.tfinal} after leave none of the run's {steps}."
            raise InputError(Problem("model.adapter.init_args.tinit", what, "Give less, or train longer."))
        config.total_step = int(steps)
        for name, values in self.importance.items():
            setattr(tuner.rankallocator, name, {key: value.to(pl_module.device) for key, value in values.items()})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the adapter share out its ranks, if the batch ended an optimizer step; its gradients are still there."""
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            tuner = _tuner(pl_module)
            tuner.update_and_allocate(self.step)
            if allocator := getattr(tuner, "rankallocator", None):
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
