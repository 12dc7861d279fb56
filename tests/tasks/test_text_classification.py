import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.errors import InputError
from lit_hf.tasks import TextClassification

TEXTS = ["good film", "bad film", "the plot was very dull", "great"]


@pytest.fixture
def tokenizer(tiny_text_model):
    return AutoTokenizer.from_pretrained(tiny_text_model)


def bound(tokenizer, rows, **settings):
    task = TextClassification(**settings)
    task.bind(tokenizer, task.learn_labels(rows))
    return task


def batch_of(task, rows):
    encoded = task.encode(rows.to_dict())
    return task.collator()([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])


def model_of(task, folder):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(folder, **task.model_kwargs()).eval()


@pytest.mark.parametrize(
    ("values", "names", "ids"),
    [
        (["pos", "neg", "pos", "neg"], ["neg", "pos"], [1, 0, 1, 0]),
        ([0, 1, 1, 2], ["0", "1", "2"], [0, 1, 1, 2]),
        ([5, 1, 3, 10], ["1", "3", "5", "10"], [2, 0, 1, 3]),
        ([True, False, True, True], ["0", "1"], [1, 0, 1, 1]),
        ([1.0, 0.0, 2.0, 0.0], ["0", "1", "2"], [1, 0, 2, 0]),
        (["1", "0", "1", "0"], ["0", "1"], [1, 0, 1, 0]),
    ],
)
def test_labels_are_learnt_from_the_values(tokenizer, values, names, ids):
    rows = Dataset.from_dict({"text": TEXTS, "label": values})
    task = bound(tokenizer, rows)
    assert task.labels == names
    assert task.encode(rows.to_dict())["labels"] == ids
    assert list(task.check(rows)) == []


def test_a_class_label_s_numbers_are_ids_even_where_its_names_are_digits(tokenizer):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["3", "2", "1", "0"])})
    rows = Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, 3]}, features=features)
    task = bound(tokenizer, rows)
    assert task.labels == ["3", "2", "1", "0"]
    assert task.encode(rows.to_dict())["labels"] == [0, 1, 2, 3]


@pytest.mark.parametrize("values", [[1, 0, 1, 0], ["1", "0", "1", "0"], ["good", "bad", "good", "bad"]])
def test_declared_labels_are_known_by_name_and_by_id(tokenizer, values):
    rows = Dataset.from_dict({"text": TEXTS, "label": values})
    task = bound(tokenizer, rows, labels=["bad", "good"])
    assert task.encode(rows.to_dict())["labels"] == [1, 0, 1, 0]
    assert task.model_kwargs()["id2label"] == {0: "bad", 1: "good"}


def test_declared_labels_in_another_order_than_the_data_s_are_refused():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_dict({"text": TEXTS, "label": [1, 0, 1, 0]}, features=features)
    with pytest.raises(InputError, match="order is good, bad, but the ids of column 'label' stand for bad, good"):
        TextClassification(labels=["good", "bad"]).learn_labels(rows)
    assert TextClassification(labels=["poor", "great"]).learn_labels(rows) == ["poor", "great"]


def test_faults_of_rows_name_the_rows_the_column_and_the_labels(tokenizer):
    rows = Dataset.from_dict({"text": ["good", "", None, "bad"], "label": ["a", None, "c", "b"]})
    task = TextClassification(labels=["a", "b"])
    empty, absent, unknown = task.check(rows)
    assert (list(empty.rows), empty.column) == ([1, 2], "text")
    assert (list(absent.rows), absent.column) == ([1], "label")
    assert (list(unknown.rows), unknown.what) == ([2], "'c' is not a label.")
    assert "a, b (ids 0 to 1)" in unknown.cure


def test_an_id_out_of_range_is_unknown(tokenizer):
    (problem,) = TextClassification(labels=["a", "b"]).check(Dataset.from_dict({"text": TEXTS, "label": [0, 1, 2, -1]}))
    assert list(problem.rows) == [2, 3]


def test_a_number_that_is_no_label_is_not_taken_for_an_id(tokenizer):
    task = bound(tokenizer, Dataset.from_dict({"text": TEXTS, "label": [1, 2, 3, 5]}))
    (problem,) = task.check(Dataset.from_dict({"text": TEXTS, "label": [1, 0, 5, 4]}))
    assert list(problem.rows) == [1, 3]


def test_one_label_alone_is_refused():
    with pytest.raises(InputError, match="only one label, a"):
        TextClassification().learn_labels(Dataset.from_dict({"text": TEXTS, "label": ["a"] * 4}))


def test_numbers_with_fractions_are_no_classes():
    rows = Dataset.from_dict({"text": TEXTS, "label": [0.5, 1.0, 2.0, 3.0]})
    with pytest.raises(InputError, match="regression"):
        TextClassification().learn_labels(rows)


def test_regression_needs_numbers():
    rows = Dataset.from_dict({"text": TEXTS, "label": ["1", "2.5", "x", "nan"]})
    (problem,) = TextClassification(kind="regression").check(rows)
    assert list(problem.rows) == [2, 3]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"text": ["a", "b", "c"]}, "task.text"),
        ({"label": ["a", "b"]}, "task.label"),
        ({"kind": "regression", "label_smoothing": 0.1}, "task.kind"),
        ({"label_smoothing": 1.5}, "task.label_smoothing"),
        ({"labels": ["a", "a"]}, "task.labels"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, where):
    with pytest.raises(InputError) as caught:
        TextClassification(**settings)
    assert caught.value.problems[0].where == where


def test_two_columns_are_a_pair_and_joined_columns_one_text(tokenizer):
    rows = {"a": ["good film"], "b": ["bad plot"]}
    pair, joined = TextClassification(text=["a", "b"]), TextClassification(text=["a", "b"], join=" and ")
    for task in (pair, joined):
        task.bind(tokenizer)
    assert tokenizer.decode(pair.encode(rows)["input_ids"][0]) == "[CLS] good film [SEP] bad plot [SEP]"
    assert tokenizer.decode(joined.encode(rows)["input_ids"][0]) == "[CLS] good film and bad plot [SEP]"


def test_text_is_cut_at_the_tokenizer_s_limit(tokenizer):
    tokenizer.model_max_length = 4
    task = TextClassification()
    task.bind(tokenizer)
    assert tokenizer.decode(task.encode({"text": ["good film and plot"]})["input_ids"][0]) == "[CLS] good film [SEP]"


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({}, {"text": TEXTS, "label": ["a", "b", "c", "a"]}),
        ({"kind": "regression"}, {"text": TEXTS, "label": [0.5, 1.5, 2.0, -1.0]}),
        ({"kind": "multi_label"}, {"text": TEXTS, "label": [["a"], [], ["a", "b"], ["c"]]}),
    ],
)
def test_loss_is_the_plain_model_s(tokenizer, tiny_text_model, settings, rows):
    rows = Dataset.from_dict(rows)
    task = bound(tokenizer, rows, **settings)
    model, batch = model_of(task, tiny_text_model), batch_of(task, rows)
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    losses = {
        "single_label": lambda: functional.cross_entropy(logits, batch["labels"]),
        "multi_label": lambda: functional.binary_cross_entropy_with_logits(logits, batch["labels"]),
        "regression": lambda: functional.mse_loss(logits.squeeze(-1), batch["labels"]),
    }
    assert task.forward(model, batch).loss.item() == pytest.approx(losses[task.kind]().item(), abs=1e-6)


def test_several_label_columns_hold_one_label_each(tokenizer):
    rows = Dataset.from_dict({"text": TEXTS, "toxic": [0, 1, 0, 1], "spam": [1, 1, 0, 0]})
    task = bound(tokenizer, rows, kind="multi_label", label=["toxic", "spam"])
    assert task.labels == ["toxic", "spam"]
    assert task.encode(rows.to_dict())["labels"] == [[0, 1], [1, 1], [0, 0], [1, 0]]


def test_lists_of_class_label_ids_are_named(tokenizer):
    features = Features({"text": Value("string"), "label": Sequence(ClassLabel(names=["x", "y"]))})
    rows = Dataset.from_dict({"text": TEXTS, "label": [[0], [1], [0, 1], []]}, features=features)
    task = bound(tokenizer, rows, kind="multi_label")
    assert (task.labels, task.encode(rows.to_dict())["labels"]) == (["x", "y"], [[1, 0], [0, 1], [1, 1], [0, 0]])


def test_balanced_weights_are_inverse_frequencies_and_weigh_the_loss(tokenizer, tiny_text_model):
    rows = Dataset.from_dict({"text": TEXTS, "label": ["a", "a", "a", "b"]})
    task = bound(tokenizer, rows, class_weights="balanced")
    assert task.class_weights == {"a": 4 / 6, "b": 2.0}
    model, batch = model_of(task, tiny_text_model), batch_of(task, rows)
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    losses = functional.cross_entropy(logits, batch["labels"], reduction="none")
    expected = (losses * torch.tensor([4 / 6, 4 / 6, 4 / 6, 2.0])).mean()
    assert task.forward(model, batch).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_weight_of_an_unknown_label_is_refused():
    rows = Dataset.from_dict({"text": TEXTS, "label": ["a", "a", "a", "b"]})
    with pytest.raises(InputError, match="there is no label 'c'"):
        TextClassification(class_weights={"a": 1.0, "c": 2.0}).learn_labels(rows)


def test_label_smoothing_is_torch_s(tokenizer, tiny_text_model):
    rows = Dataset.from_dict({"text": TEXTS, "label": ["a", "a", "a", "b"]})
    task = bound(tokenizer, rows, label_smoothing=0.2)
    model, batch = model_of(task, tiny_text_model), batch_of(task, rows)
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    expected = functional.cross_entropy(logits, batch["labels"], label_smoothing=0.2)
    assert task.forward(model, batch).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_metrics_are_updated_with_what_the_model_says(tokenizer, tiny_text_model):
    rows = Dataset.from_dict({"text": TEXTS, "label": ["a", "b", "a", "b"]})
    task = bound(tokenizer, rows)
    model, batch, metrics = model_of(task, tiny_text_model), batch_of(task, rows), task.metrics()
    task.evaluate(model, batch, metrics)
    predicted = model(**batch).logits.argmax(-1)
    assert metrics.compute()["accuracy"].item() == (predicted == batch["labels"]).float().mean().item()


@pytest.mark.parametrize(
    ("settings", "labels", "keys"),
    [
        ({}, ["a", "b", "c", "a"], {"label", "score", "scores"}),
        ({"kind": "multi_label"}, [["a"], ["b"], [], ["c"]], {"labels", "scores"}),
        ({"kind": "regression"}, [0.1, 0.2, 0.3, 0.4], {"score"}),
    ],
)
def test_predictions_are_one_dict_a_row_with_scores(tokenizer, tiny_text_model, settings, labels, keys):
    rows = Dataset.from_dict({"text": TEXTS, "label": labels})
    task = bound(tokenizer, rows, **settings)
    model = model_of(task, tiny_text_model)
    batch = batch_of(task, rows.remove_columns("label"))
    with torch.inference_mode():
        predictions = task.predict(model, batch)
        logits = model(**batch).logits
    assert [set(row) for row in predictions] == [keys] * 4
    if task.kind == "single_label":
        assert [row["label"] for row in predictions] == [task.labels[i] for i in logits.argmax(-1)]
        assert [row["score"] for row in predictions] == logits.softmax(-1).max(-1).values.tolist()


def test_state_brings_back_labels_and_weights():
    task = TextClassification(class_weights={"a": 2.0}, labels=["a", "b"])
    task.given_as = "ids"
    other = TextClassification()
    other.load_state_dict(task.state_dict())
    assert (other.labels, other.given_as, other.class_weights) == (["a", "b"], "ids", {"a": 2.0})


@pytest.mark.parametrize(
    ("kind", "first"), [("single_label", "accuracy"), ("multi_label", "f1_micro"), ("regression", "pearson")]
)
def test_the_metric_that_tells_the_best_checkpoint_comes_first(kind, first):
    task = TextClassification("text", kind=kind, labels=None if kind == "regression" else ["a", "b", "c"])
    assert next(iter(task.monitors.items())) == (first, "max")
    assert task.monitors.get("mse" if kind == "regression" else "loss") == "min"
