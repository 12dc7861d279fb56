"""How many of the next tokens a causal language model gets right."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class TokenAccuracy(Metric):
    """The share of trained tokens that the model would have chosen."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    targets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("targets", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, right: int | Tensor, targets: int | Tensor) -> None:
        """Add a batch: how many of how many trained tokens the model would have chosen."""
        self.right += right
        self.targets += targets

    def compute(self) -> Tensor:
        """Return the share; NaN where nothing was trained."""
        return self.right / self.targets
