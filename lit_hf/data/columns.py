"""Checks of the rows before anything is tokenized: are the task's columns there, filled and alike in all splits?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lit_hf.data.sources import Split
from lit_hf.errors import Problem
from lit_hf.task import RowProblem, Task

SHOWN_PLACES = 3


def check_columns(splits: Mapping[str, Split], task: Task) -> Iterator[Problem]:
    """Find columns that are missing or have holes."""
    yield from ()


def check_rows(splits: Mapping[str, Split], task: Task) -> Iterator[Problem]:
    """Find the faults that the task sees in its rows, and name their places."""
    for split in splits.values():
        for fault in task.check(split.rows):
            yield place_problem(split, fault)


def place_problem(split: Split, fault: RowProblem) -> Problem:
    """Return a fault of rows as a problem that names the first places and the number of rows."""
    places = [split.place(row) for row in fault.rows[:SHOWN_PLACES]]
    more = len(fault.rows) - len(places)
    others = f" (also {', '.join(places[1:])}{f' and {more:,} more rows' if more else ''})" if len(places) > 1 else ""
    return Problem(places[0], f"column {fault.column!r}: {fault.what}{others}", fault.cure)
