"""Streaming: training rows are read while training, a window of them at a time, from a place that can be gone back to.

A window is a small data set of its own: its batches are those that `BatchOrder` makes of its rows. Nothing is shuffled
beyond it, so that the place of a batch is the window's place in the stream, which is kept in checkpoints, and the
batch's number. While a window is trained on, a thread reads and encodes the next one; its place is known, and what is
wrong with it is told, only once it is reached.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset

from lit_hf.data.batching import BatchLoader, with_step_targets
from lit_hf.data.silence import no_log
from lit_hf.data.sources import Split
from lit_hf.errors import InputError, Problem, TrainingError
from lit_hf.hub import message
from lit_hf.task import Batch


class Place(NamedTuple):
    """Where a window starts.

    Attributes:
        epoch: The pass through the stream, counted from 0.
        window: The window's number in the pass.
        batch: The number in the pass of its first batch on a rank.
        row: The number in the stream of its first row.
        state: What `datasets` needs to go on there.
    """

    epoch: int
    window: int
    batch: int
    row: int
    state: dict[str, Any]


class Window(NamedTuple):
    """A window, with its place and its rows."""

    place: Place
    split: Split


class Places:
    """The place that training is at in rows that are read window by window, and those that batches read ahead are of.

    Args:
        key: The config key that names the rows.
        window_rows: Rows of a window.
        state: What is needed to start at the first row.
    """

    def __init__(self, key: str, window_rows: int, state: dict[str, Any]) -> None:
        self.key = key
        self.window_rows = window_rows
        self.first_state = state
        self._places: deque[Place] = deque(maxlen=1)
        self._resumed: Place | None = None

    def windows(self, place: Place | None = None) -> Iterator[Window]:
        """Yield the windows from a place on, by default from the start; only one such iteration goes on at a time.

        Raises:
            InputError: If the rows cannot be read; names the place where it can be told.
        """
        raise NotImplementedError

    def start(self, epoch: int) -> Place:
        """Return the place of a pass's first window."""
        return Place(epoch, 0, 0, 0, self.first_state)

    def seek(self, epoch: int, batch: int) -> Place:
        """Return the known place in a pass that is next before a batch."""
        places = [*([self._resumed] if self._resumed else []), *self._places]
        known = [place for place in places if place.epoch == epoch and place.batch <= batch]
        return max(known, key=lambda place: place.batch, default=self.start(epoch))

    def keep(self, most: int) -> None:
        """Forget all places, and from now on keep the last few."""
        self._places = deque(maxlen=most)

    def mark(self, place: Place) -> None:
        """Know a place from now on."""
        self._places.append(place)

    def state_dict(self, batches: int) -> dict[str, Any]:
        """Return the place to go on from, as plain values, where so many batches of the pass are trained on."""
        return self.seek(self._places[-1].epoch if self._places else 0, batches)._asdict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Know the place that `state_dict` returned."""
        self._resumed = Place(**state)


class Stream(Places):
    """The training rows of a source, in the order in which they are stored.

    Args:
        rows: The rows.
        origin: Says where a row came from, by its number in the stream.
        key: The config key that names the source.
        window_rows: Rows of a window.
        limit: Rows of the stream that are used; None uses all.
        shape: Gives the rows of a window the columns that the task reads.
        faults: Returns what is wrong with the source, given the error with which it failed to be read.
    """

    def __init__(
        self,
        rows: IterableDataset,
        origin: Callable[[int], str],
        key: str,
        window_rows: int,
        limit: int | None = None,
        shape: Callable[[Split], Dataset] = lambda split: split.rows,
        faults: Callable[[BaseException], Sequence[Problem]] | None = None,
    ) -> None:
        super().__init__(key, window_rows, rows.state_dict())
        self.limit = limit
        self._rows = rows
        self._features = rows.features
        self._origin = origin
        self._shape = shape
        self._faults = faults

    def windows(self, place: Place | None = None) -> Iterator[Window]:
        """Yield the windows from a place on, as `Places` has it."""
        place = place or self.start(0)
        self._rows.load_state_dict(place.state)
        chunks = self._rows.iter(self.window_rows)
        while self.limit is None or place.row < self.limit:
            columns = self._next(chunks, place.row)
            if columns is None:
                return
            if self.limit is not None:
                columns = {name: values[: self.limit - place.row] for name, values in columns.items()}
            split = self.split(columns, np.arange(place.row, place.row + len(next(iter(columns.values())))))
            yield Window(place, split)
            row = place.row + len(split.rows)
            place = place._replace(window=place.window + 1, row=row, state=self._rows.state_dict())

    def rows_from(self, state: dict[str, Any], row: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yield rows one by one, each with what is needed to go on behind it.

        Args:
            state: What is needed to start there.
            row: The number of the first one in the stream.

        Raises:
            InputError: If they cannot be read.
        """
        self._rows.load_state_dict(state)
        examples = iter(self._rows)
        while self.limit is None or row < self.limit:
            example = self._next(examples, row)
            if example is None:
                return
            row += 1
            yield example, self._rows.state_dict()

    def split(self, columns: dict[str, list[Any]], numbers: np.ndarray) -> Split:
        """Return rows of the stream as a split, given their columns and their numbers in the stream."""
        rows = Dataset.from_dict(columns, features=self._features)
        self._features = rows.features  # those of the first rows, where the files do not tell
        split = Split(rows, self._origin, self.key, numbers)
        split.rows = self._shape(split)
        return split

    def _next(self, rows: Iterator[Any], row: int) -> dict[str, Any] | None:
        try:
            with no_log():
                return next(rows, None)
        except Exception as error:
            what = f"the rows from number {row:,} on cannot be read: {message(error)}"
            unknown = [Problem(self.key, what, "Mend them, or bring the source back.")]
            raise InputError(*((self._faults(error) if self._faults else None) or unknown)) from error


class StreamLoader:
    """Yields the batches of one rank, window by window; nobody knows how many.

    It is for a stream what `BatchLoader` is for rows that are all there.

    Args:
        stream: The rows.
        encode: Returns the encoded rows of a window; called in a thread, while the window before is used.
        load: Returns the batches of a window, given its encoded rows.
        accumulate: Batches that make one optimizer step; that many are read ahead, to know the targets of the step.
        limit: Most batches of an epoch; None is no limit.
        clock: Returns seconds.

    Attributes:
        sampler: The loader, under the name by which Lightning looks for `set_epoch`.
        epoch: The pass that the next iteration makes.
        start: The batch that the next iteration starts with, once; one that an optimizer step starts with.
        seconds_waited: How long the batches were waited for by whoever iterates, all in all.
    """

    def __init__(
        self,
        stream: Places,
        encode: Callable[[Window], Dataset],
        load: Callable[[Window, Dataset], BatchLoader],
        accumulate: int = 1,
        limit: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.stream = stream
        self.accumulate = accumulate
        self.sampler = self
        self.epoch = 0
        self.start = 0
        self.seconds_waited = 0.0
        self._encode = encode
        self._load = load
        self._limit = limit
        self._clock = clock

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass that the next iteration makes; Lightning calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        start, self.start = self.start, 0
        left = None if self._limit is None else max(0, self._limit - start)
        batches = with_step_targets(islice(self._batches(start), left), self.accumulate)
        while True:
            asked = self._clock()
            try:
                batch = next(batches, None)
            except InputError as error:
                raise TrainingError(*error.problems) from error
            self.seconds_waited += self._clock() - asked
            if batch is None:
                return
            yield batch

    def _batches(self, start: int) -> Iterator[Batch]:
        place = self.stream.seek(self.epoch, start)
        self.stream.keep(self.accumulate + 2)  # windows that batches which were read ahead may come from
        number = place.batch
        for window, encoded in self._windows(place):
            self.stream.mark(window.place._replace(batch=number))
            batches = self._load(window, encoded)
            batches.sampler.set_epoch(self.epoch)
            batches.start = max(0, start - number)
            yield from batches
            number += len(batches)

    def _windows(self, place: Place) -> Iterator[tuple[Window, Dataset]]:
        """Yield windows and their encoded rows; the next is made in a thread, and its error raised in its turn."""
        made = ((window, self._encode(window)) for window in self.stream.windows(place))
        # Leaving waits for the thread, so that a later iteration has the stream to itself.
        with ThreadPoolExecutor(1, thread_name_prefix="windows") as thread:
            coming = thread.submit(next, made, None)
            while (window := coming.result()) is not None:
                coming = thread.submit(next, made, None)
                yield window
