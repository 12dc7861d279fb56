"""How many of the next tokens a causal language model gets right."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

IGNORED = -100


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

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Shape [rows, tokens, vocabulary]; each token is predicted one place before.
            labels: Shape [rows, tokens], -100 where nothing is trained.
        """
        targets = labels[:, 1:]
        chosen = logits.detach()[:, :-1].argmax(-1)
        self.right += (chosen == targets).sum()
        self.targets += (targets != IGNORED).sum()

    def compute(self) -> Tensor:
        """Return the share; NaN where nothing was trained."""
        return self.right / self.targets
