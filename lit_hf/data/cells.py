"""The values of a column, of which few are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

AT_ONCE = 1000
"""Rows that are read together: one by one takes some thirty times as long, and all of a million take gigabytes."""


class Cells(Sequence[Any]):
    """A column's values in the order of the rows, read from the file as often as they are gone through.

    Args:
        rows: The rows.
        column: The column; it must be there.
    """

    def __init__(self, rows: Dataset, column: str) -> None:
        self._rows = rows.select_columns(column)
        self._column = column

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        """Return the value of a row, or those of a slice of rows as a list."""
        return self._rows[place][self._column]

    def __iter__(self) -> Iterator[Any]:
        for part in self._rows.iter(AT_ONCE):
            yield from part[self._column]
