import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from lit_hf.data.encoding import encode
from lit_hf.tasks import MultipleChoice

SWAG = {
    "sent1": ["the film was good", "the plot was dull"],
    "sent2": ["and very", "and not"],
    "ending0": ["fine", "great"],
    "ending1": ["poor", "very bad and dull"],
    "label": [0, 1],
}
RACE = {
    "context": ["the film was good", "the plot was dull"],
    "choices": [["fine", "poor", "bad"], ["great", "dull", "good"]],
    "label": ["A", "b"],
}
COLUMNS = {"context": "sent1", "question": "sent2", "choices": ["ending0", "ending1"]}


@pytest.fixture
def tokenizer(tiny_text_model):
    return AutoTokenizer.from_pretrained(tiny_text_model)


def bound(tokenizer, **settings):
    task = MultipleChoice(**settings)
    task.bind(tokenizer)
    return task


def batch_of(task, columns):
    encoded = task.encode(columns)
    return task.collator()([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])


def model_of(folder):
    torch.manual_seed(0)
    return AutoModelForMultipleChoice.from_pretrained(folder).eval()


def test_every_choice_is_a_pair_with_the_context(tokenizer):
    encoded = bound(tokenizer, **COLUMNS).encode(SWAG)
    assert [[tokenizer.decode(ids) for ids in row] for row in encoded["input_ids"]] == [
        ["[CLS] the film was good [SEP] and very fine [SEP]", "[CLS] the film was good [SEP] and very poor [SEP]"],
        [
            "[CLS] the plot was dull [SEP] and not great [SEP]",
            "[CLS] the plot was dull [SEP] and not very bad and dull [SEP]",
        ],
    ]
    assert encoded["labels"] == [0, 1]


@pytest.mark.parametrize("label", [[0, 1], ["0", "1"], [0.0, 1.0], ["A", "B"], ["a", "b "]])
def test_labels_are_numbers_or_letters(tokenizer, label):
    task = bound(tokenizer)
    columns = RACE | {"label": label}
    assert task.encode(columns)["labels"] == [0, 1]
    assert list(task.check(Dataset.from_dict(columns))) == []


def test_a_batch_s_loss_and_gradients_equal_transformers(tokenizer, tiny_text_model):
    task = bound(tokenizer)
    batch = batch_of(task, RACE)
    assert batch["input_ids"].shape[:2] == (2, 3)
    ours, theirs = model_of(tiny_text_model), model_of(tiny_text_model)
    pairs = [
        tokenizer([context] * 3, choices, padding=True, return_tensors="pt")
        for context, choices in zip(RACE["context"], RACE["choices"], strict=True)
    ]
    logits = [theirs(**{name: value[None] for name, value in pair.items()}).logits for pair in pairs]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor([0, 1]))
    loss = task.forward(ours, batch).loss
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(ours.classifier.weight.grad, theirs.classifier.weight.grad)


def test_accuracy_is_over_rows(tokenizer):
    task = bound(tokenizer)
    metrics = task.metrics()
    for logits, labels in (([[1.0, 0.0], [1.0, 0.0]], [0, 1]), ([[0.0, 1.0]], [1])):
        task.update(metrics, type("Outputs", (), {"logits": torch.tensor(logits)}), {"labels": torch.tensor(labels)})
    assert metrics.compute()["accuracy"].item() == pytest.approx(2 / 3)
    assert task.monitors == {"accuracy": "max"}


def test_a_prediction_names_the_choice_with_the_highest_score(tokenizer, tiny_text_model):
    task, model = bound(tokenizer), model_of(tiny_text_model)
    inputs = {name: values for name, values in RACE.items() if name != "label"}
    predictions = task.predict(model, batch_of(task, inputs))
    logits = model(**{name: value for name, value in batch_of(task, RACE).items() if name != "labels"}).logits
    for prediction, scores, choices in zip(predictions, logits.softmax(-1).tolist(), RACE["choices"], strict=True):
        assert prediction["scores"] == pytest.approx(scores)
        assert prediction["choice"] == scores.index(max(scores))
        assert prediction["text"] == choices[prediction["choice"]]
        assert prediction["score"] == max(prediction["scores"])


def test_a_long_context_is_cut_and_counted(tokenizer):
    rows = Dataset.from_dict(
        {"context": ["film " * 100, "film"], "choices": [["good", "bad"], ["a", "b"]], "label": [0, 1]}
    )
    encoded, lengths = encode(rows, bound(tokenizer), "train")
    assert tokenizer.decode(encoded[0]["input_ids"][1]).endswith("film [SEP] bad [SEP]")
    assert (lengths.longest, lengths.median, lengths.cut) == (64, 64, 1)


def test_every_fault_names_its_rows(tokenizer):
    bad = Dataset.from_dict(
        {
            "context": ["the film", "", None, "the plot", "the plot", "x"],
            "choices": [["a", "b"], ["a", "b"], ["a", "b"], ["a", "b", "c"], ["a", ""], None],
            "label": ["A", "C", None, "C", "?", "A"],
        }
    )
    found = {(tuple(fault.rows), fault.column): fault.what for fault in bound(tokenizer).check(bad)}
    assert found == {
        ((1, 2), "context"): "the text is missing or empty.",
        ((3, 5), "choices"): "the row has 3 choices, most rows have 2.",
        ((4,), "choices"): "a choice is missing, empty, or no text.",
        ((1, 2, 4, 5), "label"): "'C' is none of the 2 choices.",
    }


def test_one_choice_is_none(tokenizer):
    rows = Dataset.from_dict({"context": ["the film"], "choices": [["a"]]})
    (fault,) = bound(tokenizer).check(rows)
    assert fault.what == "1 choices are no choice."
