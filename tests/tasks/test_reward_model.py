import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.tasks import RewardModel
from tests import preferences

ROWS = {"chosen": ["yes good day", "yes"], "rejected": ["no", "no bad poor night"]}


def bound(**settings):
    task = RewardModel(**settings)
    task.bind(preferences.tokenizer())
    return task


def batch_of(task, rows):
    encoded = task.encode(rows)
    return task.collator()([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])


@pytest.fixture
def model():
    torch.manual_seed(0)
    words = preferences.tokenizer()
    config = AutoConfig.for_model(
        **preferences.MODEL, vocab_size=len(words), pad_token_id=words.pad_token_id, num_labels=1
    )
    return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.mark.parametrize("margin", [None, "better"])
def test_loss_and_gradients_are_those_of_bradley_and_terry_on_texts_one_by_one(model, margin):
    task = bound(margin=margin)
    rows = ROWS | ({"better": [0.5, 2]} if margin else {})
    task.forward(model, batch_of(task, rows)).loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    losses = []
    for index, (chosen, rejected) in enumerate(zip(*ROWS.values(), strict=True)):
        scores = [model(**task.tokenizer(text, return_tensors="pt")).logits[0, 0] for text in (chosen, rejected)]
        better = torch.sigmoid(scores[0] - scores[1] - ([0.5, 2.0][index] if margin else 0))
        losses.append(-torch.log(better))
    expected = sum(losses) / 2
    expected.backward()
    assert task.forward(model, batch_of(task, rows)).loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


def test_encoding_is_the_tokenizer_s_own_or_the_template_s():
    task = bound()
    encoded = task.encode(ROWS)
    assert task.tokenizer.decode(encoded["input_ids"][0]) == "yes good day no"
    assert encoded["chosen_length"] == [3, 1]
    messages = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "yes"}]
    assert task.tokenizer.decode(task.encode({"chosen": [messages]})["input_ids"][0]) == (
        "<user> say <end> <assistant> yes <end>"
    )
    joined = bound(prompt="prompt").encode({"prompt": ["say it "], "chosen": ["yes"]})
    assert task.tokenizer.decode(joined["input_ids"][0]) == "say it yes"


def test_margins_are_numbers():
    rows = Dataset.from_dict(ROWS | {"better": ["much", "a bit"]})
    (fault,) = bound(margin="better").check(rows)
    assert (list(fault.rows), fault.column) == ([0, 1], "better")


def test_metrics_and_predictions_are_the_model_s_scores(model):
    task = bound()
    metrics = task.metrics()
    with torch.inference_mode():
        task.evaluate(model, batch_of(task, ROWS), metrics)
        chosen = task.predict(model, batch_of(task, {"chosen": ROWS["chosen"]}))
        rejected = task.predict(model, batch_of(task, {"chosen": ROWS["rejected"]}))
    margins = [one["score"] - other["score"] for one, other in zip(chosen, rejected, strict=True)]
    computed = metrics.compute()
    assert computed["margin"].item() == pytest.approx(sum(margins) / 2, abs=1e-6)
    assert computed["accuracy"].item() == sum(margin > 0 for margin in margins) / 2
    assert list(task.monitors) == ["accuracy", "margin"]
    assert set(task.monitors) < set(computed)


def test_of_a_long_text_the_answer_stays_and_the_start_of_the_prompt_is_cut():
    task = bound(prompt="prompt")
    rows = {"prompt": ["say " * 40 + "it "], "chosen": ["yes good"], "rejected": ["no"]}
    (ids,), (end,) = task.encode(rows).values()
    assert task.tokenizer.decode(ids[:end]) == "say " * 29 + "it yes good"
    assert task.tokenizer.decode(ids[end:]) == "say " * 30 + "it no"

    turns = [{"role": "user", "content": "say " * 40}, {"role": "assistant", "content": "yes good"}]
    (ids,) = bound().encode({"chosen": [turns]})["input_ids"]
    assert task.tokenizer.decode(ids) == "say " * 27 + "<end> <assistant> yes good <end>"


def test_the_exported_tokenizer_cuts_in_the_same_way(tmp_path):
    text = "say " * 40 + "yes"
    task = bound()
    task.tokenizer.save_pretrained(tmp_path)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    assert [exported(text, truncation=True)["input_ids"]] == task.encode({"chosen": [text]})["input_ids"]


@pytest.mark.parametrize("as_messages", [False, True])
def test_pairs_that_a_cut_makes_equal_are_told(caplog, as_messages):
    ending = "say it to me " * 10
    rows = {"chosen": ["yes " + ending, "yes", "say " + ending], "rejected": ["no " + ending, "no", ending + "no"]}
    if as_messages:
        rows = {
            side: [[{"role": "user", "content": "say"}, {"role": "assistant", "content": text}] for text in texts]
            for side, texts in rows.items()
        }
    with caplog.at_level("WARNING", "lit_hf"):
        assert list(bound().check(Dataset.from_dict(rows))) == []
    what = "1 pairs of 3 are twice the same in the last 32 tokens, all that is read: raise data.max_length."
    assert caplog.messages == [what]
