"""The task's columns before anything is tokenized: are they there, filled, and alike in all splits?"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Value

from lit_hf.data.cells import Cells
from lit_hf.data.reading import mixed_kinds, mixed_problem
from lit_hf.data.sources import Split
from lit_hf.errors import Problem, nearest
from lit_hf.task import RowProblem, Task

SHOWN_PLACES = 3


def check_columns(splits: Mapping[str, Split], task: Task) -> Iterator[Problem]:
    """Find columns of the task that are missing, have holes, hold values of several kinds, or differ between splits.

    Args:
        splits: The splits by name.
        task: Says which columns it reads.
    """
    needed = list(dict.fromkeys([*task.input_columns, *task.target_columns]))
    for name, split in splits.items():
        there = [column for column in needed if column in split.rows.column_names]
        yield from (_missing(splits, name, column, task) for column in needed if column not in there)
        for column in there:
            yield from _holes(split, column, needed)
            yield from _mixed(split, column)
    yield from _differences(splits, needed)


def check_rows(splits: Mapping[str, Split], task: Task) -> Iterator[Problem]:
    """Find the faults that the task sees in its rows, and name their places."""
    for split in splits.values():
        for fault in task.check(split.rows):
            yield place_problem(split, fault)


def place_problem(split: Split, fault: RowProblem) -> Problem:
    """Return a fault of rows as a problem that names the first places and the number of rows."""
    places = [split.place(int(row)) for row in fault.rows[:SHOWN_PLACES]]
    shown = ", ".join(places[1:])
    more = len(fault.rows) - len(places)
    others = f" Also {shown}{f' and {more:,} more rows' if more else ''}." if shown else ""
    return Problem(places[0], f"column {fault.column!r}: {fault.what}{others}", fault.cure)


def _missing(splits: Mapping[str, Split], name: str, column: str, task: Task) -> Problem:
    split = splits[name]
    holder = next((other for other in splits if column in splits[other].rows.column_names), None)
    elsewhere = f"; the {holder} split has it" if holder else ""
    what = f"the {name} split ({split.place(0)}) has no column {column!r}, which {_key(task, column)} names{elsewhere}."
    return Problem(split.key, what, nearest(column, _names(split.rows.features)))


def _names(features: Mapping[str, Any], inside_of: str = "") -> Iterator[str]:
    """Yield the names of columns, and those of the values inside of objects (`translation.en`)."""
    for name, feature in features.items():
        yield f"{inside_of}{name}"
        if isinstance(feature, dict):
            yield from _names(feature, f"{inside_of}{name}.")


def _key(task: Task, column: str) -> str:
    """Return the config key by which a task was told of a column, or the task's name."""
    for key, value in vars(task).items():
        if value == column or (isinstance(value, (list, tuple)) and column in value):
            return f"task.{key}"
    return type(task).__name__


def _holes(split: Split, column: str, needed: Sequence[str]) -> Iterator[Problem]:
    """Find rows without a value, or with one missing inside a list; a misspelled key may stand there instead."""
    if not _may_have_nulls(split.rows.data.column(column)):
        return
    holes = np.flatnonzero(_nulls(_arrow(split, column)))
    if not len(holes):
        return
    others = [name for name in split.rows.column_names if name not in needed]
    for other in difflib.get_close_matches(column, others, n=3, cutoff=0.6):
        filled = ~_nulls(_arrow(split, other))[holes]
        if misspelled := holes[filled].tolist():
            what = f"the row has no such key, but {other!r}: is it misspelled?"
            yield place_problem(split, RowProblem(misspelled, column, what, f"Write {column!r}."))
            holes = holes[~filled]
    if len(holes):
        cure = "Fill it in, or remove the row."
        yield place_problem(split, RowProblem(holes.tolist(), column, "the value is missing (null).", cure))


def _arrow(split: Split, column: str) -> pa.ChunkedArray:
    return split.rows.select_columns(column).with_format("arrow")[:][column]


def _may_have_nulls(column: pa.ChunkedArray) -> bool:
    """Say whether any row of a file, chosen for a split or not, is null or a list with a null in it; copies nothing."""
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    return bool(column.null_count) or (is_list and any(chunk.values.null_count for chunk in column.chunks))


def _nulls(column: pa.ChunkedArray) -> np.ndarray:
    """Say which rows are null, or are a list with a null in it, shape [rows]."""
    nulls = column.is_null().to_numpy().copy()
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        parents, items = pc.list_parent_indices(column), pc.list_flatten(column)
        nulls[parents.to_numpy()[items.is_null().to_numpy()]] = True
    return nulls


def _mixed(split: Split, column: str) -> Iterator[Problem]:
    """Find a column whose values are numbers here and text there."""
    if not _is_mixed(split, column):
        return
    values = Cells(split.rows, column)
    found = mixed_kinds(values)
    if found is not None:
        index, kind, others = found
        yield mixed_problem(split.place(index), column, values[index], kind, others)


def _is_mixed(split: Split, column: str) -> bool:
    """Say whether `datasets` could keep a column only as JSON."""
    return type(split.rows.features[column]).__name__ == "Json"


def _differences(splits: Mapping[str, Split], needed: Sequence[str]) -> Iterator[Problem]:
    """Find columns that hold another kind of value than in the first split."""
    (first_name, first), *others = splits.items()
    for name, split in others:
        for column in needed:
            if column not in first.rows.column_names or column not in split.rows.column_names:
                continue
            if any(_is_mixed(each, column) for each in (split, first)):
                continue  # that is told of itself
            found, expected = (kind(each.rows.features[column]) for each in (split, first))
            if found == expected or "null" in (found, expected):
                continue
            texts = {"text": split, "numbers": first}[found] if {found, expected} == {"text", "numbers"} else None
            odd = None if texts is None else next(_no_numbers(texts, column), None)
            what = f"column {column!r} holds {found} in the {name} split, but {expected} in the {first_name} split"
            if texts is not None and odd is not None:
                yield Problem(texts.place(odd), f"{what}; here it is {texts.rows[odd][column]!r:.60}.", "Mend the row.")
            else:
                yield Problem(split.key, f"{what}.", "Write both in one way.")


def _no_numbers(split: Split, column: str) -> Iterator[int]:
    """Yield the rows whose text is no number: one empty field of a CSV file makes text of a column of numbers."""
    for row, text in enumerate(Cells(split.rows, column)):
        try:
            float(text)
        except ValueError:
            yield row


def kind(feature: Any) -> str:
    """Return what a column holds, in plain English."""
    if isinstance(feature, ClassLabel):
        return "numbers"
    if isinstance(feature, Value):
        if "string" in feature.dtype:
            return "text"
        return "numbers" if feature.dtype.startswith(("int", "uint", "float")) else feature.dtype
    return "objects" if isinstance(feature, dict) else "lists"
