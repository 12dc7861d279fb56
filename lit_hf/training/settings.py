"""What the trainer's settings come to where they leave something open."""

from __future__ import annotations

from typing import Any

import torch


def epochs(max_epochs: int | None, max_steps: int) -> int | None:
    """Return how many epochs a run has at most, by the trainer's limits: 3 where these name none, not even steps."""
    return 3 if max_epochs is None and max_steps == -1 else max_epochs


def device_type(accelerator: Any) -> str:
    """Return the type of device that an accelerator of Lightning's, by name or as an object, trains on."""
    name = accelerator if isinstance(accelerator, str) else type(accelerator).__name__.removesuffix("Accelerator")
    if name.lower() in ("auto", "gpu"):
        found = torch.accelerator.current_accelerator(check_available=True)
        return found.type if found is not None else "cpu" if name.lower() == "auto" else "cuda"
    return name.lower()
