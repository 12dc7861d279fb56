"""Evaluation results for people: a confusion matrix as a table, and what guessing would reach."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table


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
    """Return a table of true classes (rows) against predicted ones (columns), with each class's recall."""
    table = Table(title="confusion matrix: true (rows), predicted (columns)", title_justify="left")
    table.add_column("")
    for label in labels:
        table.add_column(label, justify="right", overflow="fold")
    table.add_column("recall", justify="right")
    for index, (label, row) in enumerate(zip(labels, confusion, strict=True)):
        recall = f"{row[index] / sum(row):.3f}" if sum(row) else "-"
        table.add_row(label, *(str(count) if count else "." for count in row), recall)
    return table
