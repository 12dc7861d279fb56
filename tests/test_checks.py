import shutil
from types import SimpleNamespace

import pytest

from lit_hf.checks import disk_problems, monitor_mode, monitor_problems, monitored
from lit_hf.tasks import TextClassification


@pytest.fixture
def task():
    return TextClassification(labels=["a", "b"])


def test_the_task_s_own_metric_is_monitored_unless_the_config_names_one(task):
    assert (monitored(task, None), monitored(task, "loss"), monitored(task, "val/mcc")) == ("accuracy", "loss", "mcc")


@pytest.mark.parametrize(("metric", "mode"), [("loss", "min"), ("accuracy", "max")])
def test_better_is_lower_for_the_loss_and_higher_for_accuracy(task, metric, mode):
    assert monitor_mode(task, metric) == mode


def test_better_is_lower_for_a_squared_error():
    task = TextClassification(kind="regression")
    assert (monitor_mode(task, "mse"), monitor_mode(task, "pearson")) == ("min", "max")


def test_a_metric_that_nothing_logs_is_refused_with_the_nearest(task):
    (problem,) = monitor_problems(task, "acuracy", has_validation=True, patience=None)
    assert problem.where == "monitor"
    assert problem.cure.startswith("Did you mean 'accuracy'?")


def test_a_matrix_cannot_be_monitored(task):
    assert list(monitor_problems(task, "confusion_matrix", has_validation=True, patience=None))


def test_patience_needs_a_validation_split(task):
    (problem,) = monitor_problems(task, "accuracy", has_validation=False, patience=2)
    assert problem.where == "patience"
    assert not list(monitor_problems(task, "accuracy", has_validation=True, patience=2))


def test_a_disk_that_is_too_small_is_told_with_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3_000_000_000))
    # three checkpoints of a weight and two moments, four bytes each: 36 bytes a parameter
    assert not list(disk_problems(tmp_path, trainable=80_000_000, total=80_000_000))
    (problem,) = disk_problems(tmp_path, trainable=100_000_000, total=100_000_000)
    assert "3.0 GB free" in problem.what
    assert "3.6 GB" in problem.what
