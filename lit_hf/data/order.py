"""The order of batches: which rows make which batch on which rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

MEGABATCH = 50
"""Batches sorted by length together: enough that their rows are alike, few enough that chance rules the order."""

ALIKE = 0.9
"""Under a token budget, rows at least that long, by the longest of them, are dealt to batches by chance."""

Arrangement = Literal["grouped", "shuffled", "sorted", "packed"]


class BatchOrder:
    """Which rows make which batch: a pure function of the arguments and the epoch.

    An epoch is worked out as a whole, in whole-array operations, and kept as a few bytes a row; any batch of it is then
    there at once. All ranks have the same number of batches, which is the same in every epoch.

    - With `batch_size`, all ranks cut the same global batches of `batch_size * world_size` rows, and each takes its
      share of every one: the ranks together see the same rows in a step, whatever their number.
    - With `batch_tokens`, a batch has as many rows as fit in when padded to the longest of them, and the batches are
      dealt to the ranks in turn: so many ranks see together what one would see in as many batches. A rank that goes
      without in the last round has a filler.

    Args:
        lengths: Tokens that each row takes; one entry per row.
        batch_size: Rows of a batch on one rank; not used beside `batch_tokens`.
        arrangement: `grouped` shuffles but keeps rows of like length together, `shuffled` only shuffles (not with
            `batch_tokens`), `sorted` is for evaluation: the longest rows first, the same order in every epoch, no row
            repeated. `packed` joins rows whose lengths add up to `batch_tokens` at most.
        seed: With the epoch, determines the order.
        rank: The rank whose batches are meant.
        world_size: Number of ranks.
        batch_tokens: Tokens of a batch on one rank, padding included; a row that is longer is a batch by itself.

    Attributes:
        epoch: The epoch whose order is meant.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int = 1,
        arrangement: Arrangement = "grouped",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        batch_tokens: int | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.arrangement = arrangement
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._layout: _Rows | _Tokens
        if batch_tokens is None:
            self._layout = _Rows(self.lengths, batch_size * world_size, arrangement)
        else:
            self._layout = _Tokens(self.lengths, batch_tokens, arrangement)
        self._shares = batch_tokens is None  # every batch, where the others are dealt whole
        self._cached: tuple[int, _Plan] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration has; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches = self._layout.batches
        return batches if self._shares else -(-batches // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches()

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[list[int]]:
        """Yield the rows of this rank's batches from number `start` to before `stop`; those before cost nothing."""
        plan = self._plan()
        for number in range(start, len(self) if stop is None else min(stop, len(self))):
            yield self._rows(plan, number).tolist()

    @property
    def ends_with_filler(self) -> bool:
        """Whether this rank's last batch only keeps it in step, because the other ranks took the last rows."""
        if self._shares:
            left_over = len(self.lengths) % self._layout.size
            return self.arrangement == "sorted" and 0 < left_over <= self.rank
        return 0 < self._layout.batches % self.world_size <= self.rank

    @property
    def padding_share(self) -> float:
        """The share of the epoch's tokens that is padding, each batch of all ranks padded to the longest of it."""
        if self.arrangement == "packed" or not len(self.lengths):
            return 0.0
        plan = self._plan()
        longest = np.maximum.reduceat(self.lengths[plan.rows], plan.bounds[:-1])
        return 1 - float(self.lengths.sum(dtype=np.int64) / (longest.astype(np.int64) * np.diff(plan.bounds)).sum())

    def _plan(self) -> _Plan:
        if self._cached is None or self._cached[0] != self.epoch:
            generator = np.random.default_rng((self.seed, self.epoch))
            self._cached = (self.epoch, self._layout.plan(generator))
        return self._cached[1]

    def _rows(self, plan: _Plan, number: int) -> np.ndarray:
        if self._shares:
            rows = plan[number]
            if len(rows) < self.world_size:
                rows = np.resize(rows, self.world_size)
            return rows[self.rank :: self.world_size]
        # a filler is a copy of the last batch
        return plan[min(number * self.world_size + self.rank, self._layout.batches - 1)]


class _Plan(NamedTuple):
    """An epoch's order.

    Attributes:
        rows: All rows, batch after batch.
        bounds: Where batches start, and where the last one ends.
    """

    rows: np.ndarray
    bounds: np.ndarray

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        """Return the rows of a batch."""
        return self.rows[self.bounds[number] : self.bounds[number + 1]]


class _Rows:
    """Batches of a fixed number of rows; only the last one may be smaller."""

    def __init__(self, lengths: np.ndarray, size: int, arrangement: Arrangement) -> None:
        self.size = size
        self.batches = -(-len(lengths) // size)
        self._lengths = lengths
        self._arrangement = arrangement

    def plan(self, generator: np.random.Generator) -> _Plan:
        bounds = np.minimum(np.arange(self.batches + 1) * self.size, len(self._lengths))
        if self._arrangement == "sorted":
            return _Plan(longest_first(self._lengths), bounds)
        order = generator.permutation(_indices(self._lengths))
        if self._arrangement == "grouped":
            self._group(order[: len(order) - len(order) % self.size], generator)
        return _Plan(order, bounds)

    def _group(self, order: np.ndarray, generator: np.random.Generator) -> None:
        """Sort shuffled rows by length in parts, cut them into batches, and shuffle these, a longest one first."""
        if not len(order):
            return
        window = self.size * MEGABATCH
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part[:] = part[longest_first(self._lengths[part])]
        batches = order.reshape(-1, self.size)
        generator.shuffle(batches)
        # Memory runs out, if it does, in the first step and not after hours.
        longest = int(np.argmax(self._lengths[batches].max(axis=1)))
        batches[[0, longest]] = batches[[longest, 0]]


class _Tokens:
    """Batches of like length that keep within a number of tokens, or bins that rows are packed to.

    The lengths of the rows are cut to batches once; chance then says which of the rows of a length, or of like length,
    goes where, and in which order the batches come. So every epoch has the same number of them.
    """

    def __init__(self, lengths: np.ndarray, capacity: int, arrangement: Arrangement) -> None:
        self.size = capacity
        self._lengths = lengths
        self._shuffles = arrangement != "sorted"
        self._places: np.ndarray | None = None  # in the sorted rows, of the rows of all batches; None is one by one
        self._cells: np.ndarray | None = None  # where rows of like length start, among the sorted rows
        falling = lengths[longest_first(lengths)]
        if arrangement == "packed":
            self._pack(falling)
        else:
            mean_batches = -(-int(lengths.sum(dtype=np.int64)) // capacity)
            self._cut(falling, max(1, mean_batches // MEGABATCH) if self._shuffles else 1)
        self.batches = len(self._bounds) - 1

    def _pack(self, falling: np.ndarray) -> None:
        from lit_hf.data.packing import pack

        bins = pack(falling, self.size)
        self._places = np.concatenate([*bins, np.empty(0, np.int32)]).astype(np.int32)
        self._bounds = np.concatenate([[0], np.cumsum([len(one) for one in bins], dtype=np.int64)])

    def _cut(self, falling: np.ndarray, batches_of_cell: int) -> None:
        starts, cells, place, rising = [np.empty(0, np.int64)], [], 0, -falling
        while place < len(falling):
            longest = max(1, int(falling[place]))
            rows = max(1, self.size // longest)
            if batches_of_cell > 1:
                alike = int(np.searchsorted(rising, rising.dtype.type(-ALIKE * longest), side="right")) - place
                stop = min(place + min(batches_of_cell * rows, max(rows, alike - alike % rows)), len(falling))
            else:
                stop = min(place + rows, len(falling))
            cells.append(place)
            starts.append(np.arange(place, stop, rows))
            place = stop
        self._bounds = np.append(np.concatenate(starts), len(falling))
        self._cells = np.append(cells, len(falling)) if batches_of_cell > 1 else None

    def plan(self, generator: np.random.Generator) -> _Plan:
        if not self._shuffles:
            return _Plan(longest_first(self._lengths), self._bounds)
        order = generator.permutation(_indices(self._lengths))
        order = order[longest_first(self._lengths[order])]
        if self._cells is not None:
            for start, stop in zip(self._cells[:-1], self._cells[1:], strict=True):
                generator.shuffle(order[start:stop])
        if self._places is not None:
            order = order[self._places]
        return self._shuffled(order, generator)

    def _shuffled(self, rows: np.ndarray, generator: np.random.Generator) -> _Plan:
        """Shuffle the batches, a longest one first, as memory runs out in the first step then, if it does."""
        if not self.batches:
            return _Plan(rows, self._bounds)
        batches = generator.permutation(self.batches)
        longest = np.searchsorted(self._bounds, np.argmax(self._lengths[rows]), side="right") - 1
        batches[[0, int(np.flatnonzero(batches == longest)[0])]] = longest, batches[0]
        sizes = np.diff(self._bounds)[batches]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        moved = np.repeat(self._bounds[batches] - bounds[:-1], sizes) + np.arange(len(rows))
        return _Plan(rows[moved], bounds)


def longest_first(lengths: np.ndarray) -> np.ndarray:
    """Return the indices of lengths by which they fall; equal ones stay in their order."""
    top = int(lengths.max(initial=0))
    falling = top - lengths
    # Numpy sorts 16-bit numbers in linear time.
    order = np.argsort(falling.astype(np.uint16) if top < 2**16 else falling, kind="stable")
    return order.astype(_indices(lengths).dtype)


def _indices(lengths: np.ndarray) -> np.ndarray:
    return np.arange(len(lengths), dtype=np.int32 if len(lengths) < 2**31 else np.int64)
