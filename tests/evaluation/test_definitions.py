from __future__ import annotations

import pytest
import torch

from lit_hf import tasks
from lit_hf.evaluation.definitions import definition
from lit_hf.evaluation.entity_scores import tagging_metrics
from lit_hf.evaluation.spans import Reading, Span, Window
from lit_hf.evaluation.squad import SquadScorer
from lit_hf.task import Task
from lit_hf.tasks import QuestionAnswering, TextClassification

TAGS = ["O", "B-PER", "I-PER"]


def made(task: type[Task]) -> Task:
    bound = task()
    bound.labels = TAGS if task is tasks.TokenClassification else ["bad", "good"]
    return bound


OURS = [task for task in vars(tasks).values() if isinstance(task, type) and issubclass(task, Task) and task is not Task]


@pytest.mark.parametrize(
    "task",
    [
        *map(made, OURS),
        TextClassification(kind="regression"),
        TextClassification(kind="multi_label", labels=["a", "b"]),
        QuestionAnswering(unanswerable=True),
    ],
    ids=lambda task: type(task).__name__,
)
def test_whatever_can_choose_a_checkpoint_has_a_definition(task):
    assert [name for name in ("loss", *task.monitors) if not definition(name, task.definitions)] == []


def test_so_has_whatever_a_metric_with_several_values_returns():
    tagging = tagging_metrics(TAGS)
    tagging.update(torch.tensor([[1, 2]]), torch.tensor([[1, 2]]))
    squad = SquadScorer(unanswerable=True)
    for row, answers in enumerate((["a"], [])):
        squad.update([Window(row, 0, 1, None, "", answers)], [Reading(-1.0, [Span(0.0, 0, 1, "a")])])
    for metrics, task in ((tagging, tasks.TokenClassification()), (squad, QuestionAnswering(unanswerable=True))):
        values = metrics.compute()
        assert len(values) > 6
        assert [name for name in values if name != "entity_counts" and not definition(name, task.definitions)] == []


def test_a_name_that_is_spelt_out_comes_before_one_that_stands_for_many():
    assert definition("f1", {"f1": "one", "f1*": "many"}) == "one"
    assert definition("f1_PER", {"f1": "one", "f1*": "many"}) == "many"
    assert definition("own", {}) == ""
    assert definition("loss", {"loss": "of its own"}) == "of its own"
