"""Batches: the loader that yields them, and what is counted in them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from lit_hf.data.order import BatchOrder
from lit_hf.randomness import seeded
from lit_hf.task import IGNORED, Batch, Collator, Sizes

TRIAL_ROWS = 2
"""Rows of the batches of a sanity check: it is to find out early whether an evaluation works, not to take its time."""

FILLER = Sizes(rows=0, tokens=0, padded_tokens=0, targets=0, step_targets=0)
"""The sizes of a batch that only keeps a rank in step with the others."""


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
        limit: How much of an epoch is used, as Lightning's `limit_train_batches`: a number of batches, or a share.
        is_trial: Says whether an iteration is for a sanity check: its batches have the first few rows only.
        clock: Returns seconds.

    Attributes:
        sampler: The order, under the name by which Lightning looks for `set_epoch`.
        batch_sampler: The same.
        start: The batch that the next iteration starts with, once; those before it are neither read nor collated. It
            must be one that an optimizer step starts with.
        seconds_waited: How long the batches were waited for by whoever iterates, all in all.
    """

    def __init__(
        self,
        rows: Dataset,
        collator: Collator,
        order: BatchOrder,
        accumulate: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        limit: int | float = 1.0,
        is_trial: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.rows = rows
        self.accumulate = accumulate
        self.sampler = self.batch_sampler = order
        self.start = 0
        self.seconds_waited = 0.0
        self._limit = limit
        self._is_trial = is_trial
        self._clock = clock
        self._part = _Part(order)
        self._loader: DataLoader[Any] = DataLoader(
            _Batches(rows, collator, order),
            batch_size=None,
            sampler=self._part,
            num_workers=num_workers,
            # the batches of the next step are made while this one is trained on
            prefetch_factor=max(2, -(-accumulate // num_workers) + 1) if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # Its own generator: an epoch's start must not draw from the run's random numbers.
            generator=torch.Generator().manual_seed(order.seed),
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0
        batches = self._batches(start)
        while True:
            asked = self._clock()
            batch = next(batches, None)
            self.seconds_waited += self._clock() - asked
            if batch is None:
                return
            yield batch

    @property
    def _stop(self) -> int:
        """The batch that the epoch ends before; the last step of an epoch may have fewer batches than the others."""
        limit = self._limit if isinstance(self._limit, int) else int(self._limit * len(self))
        return min(limit, len(self))

    def _batches(self, start: int) -> Iterator[Batch]:
        self._part.start, self._part.stop = start, self._stop
        self._part.rows = TRIAL_ROWS if self._is_trial() else None
        filler = len(self) - 1 if self.sampler.ends_with_filler else -1
        numbered = enumerate(self._loader, start)
        batches = ({**batch, "sizes": FILLER} if number == filler else batch for number, batch in numbered)
        return with_step_targets(batches, self.accumulate)


def with_step_targets(batches: Iterator[Batch], accumulate: int) -> Iterator[Batch]:
    """Yield batches that know the targets of the optimizer step that they are part of.

    Args:
        batches: Batches, from one on that a step starts with; the last step may have fewer than the others.
        accumulate: Batches that make one optimizer step; that many are read ahead.
    """
    while step := list(islice(batches, accumulate)):
        step_targets = sum(batch["sizes"].targets for batch in step)
        for batch in step:
            batch["sizes"] = batch["sizes"]._replace(step_targets=step_targets)
            yield batch


class _Place(NamedTuple):
    """A batch's place in the run, and its rows."""

    epoch: int
    number: int
    rows: list[int]


class _Part:
    """A part of an epoch's order, as the sampler of a `DataLoader`."""

    def __init__(self, order: BatchOrder) -> None:
        self.start, self.stop = 0, len(order)
        self.rows: int | None = None
        self._order = order

    def __iter__(self) -> Iterator[_Place]:
        for number, rows in enumerate(self._order.batches(self.start, self.stop), self.start):
            yield _Place(self._order.epoch, number, rows[: self.rows])


class _Batches(torch.utils.data.Dataset[Batch]):
    """Reads and collates batches, and counts on the host what they hold.

    What a collator draws (masks, spans) depends on the batch's place in the run alone: it is the same in whatever
    process it is made, and after whatever batches.
    """

    def __init__(self, rows: Dataset, collator: Collator, order: BatchOrder) -> None:
        self._rows = rows
        self._collator = collator
        self._seed, self._rank = order.seed, order.rank

    def __getitem__(self, place: _Place) -> Batch:
        rows = self._rows.__getitems__(place.rows)
        with seeded("collate", self._seed, self._rank, place.epoch, place.number):
            batch = dict(self._collator(rows))
        batch["sizes"] = count_sizes(batch, rows)
        return batch


def own_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers(ranks: int) -> int:
    """Return as many workers as keep up with a GPU, and no more than a rank's share of the cores.

    Args:
        ranks: Those that train on this machine.
    """
    return min(4, own_cores() // (2 * ranks))


def count_sizes(batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Sizes:
    """Count the tokens and targets of a batch.

    Args:
        batch: Tensors; of `input_ids` and `attention_mask` [inputs, tokens] and `labels`. Labels of whole numbers and
            at least two dimensions are one per token, -100 where there is none; all others belong to the row.
        rows: The encoded rows that it was made of; without a mask the lengths of their inputs count.
    """
    ids, mask, labels = batch.get("input_ids"), batch.get("attention_mask"), batch.get("labels")
    padded = ids.numel() if ids is not None else 0
    if mask is not None and ids is not None and mask.shape == ids.shape:
        lengths = mask.sum(-1, dtype=torch.int64)
    else:
        lengths = torch.tensor([length for row in rows for length in _input_lengths(row)], dtype=torch.int64)
    targets = len(rows)
    if labels is not None and labels.ndim > 1 and not labels.is_floating_point():
        targets = int((labels != IGNORED).sum())
    tokens, attended = int(lengths.sum()), int(lengths.square().sum())
    return Sizes(len(rows), tokens, padded, targets, step_targets=targets, attended=attended)


def _input_lengths(row: Mapping[str, Any]) -> list[int]:
    """Return the lengths of a row's inputs: one sequence, several, or the two of a pair."""
    ids = row.get("input_ids", ())
    if "chosen_length" in row:
        return [row["chosen_length"], len(ids) - row["chosen_length"]]
    return [len(one) for one in ids] if len(ids) and not isinstance(ids[0], int) else [len(ids)]


def row_lengths(rows: Dataset) -> np.ndarray:
    """Return the number of tokens of each encoded row, shape [rows]; ones where rows have no `input_ids`.

    Where a row holds several inputs (one for each choice), the longest counts: all are padded to it. The tokens
    themselves are not read, only where they start.
    """
    if "input_ids" not in rows.column_names:
        return np.ones(len(rows), dtype=np.int32)
    return _reduce_lengths(rows, "input_ids")[0]


def padded_lengths(rows: Dataset) -> np.ndarray:
    """Return the tokens that each encoded row takes in a batch where none is longer, shape [rows].

    They are those of its longest sequence times their number: the choices of a question, the two sides of a pair, the
    texts that are embedded together. A target beside the inputs (`labels` of a translation) does not count.
    """
    if "chosen_length" in rows.column_names:
        chosen = rows.select_columns("chosen_length").with_format("arrow")[:]["chosen_length"].to_numpy()
        return 2 * np.maximum(chosen, row_lengths(rows) - chosen)
    columns = [name for name in rows.column_names if name.endswith("input_ids")]
    if len(columns) > 1:
        return len(columns) * np.maximum.reduce([_reduce_lengths(rows, name)[0] for name in columns])
    if not columns:
        return row_lengths(rows)
    longest, sequences = _reduce_lengths(rows, columns[0])
    return longest * sequences


def _reduce_lengths(rows: Dataset, name: str) -> tuple[np.ndarray, int]:
    """Return the longest sequence of each row, shape [rows], and the most sequences that a row has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = rows.select_columns(name).with_format("arrow")[:][name]
    lengths = pc.list_value_length(column).to_numpy()
    if not pa.types.is_nested(column.type.value_type):
        return lengths, 1
    inner = pc.list_value_length(pc.list_flatten(column)).to_numpy()
    return np.maximum.reduceat(inner, np.cumsum(lengths) - lengths), int(lengths.max(initial=1))
