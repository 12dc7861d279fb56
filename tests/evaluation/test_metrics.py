"""Every metric equals scikit-learn's, or SciPy's, on the same predictions."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from lit_hf.evaluation.metrics import MeanLoss, multi_label_metrics, regression_metrics, single_label_metrics


def in_batches(metrics, predictions, targets, size=7):
    for start in range(0, len(targets), size):
        metrics.update(predictions[start : start + size], targets[start : start + size])
    return {name: value.tolist() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("classes", [2, 5])
def test_single_label_metrics_equal_sklearn(classes):
    generator = torch.Generator().manual_seed(classes)
    probabilities = torch.randn(200, classes, generator=generator).softmax(-1)
    targets = torch.randint(classes, (200,), generator=generator)
    ours = in_batches(single_label_metrics(classes), probabilities, targets)
    true, predicted, scores = targets.numpy(), probabilities.argmax(-1).numpy(), probabilities.numpy().astype(float)
    scores /= scores.sum(-1, keepdims=True)
    expected = {
        "accuracy": sk.accuracy_score(true, predicted),
        "f1_macro": sk.f1_score(true, predicted, average="macro"),
        "f1_micro": sk.f1_score(true, predicted, average="micro"),
        "precision": sk.precision_score(true, predicted, average="macro"),
        "recall": sk.recall_score(true, predicted, average="macro"),
        "mcc": sk.matthews_corrcoef(true, predicted),
        "auroc": sk.roc_auc_score(true, scores[:, 1] if classes == 2 else scores, multi_class="ovr"),
    }
    assert ours.pop("confusion_matrix") == sk.confusion_matrix(true, predicted).tolist()
    assert ours == pytest.approx(expected, abs=1e-6)


def test_multi_label_metrics_equal_sklearn():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(200, 4, generator=generator)
    targets = torch.randint(2, (200, 4), generator=generator)
    ours = in_batches(multi_label_metrics(4), probabilities, targets)
    true, predicted = targets.numpy(), (probabilities >= 0.5).int().numpy()
    assert ours.pop("confusion_matrix") == sk.multilabel_confusion_matrix(true, predicted).tolist()
    expected = {
        "accuracy": sk.accuracy_score(true, predicted),
        "f1_macro": sk.f1_score(true, predicted, average="macro"),
        "f1_micro": sk.f1_score(true, predicted, average="micro"),
        "precision": sk.precision_score(true, predicted, average="macro"),
        "recall": sk.recall_score(true, predicted, average="macro"),
        "mcc": sk.matthews_corrcoef(true.ravel(), predicted.ravel()),
        "auroc": sk.roc_auc_score(true, probabilities.numpy(), average="macro"),
    }
    assert ours == pytest.approx(expected, abs=1e-6)


def test_regression_metrics_equal_scipy():
    generator = np.random.default_rng(0)
    targets = generator.normal(size=100).astype(np.float32)
    predictions = (targets + generator.normal(size=100)).astype(np.float32)
    ours = in_batches(regression_metrics(), torch.from_numpy(predictions), torch.from_numpy(targets))
    expected = {
        "pearson": stats.pearsonr(predictions, targets).statistic,
        "spearman": stats.spearmanr(predictions, targets).statistic,
        "mse": sk.mean_squared_error(targets, predictions),
    }
    assert ours == pytest.approx(expected, abs=1e-5)


def test_the_mean_loss_weighs_batches_by_their_targets_and_keeps_nan():
    loss = MeanLoss()
    loss.update(torch.tensor(0.7), 2)
    loss.update(torch.tensor(0.6), 3)
    assert loss.compute().item() == pytest.approx(0.64)
    loss.update(torch.tensor(float("nan")), 1)
    assert loss.compute().isnan()
