"""Columns inside of others: `translation.en` is the key `en` of the objects in the column `translation`."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset, concatenate_datasets


def with_inner_columns(rows: Dataset, columns: Sequence[str]) -> Dataset:
    """Return rows in which values inside of objects are columns of their own, if any is wanted.

    Args:
        rows: The rows; a column that has a dot in its name already is left as it is.
        columns: The wanted columns. An object that is wanted as a whole stays beside its parts.
    """
    depth = max((column.count(".") for column in columns if column not in rows.column_names), default=0)
    if not depth:
        return rows
    whole = [column for column in columns if isinstance(rows.features.get(column), dict)]
    flat = rows.flatten(max_depth=depth + 1)
    return concatenate_datasets([flat, rows.select_columns(whole)], axis=1) if whole else flat


def select_column(rows: Dataset, name: str) -> Dataset | None:
    """Return rows with one column alone, which may be inside of another; None if there is none."""
    head = name if name in rows.column_names else name.partition(".")[0]
    if head not in rows.column_names:
        return None
    flat = with_inner_columns(rows.select_columns(head), [name])
    return flat.select_columns(name) if name in flat.column_names else None
