"""The metrics of retrieval: how far up, among all passages, does each query find its own?"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

CHUNK = 1024
"""Queries that are compared with all passages at once."""


class Retrieval(Metric):
    """Recall at some cut-offs and the mean reciprocal rank, over the passages of all batches and ranks.

    Each query has one passage that is right. Passages with the same score as that one do not push it down, so that a
    passage which is there twice harms nobody.

    Args:
        cutoffs: The ranks of `recall@1`, `recall@5` and so on.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    queries: list[Tensor]
    passages: list[Tensor]
    dimensions: Tensor

    def __init__(self, cutoffs: tuple[int, ...] = (1, 5, 10)) -> None:
        super().__init__()
        self.cutoffs = cutoffs
        # flat, since a rank without rows can only be gathered with others where all states have one dimension
        self.add_state("queries", [], dist_reduce_fx="cat")
        self.add_state("passages", [], dist_reduce_fx="cat")
        self.add_state("dimensions", torch.tensor(0), dist_reduce_fx="max")

    def update(self, queries: Tensor, passages: Tensor) -> None:
        """Add queries and their passages, both [rows, dimensions]; the score of a pair is their dot product."""
        self.queries.append(queries.detach().float().flatten())
        self.passages.append(passages.detach().float().flatten())
        self.dimensions = torch.tensor(queries.shape[1], device=self.dimensions.device)

    def compute(self) -> dict[str, Tensor]:
        """Return `recall@k` for each cut-off, and `mrr`."""
        ranks = self.ranks().float()
        recalls = {f"recall@{cutoff}": (ranks <= cutoff).float().mean() for cutoff in self.cutoffs}
        return {**recalls, "mrr": (1 / ranks).mean()}

    def ranks(self) -> Tensor:
        """Return the rank of each query's own passage, from 1, shape [rows]."""
        shape = (-1, int(self.dimensions))
        queries, passages = (dim_zero_cat(state).reshape(shape) for state in (self.queries, self.passages))
        ranks = []
        for start in range(0, len(queries), CHUNK):
            scores = queries[start : start + CHUNK] @ passages.T
            own = scores.diagonal(start).unsqueeze(1)
            # The same passage scores a little differently elsewhere in the matrix: sums are rounded in another order.
            ranks.append((scores > own + 1e-6 * own.abs().clamp(min=1)).sum(1) + 1)
        return torch.cat(ranks)
