"""Mixing of streams: the rows of several streamed sources become one stream, window by window.

Which source a row comes from is a pure function of its window and its place in there, as the order of batches is
one of seed and epoch: the place to go on from is the places in all the sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lit_hf.data.mixing import Mixing, Stopping, agree, check_sources
from lit_hf.data.sources import SAMPLING_SEED, Source, Split, concatenate
from lit_hf.data.stream_sources import load_streamed
from lit_hf.data.streaming import Place, Places, Stream, Window
from lit_hf.errors import InputError, Problem, raise_problems

KEY = "data.source"


def load_mixed_streams(
    sources: Sequence[Source],
    names: Sequence[str],
    columns: Sequence[str],
    optional: Sequence[str],
    mixing: Mixing,
    stopping: Stopping,
    window_rows: int,
) -> tuple[dict[str, Split], MixedStream | None]:
    """Open the training rows of several sources as one stream, and load and concatenate their other splits.

    Args:
        sources: Where the rows come from; all of them are streamed.
        names: The splits that are wanted.
        columns: The task's columns: they must be in all sources, and are all that is kept.
        optional: Columns that are kept where they are.
        mixing: Whether the training rows follow each other, or are drawn from the sources by their weights.
        stopping: When drawing ends, as `LitDataModule` has it.
        window_rows: Rows of a window.

    Returns:
        The splits by name, of the training rows the first window, and the training rows; None where none are wanted.

    Raises:
        InputError: If a source cannot be read or streamed, or a column is missing or of another kind than in others.
    """
    raise_problems(check_sources(sources, mixing))
    loaded, problems = [], list[Problem]()
    for index, source in enumerate(sources):
        try:
            loaded.append(load_streamed(source, names, [*columns, *optional], window_rows, f"{KEY}[{index}]"))
        except InputError as error:
            problems += error.problems
    raise_problems(problems)
    mixed: dict[str, Split] = {}
    for name in names:
        parts = [splits[name] for splits, _ in loaded if name in splits]
        if name != "train" and parts:
            agree(parts, columns, optional)
            mixed[name] = concatenate(parts, KEY)
    having = [(stream, source.weight) for (_, stream), source in zip(loaded, sources, strict=True) if stream]
    if not having:
        return mixed, None
    how = stopping if mixing == "interleave" else None
    stream = MixedStream([one for one, _ in having], [weight for _, weight in having], how, columns, optional)
    mixed["train"] = next(stream.windows()).split
    return mixed, stream


class MixedStream(Places):
    """The training rows of several sources as one stream.

    Args:
        streams: The sources' rows; none is empty.
        weights: How often each is drawn from, relative to the others.
        stopping: When drawing ends; None draws nothing, the sources follow each other.
        columns: The task's columns.
        optional: Columns that are kept where they are.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        weights: Sequence[float],
        stopping: Stopping | None,
        columns: Sequence[str],
        optional: Sequence[str] = (),
    ) -> None:
        first = {"sources": [_Reader(stream, {}).state_dict() for stream in streams]}
        super().__init__(KEY, streams[0].window_rows, first)
        self._streams = streams
        self._shares = np.asarray(weights) / sum(weights)
        self._stopping = stopping
        self._columns = columns
        self._optional = optional

    def windows(self, place: Place | None = None) -> Iterator[Window]:
        """Yield the windows from a place on, as `Places` has it."""
        place = place or self.start(0)
        states = place.state["sources"]
        readers = [_Reader(stream, state) for stream, state in zip(self._streams, states, strict=True)]
        repeats = self._stopping == "all_exhausted"
        is_over = False
        while not is_over:
            drawn = self._draw(place.window, readers)
            places = [np.flatnonzero(drawn == number) for number in range(len(readers))]
            read = [reader.read(len(wanted), repeats) for reader, wanted in zip(readers, places, strict=True)]
            ends = [wanted[end] for wanted, (_, end) in zip(places, read, strict=True) if end is not None]
            is_over = bool(ends) if self._stopping == "first_exhausted" else all(one.has_ended for one in readers)
            stop = len(drawn) if not ends or (repeats and not is_over) else max(ends) if repeats else min(ends)
            if stop:
                yield Window(place, self._arrange([split for split, _ in read], drawn[:stop]))
            state = {"sources": [reader.state_dict() for reader in readers]}
            place = place._replace(window=place.window + 1, row=place.row + int(stop), state=state)

    def _draw(self, window: int, readers: Sequence[_Reader]) -> np.ndarray:
        """Return the number of the source that each row of a window is of."""
        if self._stopping is None:
            current = next(number for number, reader in enumerate(readers) if not reader.has_ended)
            return np.full(self.window_rows, current)
        generator = np.random.default_rng((SAMPLING_SEED, window))
        return generator.choice(len(readers), size=self.window_rows, p=self._shares)

    def _arrange(self, splits: Sequence[Split | None], drawn: np.ndarray) -> Split:
        parts = [split for split in splits if split is not None]
        agree(parts, self._columns, self._optional)
        chosen, first = np.empty(len(drawn), np.int64), 0
        for number, split in enumerate(splits):
            if split is not None:
                wanted = np.flatnonzero(drawn == number)
                chosen[wanted] = first + np.arange(len(wanted))
                first += len(split.rows)
        return concatenate(parts, KEY).take(chosen)


class _Reader:
    """Reads a source in one pass of the mixed stream.

    Args:
        stream: The source's rows.
        state: What `state_dict` returned; empty at the start.

    Attributes:
        has_ended: Whether all its rows were read, once at least.
    """

    def __init__(self, stream: Stream, state: Mapping[str, Any]) -> None:
        self.has_ended = bool(state.get("has_ended"))
        self._stream = stream
        self._row = int(state.get("row", 0))
        self._state = dict(state.get("state", stream.first_state))
        self._rows: Iterator[tuple[dict[str, Any], dict[str, Any]]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on."""
        return {"has_ended": self.has_ended, "row": self._row, "state": self._state}

    def read(self, count: int, repeats: bool) -> tuple[Split | None, int | None]:
        """Read the next rows.

        Args:
            count: How many.
            repeats: Whether to start again behind the last one.

        Returns:
            The rows, None where there are none; and how many there were when the source ended for the first time, None
            if it did not.
        """
        examples: list[dict[str, Any]] = []
        numbers: list[int] = []
        end = None
        while len(examples) < count:
            if self._rows is None:
                self._rows = self._stream.rows_from(self._state, self._row)
            found = next(self._rows, None)
            if found is not None:
                examples.append(found[0])
                numbers.append(self._row)
                self._row, self._state = self._row + 1, found[1]
                continue
            end = end if self.has_ended else len(examples)
            self.has_ended = True
            if not repeats:
                break
            self._row, self._state, self._rows = 0, self._stream.first_state, None
        if not examples:
            return None, end
        names = dict.fromkeys(name for example in examples for name in example)
        columns = {name: [example.get(name) for example in examples] for name in names}
        return self._stream.split(columns, np.asarray(numbers)), end
