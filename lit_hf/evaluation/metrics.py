"""The metrics of classification and regression, from torchmetrics: summed over batches and ranks, computed once."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MulticlassPrecision,
    MulticlassRecall,
    MultilabelAUROC,
    MultilabelConfusionMatrix,
    MultilabelExactMatch,
    MultilabelF1Score,
    MultilabelMatthewsCorrCoef,
    MultilabelPrecision,
    MultilabelRecall,
)


class MeanLoss(Metric):
    """The mean loss over targets of all batches and ranks; NaN stays NaN.

    torchmetrics' own MeanMetric either drops NaN or, with `nan_strategy="disable"`, ignores the weights (1.9).
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    targets: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("targets", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, loss: Tensor, targets: int | Tensor) -> None:
        """Add a batch whose loss is a mean over that many targets."""
        self.total += loss.float() * targets
        self.targets += targets

    def compute(self) -> Tensor:
        """Return the mean; NaN where there was no target."""
        return self.total / self.targets


def single_label_metrics(num_labels: int) -> MetricCollection:
    """Return metrics of one label a row; update with probabilities [rows, num_labels] and label ids [rows].

    `accuracy` is over rows; `f1_macro`, `precision`, `recall` and `auroc` (one against the rest) are means over
    classes, each class counting the same; `f1_micro` is over rows; `mcc` is the Matthews correlation coefficient;
    `confusion_matrix[i, j]` counts rows of class i that were predicted as class j.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_labels, average="micro"),
        "f1_macro": MulticlassF1Score(num_labels, average="macro"),
        "f1_micro": MulticlassF1Score(num_labels, average="micro"),
        "precision": MulticlassPrecision(num_labels, average="macro"),
        "recall": MulticlassRecall(num_labels, average="macro"),
        "mcc": MulticlassMatthewsCorrCoef(num_labels),
        "auroc": MulticlassAUROC(num_labels, average="macro"),
        "confusion_matrix": MulticlassConfusionMatrix(num_labels),
    }
    return MetricCollection(metrics)


def multi_label_metrics(num_labels: int) -> MetricCollection:
    """Return metrics of any number of labels a row; update with probabilities and 0 or 1, both [rows, num_labels].

    A label is predicted from probability 0.5 on. `accuracy` counts rows whose labels are all right; the other names
    mean what they mean in `single_label_metrics`; `confusion_matrix` is [num_labels, 2, 2].
    """
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MultilabelExactMatch(num_labels),
        "f1_macro": MultilabelF1Score(num_labels, average="macro"),
        "f1_micro": MultilabelF1Score(num_labels, average="micro"),
        "precision": MultilabelPrecision(num_labels, average="macro"),
        "recall": MultilabelRecall(num_labels, average="macro"),
        "mcc": MultilabelMatthewsCorrCoef(num_labels),
        "auroc": MultilabelAUROC(num_labels, average="macro"),
        "confusion_matrix": MultilabelConfusionMatrix(num_labels),
    }
    return MetricCollection(metrics)


def regression_metrics() -> MetricCollection:
    """Return Pearson's and Spearman's correlation and the mean squared error; update with two [rows] tensors."""
    return MetricCollection({"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef(), "mse": MeanSquaredError()})
