"""Texts of rows: is there any, and is it text?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lit_hf.task import RowProblem


def text_problems(values: Sequence[Any], column: str, may_be_blank: bool = False) -> Iterator[RowProblem]:
    """Find rows whose text is missing, no text at all, or blank, unless it may be."""
    yield from _type_problems(values, column)
    if blank := [row for row, value in enumerate(values) if value is None or (is_blank(value) and not may_be_blank)]:
        yield RowProblem(blank, column, "the text is missing or empty.", "Fill it in or remove the row.")


def document_problems(values: Sequence[Any], column: str) -> Iterator[RowProblem]:
    """Find rows that hold no text; a blank line of a text file does no harm among others."""
    yield from _type_problems(values, column)
    if absent := [row for row, value in enumerate(values) if value is None]:
        yield RowProblem(absent, column, "the text is missing.", "Fill it in or remove the row.")
    elif values and all(map(is_blank, values)):
        yield RowProblem(range(len(values)), column, "the text is empty.", "There must be text in some row.")


def is_blank(value: Any) -> bool:
    """Say whether a text is empty, or all white space."""
    return isinstance(value, str) and not value.strip()


def _type_problems(values: Sequence[Any], column: str) -> Iterator[RowProblem]:
    if wrong := [row for row, value in enumerate(values) if value is not None and not isinstance(value, str)]:
        yield RowProblem(wrong, column, f"this is no text: {values[wrong[0]]!r:.60}.")
