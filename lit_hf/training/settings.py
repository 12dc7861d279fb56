"""What the trainer's settings come to where they leave something open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer


def epochs(max_epochs: int | None, max_steps: int) -> int | None:
    """Return how many epochs a run has at most, by the trainer's limits: 3 where these name none, not even steps."""
    return 3 if max_epochs is None and max_steps == -1 else max_epochs


LIMITS = {
    "max_epochs": "--trainer.max_epochs",
    "max_steps": "--trainer.max_steps",
    "max_time": "--trainer.max_time",
    "patience": "--patience",
}
"""What ends a training, and the option that sets it."""


def limits(config: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the value of each of `LIMITS` in a resolved config, the time in seconds; None where it is not set."""
    trainer = config["trainer"]
    given = {
        "max_epochs": epochs(trainer["max_epochs"], trainer["max_steps"]),
        "max_steps": trainer["max_steps"],
        "max_time": Timer(trainer["max_time"]).time_remaining(),
        "patience": config["patience"],
    }
    return {name: None if value == -1 else value for name, value in given.items()}


def device_type(accelerator: Any) -> str:
    """Return the type of device that an accelerator of Lightning's, by name or as an object, trains on."""
    name = accelerator if isinstance(accelerator, str) else type(accelerator).__name__.removesuffix("Accelerator")
    if name.lower() in ("auto", "gpu"):
        found = torch.accelerator.current_accelerator(check_available=True)
        return found.type if found is not None else "cpu" if name.lower() == "auto" else "cuda"
    return name.lower()
