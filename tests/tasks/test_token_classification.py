import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoModelForTokenClassification, AutoTokenizer

from lit_hf.data.tokenization import train_tokenizer
from lit_hf.errors import InputError
from lit_hf.tasks import TokenClassification

NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
WORDS = [["the", "plot", "of", "ann", "lee"], ["the", "film"], ["not", "ulm", "!"]]
TAGS = [["O", "O", "O", "B-PER", "I-PER"], ["O", "O"], ["O", "B-LOC", "O"]]


@pytest.fixture
def tokenizer(tiny_text_model):
    return AutoTokenizer.from_pretrained(tiny_text_model)


@pytest.fixture
def rows():
    return Dataset.from_dict({"tokens": WORDS, "ner_tags": TAGS})


def bound(tokenizer, rows, **settings):
    task = TokenClassification(**settings)
    task.bind(tokenizer, task.learn_labels(rows))
    return task


def batch_of(task, columns):
    encoded = task.encode(columns)
    return task.collator()([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])


def model_of(task, folder):
    torch.manual_seed(0)
    return AutoModelForTokenClassification.from_pretrained(folder, **task.model_kwargs()).eval()


def plain(batch):
    return {name: value for name, value in batch.items() if name not in ("word_starts", "words")}


def test_tags_are_learnt_outside_first_then_by_type(tokenizer, rows):
    assert bound(tokenizer, rows).labels == ["O", "B-LOC", "B-PER", "I-PER"]


@pytest.mark.parametrize("cell", [List(ClassLabel(names=NAMES)), List(Value("int64"))])
def test_numbers_are_ids(tokenizer, cell):
    ids = [[NAMES.index(tag) for tag in tags] for tags in TAGS]
    rows = Dataset.from_dict(
        {"tokens": WORDS, "ner_tags": ids}, features=Features({"tokens": List(Value("string")), "ner_tags": cell})
    )
    task = bound(tokenizer, rows, labels=NAMES if isinstance(cell.feature, Value) else None)
    assert task.labels == NAMES
    assert list(task.check(rows)) == []
    assert [tag for tag in task.encode(rows[:])["labels"][0] if tag != -100] == ids[0]


def test_declared_tags_in_another_order_than_the_data_s_are_refused():
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=["O", "B-X"]))})
    rows = Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[1]]}, features=features)
    with pytest.raises(InputError, match="order is B-X, O, but the ids of column 'ner_tags' stand for O, B-X"):
        TokenClassification(labels=["B-X", "O"]).learn_labels(rows)


def test_numbers_that_nothing_names_are_refused(tokenizer):
    with pytest.raises(InputError, match="the tags are numbers, and nothing says what they mean"):
        bound(tokenizer, Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[1]]}))


@pytest.mark.parametrize(
    ("align", "labels"),
    [
        # [CLS] the plot o ##f a ##n ##n l ##e ##e [SEP]
        ("first", [-100, 0, 0, 0, -100, 3, -100, -100, 4, -100, -100, -100]),
        ("all", [-100, 0, 0, 0, 0, 3, 4, 4, 4, 4, 4, -100]),
    ],
)
def test_labels_stand_on_the_pieces(tokenizer, rows, align, labels):
    task = bound(tokenizer, rows, labels=NAMES, align=align)
    encoded = task.encode(rows[:])
    pieces = ["[CLS]", "the", "plot", "o", "##f", "a", "##n", "##n", "l", "##e", "##e", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"][0]) == pieces
    assert encoded["labels"][0] == labels
    assert encoded["word_starts"][0] == [-100, 0, 1, 2, -100, 3, -100, -100, 4, -100, -100, -100]
    assert "words" not in encoded


def test_inputs_and_labels_equal_those_of_transformers_for_word_lists(minilm, shared_data):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    rows = Dataset.from_json(str(shared_data("wikiann_en") / "validation.jsonl"), split="train").select(range(1000))
    task = bound(tokenizer, rows)
    encoded = task.encode(rows[:])
    expected = tokenizer(list(rows["tokens"]), is_split_into_words=True, truncation=True)
    assert encoded["input_ids"] == expected["input_ids"]
    for index, tags in enumerate(rows["ner_tags"]):
        words = expected.word_ids(index)
        labels = [
            task.labels.index(tags[word]) if word is not None and word not in words[:place] else -100
            for place, word in enumerate(words)
        ]
        assert encoded["labels"][index] == labels


def test_a_byte_level_tokenizer_sees_words_with_their_blanks(rows):
    tokenizer = train_tokenizer(iter(["the plot of ann lee the film é é"]), 300)
    task = bound(tokenizer, rows)
    encoded = task.encode({"tokens": [["the", "é", "film"]], "ner_tags": [["O", "B-LOC", "O"]]})
    assert encoded["input_ids"][0] == tokenizer("the é film")["input_ids"]
    assert [word for word in encoded["word_starts"][0] if word != -100] == [0, 1, 2]


def test_a_batch_is_padded_and_its_loss_and_gradients_equal_transformers(tokenizer, rows, tiny_text_model):
    task = bound(tokenizer, rows)
    batch = batch_of(task, rows[:])
    assert batch["labels"].shape == batch["word_starts"].shape == batch["input_ids"].shape
    assert batch["word_starts"][1].tolist()[:4] == [-100, 0, 1, -100]
    assert set(batch["word_starts"][1].tolist()[4:]) == {-100}
    ours, theirs = model_of(task, tiny_text_model), model_of(task, tiny_text_model)
    loss, expected = task.forward(ours, batch).loss, theirs(**plain(batch)).loss
    loss.backward()
    expected.backward()
    assert loss.item() == expected.item()
    assert torch.equal(ours.classifier.weight.grad, theirs.classifier.weight.grad)


@pytest.mark.parametrize("align", ["first", "all"])
def test_metrics_are_over_words_however_pieces_are_labelled(tokenizer, rows, align):
    task = bound(tokenizer, rows, align=align)
    batch = batch_of(task, rows[:])
    wrong = batch["labels"].clamp(min=0)
    wrong[batch["word_starts"] == -100] = 1  # what other pieces say counts nowhere
    wrong[0, 5] = 0  # the first word of the person
    metrics = task.metrics()
    outputs = type("Outputs", (), {"logits": torch.nn.functional.one_hot(wrong, len(task.labels)).float()})
    task.update(metrics, outputs, batch)
    values = metrics.compute()
    assert values["accuracy"].item() == pytest.approx(0.9)
    assert values["f1"].item() == pytest.approx(0.5)
    assert values["f1_LOC"].item() == 1
    assert values["f1_PER"].item() == 0
    assert next(iter(task.monitors)) == "f1"
    assert set(task.monitors) == set(values) - {"entity_counts"}


def test_parts_of_speech_have_an_accuracy_only(tokenizer):
    task = bound(tokenizer, Dataset.from_dict({"tokens": [["the", "film"]], "ner_tags": [["DET", "NOUN"]]}))
    assert task.labels == ["DET", "NOUN"]
    assert dict(task.monitors) == {"accuracy": "max"}
    assert list(task.report({})) == []


def test_a_prediction_has_a_tag_for_each_word_and_the_entities(tokenizer, rows, tiny_text_model):
    task = bound(tokenizer, rows, labels=NAMES)
    model = model_of(task, tiny_text_model)
    batch = batch_of(task, {"tokens": WORDS})
    assert batch["words"] == WORDS
    predictions = task.predict(model, batch)
    probabilities = model(**plain(batch)).logits.softmax(-1)
    for row, (words, prediction) in enumerate(zip(WORDS, predictions, strict=True)):
        places = [place for place, word in enumerate(batch["word_starts"][row].tolist()) if word != -100]
        assert prediction["tags"] == [NAMES[index] for index in probabilities[row, places].argmax(-1).tolist()]
        assert len(prediction["tags"]) == len(words)
        for entity in prediction["entities"]:
            span = slice(entity["start"], entity["end"])
            assert entity["text"] == " ".join(words[span])
            assert all(tag.endswith(f"-{entity['type']}") for tag in prediction["tags"][span])
            assert entity["score"] == pytest.approx(probabilities[row, places].max(-1).values[span].mean().item())
    assert any(prediction["entities"] for prediction in predictions)


def test_words_that_are_cut_off_are_outside(tokenizer, rows, tiny_text_model):
    task = bound(tokenizer, rows, labels=["B-PER", "O"])
    model = model_of(task, tiny_text_model)
    model.classifier.bias.data[0] = 100.0
    (prediction,) = task.predict(model, batch_of(task, {"tokens": [["film"] * 100]}))
    kept = tokenizer.model_max_length - 2
    assert prediction["tags"] == ["B-PER"] * kept + ["O"] * (100 - kept)


def test_a_text_is_split_at_white_space(tokenizer, rows):
    task = bound(tokenizer, rows, labels=NAMES)
    texts = {"tokens": [" ".join(words) for words in WORDS], "ner_tags": [" ".join(tags) for tags in TAGS]}
    assert task.encode(texts) == task.encode(rows[:])
    assert list(task.check(Dataset.from_dict(texts))) == []
    assert bound(tokenizer, Dataset.from_dict(texts)).labels == bound(tokenizer, rows).labels


def test_every_fault_names_its_rows(tokenizer, rows):
    task = bound(tokenizer, rows)
    bad = Dataset.from_dict(
        {
            "tokens": [["the"], [], None, ["a", None], ["a", "b"], ["a"], [" "], ["a"]],
            "ner_tags": [["O"], [], None, ["O", "O"], ["O"], ["B-ORG"], ["O"], [None]],
        }
    )
    found = {(tuple(fault.rows), fault.column): (fault.what, fault.cure) for fault in task.check(bad)}
    assert found == {
        ((1, 2, 6), "tokens"): ("the row has no words.", "Fill them in or remove the row."),
        ((3,), "tokens"): ("this is no word: None.", "Every word is a text."),
        ((4,), "ner_tags"): ("the row has 2 words, but 1 tags.", "Every word needs one tag."),
        ((5, 7), "ner_tags"): (
            "'B-ORG' is not a tag.",
            "The tags are: O, B-LOC, B-PER, I-PER (ids 0 to 3). Name them all in task.labels.",
        ),
    }


def test_a_tag_named_twice_is_refused():
    with pytest.raises(InputError, match="a tag stands there twice"):
        TokenClassification(labels=["O", "O"])


def test_a_tokenizer_that_does_not_know_its_characters_is_refused(tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="Slow cannot say which word a piece belongs to"):
        TokenClassification().bind(Slow())
