"""Exact match and F1 as the official SQuAD scorers compute them.

The formulas are those of `evaluate-v1.1.py` and `evaluate-v2.0.py` of https://rajpurkar.github.io/SQuAD-explorer/
(Rajpurkar et al., 2016 and 2018); scores are percentages, as theirs are.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor
from torchmetrics import Metric

from lit_hf.evaluation.first_rank import on_first_rank
from lit_hf.evaluation.spans import Reading, Window

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Scores(NamedTuple):
    """How well an answer fits, from 0 to 1.

    Attributes:
        exact_match: 1 if it is the same text, but for case, punctuation, articles and blanks.
        f1: The overlap of its words with the right ones.
    """

    exact_match: float
    f1: float


def normalize_answer(text: str) -> str:
    """Lower the case, and drop punctuation, articles and extra blanks.

    >>> normalize_answer("The  Eiffel-Tower!")
    'eiffeltower'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score_answer(prediction: str, answers: Sequence[str], *, unanswerable: bool = False) -> Scores:
    """Score an answer against the right ones; the one that fits best counts.

    Args:
        prediction: The answer; empty for "no answer".
        answers: The right answers.
        unanswerable: Score as SQuAD v2 does, where a question may have no right answer, and two empty answers agree.
    """
    if unanswerable:
        answers = [answer for answer in answers if normalize_answer(answer)] or [""]
    exact = max(float(normalize_answer(prediction) == normalize_answer(answer)) for answer in answers)
    return Scores(exact, max(_f1(prediction, answer, unanswerable) for answer in answers))


def _f1(prediction: str, answer: str, unanswerable: bool) -> float:
    predicted, right = normalize_answer(prediction).split(), normalize_answer(answer).split()
    if unanswerable and not (predicted and right):
        return float(predicted == right)
    same = sum((Counter(predicted) & Counter(right)).values())
    # 2PR / (P + R), with P = same / predicted and R = same / right
    return 2 * same / (len(predicted) + len(right)) if same else 0.0


def best_threshold(
    differences: Sequence[float], spoken: Sequence[float], silent: Sequence[float]
) -> tuple[float, float]:
    """Find the score difference from which on "no answer" is best said, as the official scorer does.

    Args:
        differences: Score of "no answer" less that of the best answer, one a question.
        spoken: How well the best answer does, 0 to 1.
        silent: How well "no answer" does, 0 or 1.

    Returns:
        The mean score that is reached, 0 to 1, and the threshold: differences above it mean "no answer".
    """
    current = best = float(sum(silent))
    threshold = min(differences) - 1.0
    for index in sorted(range(len(differences)), key=differences.__getitem__):
        current += spoken[index] - silent[index]
        if current > best:
            best, threshold = current, differences[index]
    return best / len(differences), threshold


class SquadScorer(Metric):
    """Exact match and F1 of rows that were read in windows, which may lie in any batch and on any rank.

    Keeps a row's best span and its right answers only. `compute` returns `exact_match` and `f1`; with `unanswerable`
    also both for `answerable_` and `unanswerable_` questions as far as there are any, and `best_f1`, which
    `best_f1_threshold` would reach; and the numbers of questions.

    Args:
        unanswerable: Score as SQuAD v2 does.
        threshold: A row has no answer where "no answer" scores by more than that above the best span.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, unanswerable: bool = False, threshold: float = 0.0) -> None:
        super().__init__()
        self.unanswerable = unanswerable
        self.threshold = threshold
        self._rows: dict[int, tuple[Reading, Sequence[str]]] = {}

    def update(self, windows: Iterable[Window], readings: Iterable[Reading]) -> None:
        """Add what was read in some windows."""
        for window, reading in zip(windows, readings, strict=True):
            self._add(window.row, reading, window.answers)

    def _add(self, row: int, reading: Reading, answers: Sequence[str]) -> None:
        before = [self._rows[row][0]] if row in self._rows else []
        self._rows[row] = (Reading.of_row([*before, reading], n_best=1), answers)

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._rows = {}

    def compute(self) -> dict[str, Tensor]:
        """Return the percentages and numbers over all rows of all ranks, by name."""
        numbers = on_first_rank(self._rows, self._score)
        return {name: torch.tensor(value, device=self.device) for name, value in numbers.items()}

    def _score(self, parts: Sequence[dict[int, tuple[Reading, Sequence[str]]]]) -> dict[str, float | int]:
        whole = SquadScorer(self.unanswerable, self.threshold)
        for rows in parts:
            for row, (reading, answers) in rows.items():
                whole._add(row, reading, answers)
        return _summary(list(whole._rows.values()), self.unanswerable, self.threshold)


def _summary(
    rows: Sequence[tuple[Reading, Sequence[str]]], unanswerable: bool, threshold: float
) -> dict[str, float | int]:
    if not rows:
        return {"exact_match": math.nan, "f1": math.nan, "questions": 0}
    readings, answers = zip(*rows, strict=True)
    texts = [reading.spans[0].text if reading.spans else "" for reading in readings]
    spoken = [score_answer(*pair, unanswerable=unanswerable) for pair in zip(texts, answers, strict=True)]
    if not unanswerable:
        return _means("", spoken)
    silent = [score_answer("", right, unanswerable=True) for right in answers]
    differences = [reading.null_difference for reading in readings]
    chosen = [
        none if difference > threshold else some
        for difference, some, none in zip(differences, spoken, silent, strict=True)
    ]
    parts = {
        "": chosen,
        "answerable_": [scores for scores, right in zip(chosen, answers, strict=True) if right],
        "unanswerable_": [scores for scores, right in zip(chosen, answers, strict=True) if not right],
    }
    best, at = best_threshold(differences, [scores.f1 for scores in spoken], [scores.f1 for scores in silent])
    values: dict[str, float | int] = {"best_f1": 100 * best, "best_f1_threshold": at}
    for prefix, part in parts.items():
        values |= _means(prefix, part) if part else {}
    return values


def _means(prefix: str, scores: Sequence[Scores]) -> dict[str, float | int]:
    """Return mean percentages and the number of questions; whole numbers are in the report only, not in the logs."""
    exact, f1 = (100 * sum(values) / len(scores) for values in zip(*scores, strict=True))
    return {f"{prefix}exact_match": exact, f"{prefix}f1": f1, f"{prefix}questions": len(scores)}


def squad_report(results: Mapping[str, Any], threshold: float) -> Iterator[RenderableType]:
    """Return a table of the questions with and without answer, and the threshold at which F1 would be best."""
    table = Table("questions", box=box.SIMPLE)
    for name in ("number", "exact match", "F1"):
        table.add_column(name, justify="right")
    for name, prefix in (("answerable", "answerable_"), ("unanswerable", "unanswerable_"), ("all", "")):
        if number := results.get(f"{prefix}questions"):
            table.add_row(name, str(number), *(f"{results[prefix + key]:.2f}" for key in ("exact_match", "f1")))
    yield table
    if "best_f1" in results:
        best, at = results["best_f1"], results["best_f1_threshold"]
        yield f"best F1  {best:.2f}  (with task.null_threshold {at:.2f}; here it is {threshold:.2f})"
