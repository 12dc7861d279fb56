"""Metrics of rewards: does the preferred text of a pair get the higher one, and by how much?"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class PairRewards(Metric):
    """Sums rewards over all pairs of all batches and ranks; `compute` returns several named means."""

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    sums: Tensor
    pairs: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pairs", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, rewards: Tensor) -> None:
        """Add the rewards of chosen and rejected texts, of shape [pairs, 2]."""
        chosen, rejected = rewards.detach().double().unbind(-1)
        self.sums += torch.stack([(chosen > rejected).double().sum(), chosen.sum(), rejected.sum()])
        self.pairs += len(rewards)

    def compute(self) -> dict[str, Tensor]:
        """Return the share of pairs ranked right, the mean margin, and the mean reward of each side."""
        accuracy, chosen, rejected = (self.sums / self.pairs).float()
        return {
            "accuracy": accuracy,
            "margin": chosen - rejected,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        }
