"""Scores of generated text against references: ROUGE, BLEU and chrF, each by its original scorer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_hf.evaluation.first_rank import on_first_rank

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class TextScores(Metric):
    """Scores of all texts of all ranks together, computed once, on the first rank.

    Args:
        names: Which: `rouge`, `bleu`, `chrf`.

    Attributes:
        predictions: Generated texts.
        references: For each of them, the texts that would have been right.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.predictions: list[str] = []
        self.references: list[list[str]] = []

    def update(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Add texts, and the references of each."""
        self.predictions += predictions
        self.references += map(list, references)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores by name; NaN where there is no text."""
        scores = on_first_rank((self.predictions, self.references), self._score)
        return {name: torch.tensor(value, device=self.device) for name, value in scores.items()}

    def _score(self, parts: Sequence[tuple[list[str], list[list[str]]]]) -> dict[str, float]:
        predictions, references = ([text for part in parts for text in part[side]] for side in (0, 1))
        return text_scores(self.names, predictions, references)  # type: ignore[arg-type]

    def reset(self) -> None:
        """Forget all texts."""
        super().reset()
        self.predictions, self.references = [], []


def score_names(names: Sequence[str]) -> list[str]:
    """Return the names of the scores that `text_scores` computes for these metrics."""
    return [score for name in names for score in (ROUGE if name == "rouge" else (name,))]


def text_scores(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Score texts.

    Args:
        names: Which scores: `rouge` (0 to 1), `bleu` and `chrf` (0 to 100).
        predictions: Generated texts.
        references: One or more references for each.

    Returns:
        The scores by name; NaN where there is no text.
    """
    if not predictions:
        return dict.fromkeys(score_names(names), float("nan"))
    scores: dict[str, float] = {}
    for name in names:
        if name == "rouge":
            scores |= _rouge(predictions, references)
        else:
            scores[name] = _sacre(name, predictions, references)
    return scores


def _rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the mean F-measures, with stemming; of several references the nearest one counts.

    The sentences of `rougeLsum` are the lines of the text.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=True)
    rows = [scorer.score_multi(targets, text) for text, targets in zip(predictions, references, strict=True)]
    return {name: sum(row[name].fmeasure for row in rows) / len(rows) for name in ROUGE}


def _sacre(name: str, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    from sacrebleu.metrics import BLEU, CHRF

    most = max(map(len, references))
    # sacrebleu wants one list for all first references, one for all second ones; None where a text has fewer
    streams = [[row[index] if index < len(row) else None for row in references] for index in range(most)]
    metric = BLEU() if name == "bleu" else CHRF()
    return metric.corpus_score(list(predictions), streams).score  # type: ignore[arg-type]
