"""Label names that a dataset's features hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import Features


def class_names(features: Features, column: str) -> list[str] | None:
    """Return the names, by id, of a column of ClassLabels or of lists of them; None if it holds something else."""
    from datasets import ClassLabel

    feature = features.get(column)
    feature = getattr(feature, "feature", feature)
    return list(feature.names) if isinstance(feature, ClassLabel) else None
