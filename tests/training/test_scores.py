import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.task import Sizes
from lit_hf.tasks import TextClassification
from lit_hf.training.scores import Scores


@pytest.fixture
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


@pytest.fixture
def model(task, tiny_text_model):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(tiny_text_model, **task.model_kwargs()).eval()


def rows(task, count):
    texts = ["good film", "bad plot and very dull", "great"][:count]
    encoded = task.encode({"text": texts, "label": [1, 0, 1][:count]})
    return [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]


def scored(task, model, *parts, filler=False):
    scores = Scores(task.metrics())
    with torch.no_grad():
        for part in parts:
            scores.add(task, model, task.collator()(part), Sizes(len(part), 0, 0, len(part), len(part)))
        if filler:
            scores.add(task, model, task.collator()(parts[0]), Sizes(0, 0, 0, 0, 0))
    return scores


def numbers(scores):
    return {name: value.tolist() for name, value in scores.compute().items()}


def test_batches_count_by_their_targets_and_fillers_do_not(task, model):
    whole = numbers(scored(task, model, rows(task, 3)))
    assert whole["loss"] == pytest.approx(task.forward(model, task.collator()(rows(task, 3))).loss.item())
    in_parts = numbers(scored(task, model, rows(task, 3)[:2], rows(task, 3)[2:], filler=True))
    assert in_parts["loss"] == pytest.approx(whole["loss"], abs=1e-6)
    assert in_parts["accuracy"] == whole["accuracy"]
    assert in_parts["confusion_matrix"] == whole["confusion_matrix"]


def test_a_reset_forgets_all_batches(task, model):
    scores = scored(task, model, rows(task, 1))
    scores.reset()
    with torch.no_grad():
        scores.add(task, model, task.collator()(rows(task, 3)[1:2]), Sizes(1, 0, 0, 1, 1))
    assert numbers(scores) == numbers(scored(task, model, rows(task, 3)[1:2]))
