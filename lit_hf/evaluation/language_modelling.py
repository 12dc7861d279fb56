"""The metrics of language models, from the loss of each batch: summed over batches and ranks, computed once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_hf.evaluation.metrics import MeanLoss


class Perplexity(MeanLoss):
    """The exponential of the mean negative log-likelihood of the predicted tokens."""

    def compute(self) -> Tensor:
        """Return the perplexity; NaN where nothing was predicted."""
        return super().compute().exp()


class BitsPerByte(Metric):
    """The negative log-likelihood in bits over the UTF-8 bytes of the predicted text.

    Unlike perplexity it compares models with different tokenizers. The end of a document is predicted too: its bits
    count, and it has no bytes.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    text_bytes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("text_bytes", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, targets: int | Tensor, text_bytes: Tensor) -> None:
        """Add a batch: its loss in nats, a mean over that many predicted tokens, which are that many bytes of text."""
        self.total += loss.double() * targets
        self.text_bytes += text_bytes

    def compute(self) -> Tensor:
        """Return the bits per byte."""
        return (self.total / math.log(2) / self.text_bytes).float()
