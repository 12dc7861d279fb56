import torch
from datasets import Dataset
from torchmetrics import MetricCollection
from transformers.utils import ModelOutput

from lit_hf.task import Task, named_labels, value_at


class Doubling(Task):
    auto_class = "AutoModel"
    pipeline_tag = "feature-extraction"
    input_columns = ["number"]
    target_columns = ["double"]

    def encode(self, examples):
        return {"number": examples["number"]}

    def predict(self, model, batch):
        return [{"double": value} for value in model(**batch).logits.tolist()]


def model(number, double=None):
    logits = number * 2
    return ModelOutput(loss=None if double is None else (logits - double).abs().mean(), logits=logits)


def test_the_least_task_trains_evaluates_and_predicts_by_its_defaults():
    task, batch = Doubling(), {"number": torch.tensor([1.0, 2.0]), "double": torch.tensor([2.0, 5.0])}
    assert task.forward(model, batch).loss.item() == 0.5
    assert task.evaluate(model, batch, MetricCollection({})).item() == 0.5
    assert task.predict(model, {"number": torch.tensor([3.0])}) == [{"double": 6.0}]
    assert (task.monitors, list(task.metrics()), task.model_kwargs()) == ({"loss": "min"}, [], {})
    assert list(task.check(Dataset.from_dict({"number": [1]}))) == []


def test_labels_come_back_from_the_state():
    task, other = Doubling(), Doubling()
    task.bind(tokenizer=None, labels=["no", "yes"])
    other.load_state_dict(task.state_dict())
    assert other.labels == ["no", "yes"]


def test_named_labels_are_what_a_model_config_holds():
    assert named_labels(["no", "yes"]) == {
        "num_labels": 2,
        "id2label": {0: "no", 1: "yes"},
        "label2id": {"no": 0, "yes": 1},
    }


def test_a_value_is_found_in_a_column_or_inside_of_one():
    row = {"a": {"b": {"c": 1}}, "a.b": 2, "n": None}
    assert [value_at(row, name) for name in ("a.b", "a.b.c", "n", "n.x", "z")] == [2, 1, None, None, None]
    assert value_at(row, "a.z", "none") == "none"
