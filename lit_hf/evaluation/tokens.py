"""The metrics of language models, over the tokens that are trained: summed over batches and ranks, computed once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric, MetricCollection

IGNORED = -100


class Perplexity(Metric):
    """The exponential of the mean negative log-likelihood; update with logits [tokens, vocabulary], targets [tokens].

    torchmetrics' own needs the probabilities of the whole vocabulary in memory once more.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add tokens."""
        self.total += functional.cross_entropy(logits.float(), targets, reduction="sum").double()
        self.tokens += targets.numel()

    def compute(self) -> Tensor:
        """Return the perplexity; NaN where there was no token."""
        return (self.total / self.tokens).exp().float()


class TokenAccuracy(Metric):
    """The share of tokens whose logit is the highest; update with logits [tokens, vocabulary], targets [tokens]."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("tokens", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Add tokens."""
        self.right += (logits.argmax(-1) == targets).sum()
        self.tokens += targets.numel()

    def compute(self) -> Tensor:
        """Return the share; NaN where there was no token."""
        return self.right / self.tokens


def token_metrics() -> MetricCollection:
    """Return `perplexity` and `token_accuracy`; update with what `next_tokens` returns."""
    return MetricCollection({"perplexity": Perplexity(), "token_accuracy": TokenAccuracy()})


def next_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits and targets of a causal language model's trained tokens: each is predicted one place before.

    Args:
        logits: Shape [rows, tokens, vocabulary].
        labels: Shape [rows, tokens], -100 where nothing is trained.

    Returns:
        Logits [trained tokens, vocabulary] and targets [trained tokens].
    """
    targets = labels[:, 1:]
    trained = targets != IGNORED
    return logits.detach()[:, :-1][trained], targets[trained]
