"""Text classification and regression: a text, or a pair of texts, to a label, several labels or a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn import functional

from lit_hf.data.cells import Cells
from lit_hf.data.labels import check_order, class_names
from lit_hf.data.texts import text_problems
from lit_hf.errors import InputError, Problem, nearest, raise_problems
from lit_hf.evaluation.definitions import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from lit_hf.evaluation.report import confusion_report
from lit_hf.task import Batch, Examples, Outputs, RowProblem, Task, named_labels

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import RenderableType
    from torch import Tensor
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel

KINDS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class TextClassification(Task):
    """Give a text, or a pair of texts, a label, several labels or a number.

    Args:
        text: Column with the text; two columns are a pair (premise and hypothesis), unless `join` is given.
        label: Column with the label: names or ids; lists of them for `multi_label`, or one column of 0 and 1 a label.
        labels: Label names in the order of their ids; taken from the training data where they are left out.
        kind: One label a row, any number of labels a row, or a number (regression).
        join: Join the text columns to one text with this between them, instead of a pair.
        class_weights: Weight of each class in the loss, by name; `balanced` weighs by inverse frequency.
        label_smoothing: Share of the target's probability that is spread over all classes, 0 to 1.
    """

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    peft_task_type = "SEQ_CLS"

    def __init__(
        self,
        text: str | list[str] = "text",
        label: str | list[str] = "label",
        labels: list[str] | None = None,
        kind: Literal["single_label", "multi_label", "regression"] = "single_label",
        join: str | None = None,
        class_weights: dict[str, float] | Literal["balanced"] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.text = [text] if isinstance(text, str) else list(text)
        self.label = [label] if isinstance(label, str) else list(label)
        self.kind = kind
        self.join = join
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        # a ClassLabel's integers are ids even where its names are digits too; values that labels were learnt from are
        # names, also where they are integers
        self.given_as: Literal["ids", "names", "either"] = "either"
        self.labels = list(self.label) if labels is None and len(self.label) > 1 else labels
        raise_problems(self._setting_problems())

    def _setting_problems(self) -> Iterator[Problem]:
        if len(self.text) > 2 and self.join is None:
            yield Problem("task.text", f"{len(self.text)} columns are more than a pair.", 'Join them: task.join: " ".')
        if len(self.label) > 1 and self.kind != "multi_label":
            yield Problem("task.label", "several columns need several labels a row.", "Set task.kind: multi_label.")
        if self.kind != "single_label" and (self.class_weights or self.label_smoothing):
            yield Problem("task.kind", "class_weights and label_smoothing are for single_label only.", "Remove them.")
        if not 0 <= self.label_smoothing < 1:
            yield Problem("task.label_smoothing", f"{self.label_smoothing} is not in [0, 1).")
        if self.labels is not None and len(set(self.labels)) < len(self.labels):
            yield Problem("task.labels", "a name stands there twice.", "Give each label once, in the order of the ids.")

    @property
    def input_columns(self) -> list[str]:
        """The text columns."""
        return self.text

    @property
    def target_columns(self) -> list[str]:
        """The label columns."""
        return self.label

    def state_dict(self) -> dict[str, Any]:
        """Return the labels, how the data gives them, and the weights of the classes."""
        return {"labels": self.labels, "given_as": self.given_as, "class_weights": self.class_weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.labels, self.given_as, self.class_weights = state["labels"], state["given_as"], state["class_weights"]

    # labels

    def learn_labels(self, rows: Dataset) -> list[str] | None:
        """Return the names of a ClassLabel, or the values of the label column in their order.

        Raises:
            InputError: If the labels are numbers with fractions, there is only one, or `labels` has the names of a
                ClassLabel in another order.
        """
        if self.kind == "regression":
            return None
        names = class_names(rows.features, self.label[0]) if len(self.label) == 1 else None
        if names is not None:
            check_order(self.labels or names, names, self.label[0])
            self.given_as = "ids"
        elif self.labels is None:
            self.given_as = "names"
        self.labels = self.labels or names or self._values(rows)
        if len(self.labels) < 2 and self.kind == "single_label":
            raise InputError(
                Problem(
                    f"column {self.label[0]}",
                    f"there is only one label, {', '.join(self.labels)}, so there is nothing to tell apart.",
                    "Give rows of two classes or more, or name the labels in task.labels.",
                )
            )
        if self.class_weights == "balanced":
            counts = Counter(self._label_id(value) for value in Cells(rows, self.label[0]))
            total = sum(counts.values())
            self.class_weights = {
                name: total / (len(self.labels) * max(counts[index], 1)) for index, name in enumerate(self.labels)
            }
        if isinstance(self.class_weights, dict):
            raise_problems(
                Problem("task.class_weights", f"there is no label {name!r}.", nearest(name, self.labels))
                for name in self.class_weights
                if name not in self.labels
            )
        return self.labels

    def _values(self, rows: Dataset) -> list[str]:
        cells = (value if isinstance(value, list) else [value] for value in Cells(rows, self.label[0]))
        values = {item for cell in cells for item in cell if item is not None and item != "" and item == item}
        if any(isinstance(value, float) and not value.is_integer() for value in values):
            raise InputError(
                Problem(
                    f"column {self.label[0]}",
                    "the labels are numbers with fractions, so they are no classes.",
                    "For regression set task.kind: regression.",
                )
            )
        numeric = all(isinstance(value, int | float) for value in values)
        return [_name(value) for value in sorted(values, key=None if numeric else str)]

    def _label_id(self, value: Any) -> int | None:
        """Return the id of a label given as name or id, or None if there is no such label."""
        labels = self.labels or []
        name = _name(value)
        if self.given_as != "ids" and name in labels:
            return labels.index(name)
        is_id = self.given_as != "names" and name.isdecimal() and int(name) < len(labels)
        return int(name) if is_id else None

    # rows

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find text that is missing or empty, and labels that are missing or unknown."""
        for column in self.text:
            yield from text_problems(Cells(rows, column), column, may_be_blank=bool(self.join))
        if set(self.label) <= set(rows.column_names):
            for column in self.label:
                yield from self._label_problems(column, Cells(rows, column))

    def _label_problems(self, column: str, values: Iterable[Any]) -> Iterator[RowProblem]:
        absent, unknown = [], {}
        is_known = lru_cache(maxsize=1024, typed=True)(self._is_known)  # values are few, and rows many
        for index, value in enumerate(values):
            if value is None or value == "" or (self.kind == "regression" and value != value):
                absent.append(index)
            elif not (is_known if isinstance(value, str | int | float) else self._is_known)(value):
                unknown[index] = value
        if absent:
            yield RowProblem(absent, column, "the label is missing.", "Fill it in or remove the row.")
        if unknown:
            rows = list(unknown)
            yield RowProblem(rows, column, f"{unknown[rows[0]]!r:.60} is not a label.", self._label_cure())

    def _is_known(self, value: Any) -> bool:
        if self.kind == "regression":
            return _is_number(value)
        if len(self.label) > 1:
            return value in (0, 1)
        values = value if self.kind == "multi_label" and isinstance(value, list) else [value]
        return all(self._label_id(item) is not None for item in values)

    def _label_cure(self) -> str:
        if self.kind == "regression":
            return "Regression needs numbers."
        if len(self.label) > 1:
            return "A label column holds 0 or 1."
        names = self.labels or []
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        return f"The labels are: {shown} (ids 0 to {len(names) - 1}). Name them all in task.labels."

    def encode(self, examples: Examples) -> Examples:
        """Tokenize the text, or the pair of texts, and turn the labels to ids, multi-hot vectors or numbers."""
        columns = [examples[column] for column in self.text]
        if self.join is not None:
            columns = [[self.join.join(part or "" for part in parts) for parts in zip(*columns, strict=True)]]
        encoded = dict(self.tokenizer(*columns, truncation=True))
        if all(column in examples for column in self.label):
            encoded["labels"] = self._targets([examples[column] for column in self.label])
        return encoded

    def _targets(self, columns: list[list[Any]]) -> list[Any]:
        if self.kind == "regression":
            return [float(value) for value in columns[0]]
        if self.kind == "single_label":
            return [self._label_id(value) for value in columns[0]]
        if len(columns) > 1:
            return [[float(value) for value in values] for values in zip(*columns, strict=True)]
        hot = np.zeros((len(columns[0]), len(self.labels or [])), dtype=np.float32)
        for row, values in enumerate(columns[0]):
            for value in values:
                hot[row, self._label_id(value)] = 1.0
        return hot.tolist()

    def full_row(self, length: int) -> dict[str, Any]:
        """Return a text with the first label, or with none of several, or the number 0."""
        labels = {"single_label": 0, "regression": 0.0}.get(self.kind, [0.0] * len(self.labels or []))
        return {"input_ids": [0] * length, "labels": labels}

    # model

    def model_kwargs(self) -> dict[str, Any]:
        """Return the number and names of the labels, and which loss the model computes."""
        labels = {"num_labels": 1} if self.kind == "regression" else named_labels(self.labels or [])
        return {**labels, "problem_type": KINDS[self.kind]}

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the model's output; the loss is its own unless classes are weighted or labels smoothed.

        Weighted losses are summed and divided by the rows, not by the weights, so that the loss does not depend on how
        rows make batches.
        """
        if not (self.class_weights or self.label_smoothing):
            return model(**batch)
        outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
        outputs.loss = functional.cross_entropy(
            outputs.logits.float(),
            batch["labels"],
            weight=self._weights(outputs.logits.device),
            label_smoothing=self.label_smoothing,
            reduction="none",
        ).mean()
        return outputs

    def _weights(self, device: torch.device) -> Tensor | None:
        if not isinstance(self.class_weights, dict):
            return None
        return torch.tensor([self.class_weights.get(name, 1.0) for name in self.labels or []], device=device)

    def metrics(self) -> MetricCollection:
        """Return accuracy, F1 and their like, or correlations for regression."""
        # prediction needs no metrics, and importing them takes two seconds
        from lit_hf.evaluation.metrics import multi_label_metrics, regression_metrics, single_label_metrics

        if self.kind == "regression":
            return regression_metrics()
        build = single_label_metrics if self.kind == "single_label" else multi_label_metrics
        return build(len(self.labels or []))

    @property
    def definitions(self) -> Mapping[str, str]:
        """What the metrics of the kind are."""
        return {"single_label": SINGLE_LABEL, "multi_label": MULTI_LABEL, "regression": REGRESSION}[self.kind]

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """All single numbers, first accuracy, or micro F1 for several labels a row.

        For regression first Pearson's correlation: torchmetrics does not say that more of it is better.
        """
        if self.kind == "regression":
            return {"pearson": "max", "spearman": "max", "mse": "min"}
        best: Literal["accuracy", "f1_micro"] = "accuracy" if self.kind == "single_label" else "f1_micro"
        return {best: "max", **super().monitors}

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add a batch's probabilities, or its numbers, to the metrics."""
        targets = batch["labels"]
        metrics.update(self._scores(outputs.logits), targets if self.kind == "regression" else targets.long())

    def _scores(self, logits: Tensor) -> Tensor:
        """Return probabilities [rows, labels], or predicted numbers [rows], in float32."""
        logits = logits.detach().float()
        if self.kind == "regression":
            return logits.squeeze(-1)
        return logits.softmax(-1) if self.kind == "single_label" else logits.sigmoid()

    def report(self, results: Mapping[str, Any]) -> Iterator[RenderableType]:
        """Return the confusion matrix, and the accuracy of guessing, where a row has one label."""
        if self.kind == "single_label":
            yield from confusion_report(results["confusion_matrix"], self.labels or [])

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return `label`, `score` and all `scores` a row; `labels` for several labels; `score` alone for a number."""
        rows = self._scores(model(**batch).logits).tolist()
        if self.kind == "regression":
            return [{"score": score} for score in rows]
        names = self.labels or []
        if self.kind == "multi_label":
            return [
                {
                    "labels": [name for name, score in zip(names, scores, strict=True) if score >= 0.5],
                    "scores": dict(zip(names, scores, strict=True)),
                }
                for scores in rows
            ]
        return [
            {"label": names[int(np.argmax(row))], "score": max(row), "scores": dict(zip(names, row, strict=True))}
            for row in rows
        ]


def _name(value: Any) -> str:
    """Return a label's name: text as it is, a whole number without a fraction, booleans as 0 and 1."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    return str(value)


def _is_number(value: Any) -> bool:
    try:
        return np.isfinite(float(value)).item()
    except (TypeError, ValueError):
        return False
