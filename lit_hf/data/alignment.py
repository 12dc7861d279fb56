"""Alignment: the columns of several sources get the same features, or it is told why they cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features

from lit_hf.data.cells import Cells
from lit_hf.data.columns import kind
from lit_hf.data.sources import Split
from lit_hf.errors import Problem

SHOWN_NAMES = 6


def align(parts: Sequence[Split], column: str) -> Iterator[Problem]:
    """Give a column the same feature in all parts, or find what keeps it from that.

    Numbers of several widths become the wider ones, objects get all keys of all parts, and labels of the same names in
    another order are numbered as in the first part. Whole numbers beside named labels are taken for their ids.

    Args:
        parts: Splits of several sources; their rows are replaced.
        column: A column.

    Yields:
        What does not fit, with both sources.
    """
    parts = [part for part in parts if column in part.rows.column_names]
    filled = [part for part in parts if kind(part.rows.features[column]) != "null"]
    if all(part.rows.features[column] == parts[0].rows.features[column] for part in parts):
        return
    named = next((part for part in filled if _labels(part, column)), None)
    expected = named or filled[0]
    problems = [problem for part in filled if (problem := _conflict(part, expected, column))]
    yield from problems
    if problems:
        return
    schemas = [part.rows.select_columns(column).features.arrow_schema for part in parts]
    unified = Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))[column]
    for part in parts:
        if named is not None and (names := _labels(part, column)):
            _renumber(part, column, names, _labels(named, column) or [])
        part.rows = part.rows.cast_column(column, unified if named is None else named.rows.features[column])


def _conflict(part: Split, expected: Split, column: str) -> Problem | None:
    """Say why a column cannot be the same in two parts; None if it can."""
    schemas = [each.rows.select_columns(column).features.arrow_schema for each in (part, expected)]
    names, others = _labels(part, column), _labels(expected, column)
    if names and others and (set(names) != set(others) or (names != others and not _is_label(part, column))):
        what = f"column {column!r} has the labels {_shown(names)}, but in {expected.key} {_shown(others)}."
        return Problem(part.key, what, "Sources with other labels cannot be mixed: give them the same names.")
    try:
        pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException:
        here, there = (f"{kind(each.rows.features[column])} ({_first(each, column)})" for each in (part, expected))
        what = f"column {column!r} holds {here}, but in {expected.key} {there}."
        return Problem(part.key, what, "Write both in one way, or map another column.")
    if others and not names:
        return _no_ids(part, column, others, expected.key)
    return None


def _no_ids(part: Split, column: str, names: Sequence[str], key: str) -> Problem | None:
    """Find the first number that is no id of the named labels."""
    cells = enumerate(Cells(part.rows, column))
    items = ((row, item) for row, cell in cells for item in (cell if isinstance(cell, list) else [cell]))
    for row, item in items:
        if item is not None and item not in range(-1, len(names)):
            what = f"column {column!r}: {item!r} is no id of the {len(names)} labels of {key}: {_shown(names)}."
            return Problem(part.place(row), what, "Give both sources the same labels.")
    return None


def _renumber(part: Split, column: str, names: Sequence[str], wanted: Sequence[str]) -> None:
    """Number labels in another order."""
    if names == wanted:
        return
    ids = part.rows.with_format("arrow")[:][column]
    table = pa.array([*(wanted.index(name) for name in names), -1])  # -1 is no label
    order = part.rows.column_names
    moved = pc.take(table, pc.if_else(pc.less(ids, 0), len(names), ids))
    rest = part.rows.remove_columns(column)
    part.rows = rest.add_column(column, moved.combine_chunks(), feature=ClassLabel(names=list(wanted))).select_columns(
        order
    )


def _item(part: Split, column: str) -> Any:
    feature = part.rows.features[column]
    return getattr(feature, "feature", feature)


def _labels(part: Split, column: str) -> list[str] | None:
    """Return the names of labels, or of the items of lists of labels."""
    item = _item(part, column)
    return list(item.names) if isinstance(item, ClassLabel) else None


def _is_label(part: Split, column: str) -> bool:
    return isinstance(part.rows.features[column], ClassLabel)


def _first(part: Split, column: str) -> str:
    """Return the first value of a column that is there, and its place."""
    cells = enumerate(Cells(part.rows, column))
    row, value = next(((row, value) for row, value in cells if value is not None), (0, None))
    return f"{part.place(row)}: {value!r:.60}"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
