"""Renaming: a source's columns get the names by which the task reads them."""

from __future__ import annotations

from collections.abc import Mapping

from datasets import Dataset, concatenate_datasets

from lit_hf.data.inner_columns import select_column
from lit_hf.errors import Problem, nearest, raise_problems


def rename_columns(rows: Dataset, columns: Mapping[str, str], key: str, place: str) -> Dataset:
    """Return rows whose columns are called as the task calls them; columns that are not named keep their names.

    Args:
        rows: The rows.
        columns: The present name of each column by its new one; a dot leads into a nested column.
        key: The config key that names the columns.
        place: The place of the first row, for the problems.

    Raises:
        InputError: If a column is not there.
    """
    found = {new: select_column(rows, name) for new, name in columns.items()}
    raise_problems(
        Problem(f"{key}.{new}", f"there is no column {name!r} ({place}).", nearest(name, rows.column_names))
        for new, name in columns.items()
        if found[new] is None
    )
    renamed = [
        column.rename_column(columns[new], new)
        for new, column in found.items()
        if column is not None and new != columns[new]
    ]
    replaced = [name for name in rows.column_names if name in columns or name in columns.values()]
    kept = rows.remove_columns([name for name in replaced if columns.get(name) != name])
    return concatenate_datasets([*([kept] if kept.column_names else []), *renamed], axis=1)
