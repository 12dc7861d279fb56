"""Batches: which rows make which batch on which rank, and the loader that yields them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from lit_hf.task import Batch, Collator, Sizes

MEGABATCH = 50
"""Batches sorted by length together: enough that their rows are alike, few enough that chance rules the order."""

FILLER = Sizes(rows=0, tokens=0, padded_tokens=0, targets=0, step_targets=0)
"""The sizes of a batch that only keeps a rank in step with the others."""

Arrangement = Literal["grouped", "shuffled", "sorted"]


class BatchOrder:
    """Which rows make which batch: a pure function of the arguments and the epoch.

    All ranks cut the same global batches of `batch_size * world_size` rows, and each takes its share of every one, so
    that every rank has the same number of batches and the ranks together see every row once.

    Args:
        lengths: Tokens of each row; one entry per row.
        batch_size: Rows of a batch on one rank.
        arrangement: `grouped` shuffles but keeps rows of like length together, `shuffled` only shuffles, `sorted` is
            for evaluation: the longest rows first, the same order in every epoch, no row repeated.
        seed: With the epoch, determines the order.
        rank: The rank whose batches are meant.
        world_size: Number of ranks.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        arrangement: Arrangement = "grouped",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.arrangement = arrangement
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.global_batch_size = batch_size * world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.global_batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.global_batches():
            yield self._share(rows).tolist()

    @property
    def ends_with_filler(self) -> bool:
        """Whether this rank's last batch only keeps it in step, because the other ranks took the last rows."""
        left_over = len(self.lengths) % self.global_batch_size
        return self.arrangement == "sorted" and 0 < left_over <= self.rank

    def global_batches(self) -> list[np.ndarray]:
        """Return the rows of all ranks' batches in this epoch; only the last one may be smaller than the others."""
        size = self.global_batch_size
        if self.arrangement == "sorted":
            order = np.argsort(-self.lengths, kind="stable")
            return [order[start : start + size] for start in range(0, len(order), size)]
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(len(self.lengths))
        body, rest = np.split(order, [len(order) - len(order) % size])
        batches = list(self._group(body, generator) if self.arrangement == "grouped" else body.reshape(-1, size))
        return [*batches, rest] if len(rest) else batches

    def _group(self, order: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sort shuffled rows by length in parts, cut them into batches, and shuffle these, a longest one first."""
        size = self.global_batch_size
        if not len(order):
            return order.reshape(-1, size)
        parts = np.split(order, range(size * MEGABATCH, len(order), size * MEGABATCH))
        batches = np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in parts])
        batches = generator.permutation(batches.reshape(-1, size))
        # Memory runs out, if it does, in the first step and not after hours.
        longest = int(np.argmax(self.lengths[batches].max(axis=1)))
        batches[[0, longest]] = batches[[longest, 0]]
        return batches

    def _share(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) < self.world_size:
            rows = np.resize(rows, self.world_size)
        return rows[self.rank :: self.world_size]


class BatchLoader:
    """Yields the batches of one rank.

    It is no `DataLoader`, so that Lightning neither wraps it nor replaces its sampler; a `DataLoader` inside collates,
    in worker processes where asked.

    Args:
        rows: Encoded rows.
        collator: Makes a batch of rows.
        order: Which rows make which batch.
        accumulate: Batches that make one optimizer step; that many are read ahead, to know the targets of the step.
        num_workers: Worker processes; 0 collates in this one.
        pin_memory: Copy batches to page-locked memory, from which a GPU reads faster.

    Attributes:
        sampler: The order, under the name by which Lightning looks for `set_epoch`.
        batch_sampler: The same.
    """

    def __init__(
        self,
        rows: Dataset,
        collator: Collator,
        order: BatchOrder,
        accumulate: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.rows = rows
        self.accumulate = accumulate
        self.sampler = self.batch_sampler = order
        self._loader: DataLoader[Any] = DataLoader(
            rows,
            batch_sampler=order,
            collate_fn=_CountingCollator(collator),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # Its own generator: an epoch's start must not draw from the run's random numbers.
            generator=torch.Generator().manual_seed(order.seed),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        batches, last = iter(self._loader), len(self) - 1
        for start in range(0, len(self), self.accumulate):
            step = list(islice(batches, self.accumulate))
            step_targets = sum(batch["sizes"].targets for batch in step)
            for number, batch in enumerate(step, start):
                is_filler = number == last and self.sampler.ends_with_filler
                batch["sizes"] = FILLER if is_filler else batch["sizes"]._replace(step_targets=step_targets)
                yield batch


class _CountingCollator:
    """Collates, and counts on the host what the batch holds. A class, so that workers can be sent it."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = dict(self._collator(rows))
        batch["sizes"] = count_sizes(batch, len(rows))
        return batch


def count_sizes(batch: Batch, rows: int) -> Sizes:
    """Count the tokens and targets of a batch.

    Args:
        batch: Tensors; of `input_ids` and `attention_mask` [rows, tokens] and `labels`. Labels of whole numbers and at
            least two dimensions are one per token, -100 where there is none; all others belong to the row.
        rows: Rows of the batch.
    """
    ids, mask, labels = batch.get("input_ids"), batch.get("attention_mask"), batch.get("labels")
    padded = ids.numel() if ids is not None else 0
    tokens = int(mask.sum()) if mask is not None and ids is not None and mask.shape == ids.shape else padded
    targets = rows
    if labels is not None and labels.ndim > 1 and not labels.is_floating_point():
        targets = int((labels != -100).sum())
    return Sizes(rows, tokens, padded, targets, step_targets=targets)


def row_lengths(rows: Dataset) -> np.ndarray:
    """Return the number of tokens of each encoded row, shape [rows]; ones where rows have no `input_ids`.

    Where a row holds several inputs (one for each choice), the longest counts: all are padded to it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if "input_ids" not in rows.column_names:
        return np.ones(len(rows), dtype=np.int64)
    column = rows.select_columns("input_ids").with_format("arrow")[:]["input_ids"]
    lengths = pc.list_value_length(column).to_numpy()
    if not pa.types.is_nested(column.type.value_type):
        return lengths
    inner = pc.list_value_length(pc.list_flatten(column)).to_numpy()
    return np.maximum.reduceat(inner, np.cumsum(lengths) - lengths)
