"""Precision, recall and F1 of entities as a metric: counts that are summed over batches and ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lit_hf.evaluation.entities import Entity, entity_types, find_entities, scores
from lit_hf.task import IGNORED


class EntityScores(Metric):
    """Scores of entities whose type and words are all right, micro-averaged and for each type, as seqeval has them.

    Args:
        labels: The tags, in the order of their ids.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    counts: Tensor

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = list(labels)
        self.types = entity_types(labels)
        self.add_state("counts", torch.zeros(len(self.types), 3, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch of sentences.

        Args:
            predictions: Ids of tags, shape [rows, tokens].
            targets: Ids of tags, shape [rows, tokens]; -100 where no word begins.
        """
        counts = torch.zeros_like(self.counts, device="cpu")
        for predicted, target in zip(predictions.tolist(), targets.tolist(), strict=True):
            words = [index for index, tag in enumerate(target) if tag != IGNORED]
            found, there = self._entities(predicted, words), self._entities(target, words)
            for column, entities in enumerate((found & there, found, there)):
                for entity in entities:
                    counts[self.types.index(entity.type), column] += 1
        self.counts += counts.to(self.counts.device)

    def _entities(self, ids: list[int], words: list[int]) -> set[Entity]:
        return set(find_entities([self.labels[ids[index]] for index in words]))

    def compute(self) -> dict[str, Tensor]:
        """Return `precision`, `recall` and `f1`, the same for each type (`f1_PER`), and the `entity_counts`.

        `entity_counts`, of shape [types, 3], holds the entities found rightly, found, and there.
        """
        overall = self._named(self.counts.sum(dim=0), "")
        by_type = [self._named(row, f"_{kind}") for kind, row in zip(self.types, self.counts, strict=True)]
        merged = {name: value for part in (overall, *by_type) for name, value in part.items()}
        return {**merged, "entity_counts": self.counts}

    def _named(self, row: Tensor, suffix: str) -> dict[str, Tensor]:
        values = scores(*row.tolist())
        names = ("precision", "recall", "f1")
        return {f"{name}{suffix}": torch.tensor(value) for name, value in zip(names, values, strict=True)}


def tagging_metrics(labels: Sequence[str]) -> MetricCollection:
    """Return the accuracy over words and, where the tags name entities, their scores.

    Update with ids of tags, predictions and targets both [rows, tokens]; the target is -100 where no word begins.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(len(labels), average="micro", ignore_index=IGNORED)
    }
    if entity_types(labels):
        metrics["entities"] = EntityScores(labels)
    return MetricCollection(metrics)
