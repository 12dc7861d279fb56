"""Label names that a dataset's features hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_hf.errors import InputError, Problem

if TYPE_CHECKING:
    from datasets import Features


def class_names(features: Features, column: str) -> list[str] | None:
    """Return the names, by id, of a column of ClassLabels or of lists of them; None if it holds something else."""
    from datasets import ClassLabel

    feature = features.get(column)
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def check_order(declared: Sequence[str], names: Sequence[str], column: str) -> None:
    """Refuse declared labels that give the names of a ClassLabel other ids; other names are new ones for its ids.

    Args:
        declared: What `task.labels` says, by id.
        names: What the column's feature says, by id.
        column: The column.

    Raises:
        InputError: If all names are declared, but not in this order.
    """
    if set(names) <= set(declared) and list(declared[: len(names)]) != list(names):
        what = f"the order is {', '.join(declared)}, but the ids of column {column!r} stand for {', '.join(names)}."
        raise InputError(Problem("task.labels", what, "Leave task.labels out, or give them in the column's order."))
