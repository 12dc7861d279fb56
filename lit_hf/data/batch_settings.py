"""How rows make batches: so many rows or so many tokens, in which order, and what is wrong with what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from datasets import Dataset

from lit_hf.data.batching import padded_lengths, row_lengths
from lit_hf.data.order import Arrangement, BatchOrder
from lit_hf.data.packing import packing_problems
from lit_hf.errors import Problem
from lit_hf.randomness import seed_from
from lit_hf.task import Task

Shard = tuple[int, int]
"""A rank, and the number of ranks."""


@dataclass(frozen=True)
class BatchSettings:
    """How rows make batches; the data module says what each setting does.

    Attributes:
        size: Rows of a training batch, where that is not made of tokens.
        eval_size: Rows of an evaluation batch; None is as many as fit in `tokens`, or else twice `size`.
        tokens: Tokens of a batch; None where it is made of rows.
        packing: Whether training rows are laid side by side in one.
        group_by_length: Whether training batches have rows of like length.
        multiple: Of how many tokens a row's padded length is a multiple; None is one.
        seed: Determines the order.
    """

    size: int
    eval_size: int | None
    tokens: int | None
    packing: bool
    group_by_length: bool
    multiple: int | None
    seed: int

    def problems(self, task: Task) -> Iterator[Problem]:
        """Find settings that do not go together, or not with the task."""
        if self.tokens is not None and not self.group_by_length and not self.packing:
            what = "false does not go with data.batch_tokens, whose batches are of like length."
            yield Problem("data.group_by_length", what, "Leave one of the two out.")
        if self.packing:
            yield from packing_problems(task, self.group_by_length, self.multiple)

    def row_problems(self, encoded: Dataset) -> Iterator[Problem]:
        """Find training rows that no batch has room for."""
        if self.tokens is None:
            return
        longest = int(self._lengths(encoded, in_tokens=True, packed=self.packing).max(initial=0))
        if longest > self.tokens:
            what = f"the longest training row takes {longest:,} tokens, a batch has {self.tokens:,}."
            yield Problem("data.batch_tokens", what, f"Give {longest} or more, or lower data.max_length.")

    def training_tokens(self, encoded: Dataset) -> int | None:
        """Return the tokens of a batch of training rows; None where it is made of rows."""
        if self.tokens is None and self.packing:
            return self.size * int(row_lengths(encoded).max())
        return self.tokens

    def training_order(self, encoded: Dataset, shard: Shard, window: int = 0, repeats: bool = False) -> BatchOrder:
        """Return the order of batches of training rows.

        Args:
            encoded: The rows, or those of a window of a stream.
            shard: The rank that the order is for.
            window: The window's number.
            repeats: Whether every epoch has the same batches, unpacked, in the same order.
        """
        arrangement: Arrangement = "grouped" if self.group_by_length else "shuffled"
        if repeats:
            arrangement = "sorted"
        elif self.packing:
            arrangement = "packed"
        seed = seed_from("window", self.seed, window) if window else self.seed
        return self._order(encoded, self.size, self.training_tokens(encoded), arrangement, seed, shard)

    def evaluation_order(self, encoded: Dataset, shard: Shard) -> BatchOrder:
        """Return the order of batches of validation or test rows."""
        size, tokens = (2 * self.size, self.tokens) if self.eval_size is None else (self.eval_size, None)
        return self._order(encoded, size, tokens, "sorted", self.seed, shard)

    def computing_order(self, encoded: Dataset) -> BatchOrder:
        """Return an order in which one process computes something of all rows.

        Its batches are as large as training's, which there is memory for; evaluation's may be larger.
        """
        return self._order(encoded, self.size, self.training_tokens(encoded), "sorted", self.seed, (0, 1))

    def _order(
        self, encoded: Dataset, size: int, tokens: int | None, arrangement: Arrangement, seed: int, shard: Shard
    ) -> BatchOrder:
        lengths = self._lengths(encoded, in_tokens=tokens is not None, packed=arrangement == "packed")
        return BatchOrder(lengths, size, arrangement, seed, *shard, tokens)

    def _lengths(self, encoded: Dataset, in_tokens: bool, packed: bool) -> np.ndarray:
        """Return the lengths by which encoded rows are grouped, or what each takes of a number of tokens."""
        if packed or not in_tokens:
            return row_lengths(encoded)
        step = self.multiple or 1
        return -(-padded_lengths(encoded) // step) * step
