"""Evaluation results for people: a confusion matrix as a table, and what guessing would reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table

MAX_LABELS_SHOWN = 12


def confusion_report(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> Iterator[RenderableType]:
    """Return the confusion matrix as a table, unless it is too large to read, and what guessing would reach."""
    if len(labels) <= MAX_LABELS_SHOWN:
        yield confusion_table(confusion, labels)
    label, share = majority(confusion, labels)
    yield f"majority class  {share:.4f}  (always {label!r})"


def majority(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> tuple[str, float]:
    """Return the most frequent class and its share: the accuracy of always guessing it.

    Args:
        confusion: Numbers of rows by [true class, predicted class].
        labels: Names of the classes.
    """
    sums = [sum(row) for row in confusion]
    top = max(range(len(sums)), key=sums.__getitem__)
    return labels[top], sums[top] / max(sum(sums), 1)


def confusion_table(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> Table:
    """Return a table of true classes (rows) against predicted ones (numbered columns), with each class's recall."""
    table = Table("", "true", box=box.SIMPLE, title="confusion matrix: true classes by predicted ones")
    for number in range(1, len(labels) + 1):
        table.add_column(str(number), justify="right")
    table.add_column("recall", justify="right")
    for index, (label, row) in enumerate(zip(labels, confusion, strict=True)):
        recall = f"{row[index] / sum(row):.3f}" if sum(row) else "-"
        table.add_row(str(index + 1), label, *(str(count) if count else "." for count in row), recall)
    return table
