import math

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    pipeline,
)

from lit_hf.data.batching import count_sizes
from lit_hf.data.tokenization import train_tokenizer
from lit_hf.errors import InputError
from lit_hf.models.loading import Base
from lit_hf.tasks import MaskedLM

TEXTS = ["the film was good and the plot was not", "great movie", "the plot was very dull, poor and bad"]


@pytest.fixture
def tokenizer(tiny_text_model):
    return AutoTokenizer.from_pretrained(tiny_text_model)


@pytest.fixture
def model(tiny_text_model):
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_pretrained(tiny_text_model).eval()


def bound(tokenizer, **settings):
    task = MaskedLM(**settings)
    task.bind(tokenizer)
    return task


def rows_of(task, texts=TEXTS):
    encoded = task.encode({"text": texts})
    return [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]


def test_texts_are_joined_and_every_block_is_framed(tokenizer):
    task = bound(tokenizer, block_length=6)
    encoded = task.encode({"text": ["the film was", "", "good plot"]})
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in encoded["input_ids"]] == [
        ["[CLS]", "the", "film", "was", "[SEP]", "[SEP]"],
        ["[CLS]", "good", "plot", "[SEP]"],
    ]
    assert encoded["special_tokens_mask"] == [[1, 0, 0, 0, 1, 1], [1, 0, 0, 1]]


def test_texts_of_their_own_are_framed_and_cut_at_the_limit(tokenizer):
    tokenizer.model_max_length = 5
    task = bound(tokenizer, join=False)
    encoded = task.encode({"text": ["the film was good", " ", "great"]})
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in encoded["input_ids"]] == [
        ["[CLS]", "the", "film", "was", "[SEP]"],
        ["[CLS]", "great", "[SEP]"],
    ]


def test_training_masks_anew_each_time_and_evaluation_a_row_always_alike(tokenizer):
    task = bound(tokenizer, join=False, mlm_probability=0.4)
    rows = rows_of(task)
    torch.manual_seed(0)
    train = task.collator(training=True)
    assert not torch.equal(train(rows)["input_ids"], train(rows)["input_ids"])
    first, state = task.collator()(rows), torch.get_rng_state()
    again = task.collator()(rows)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())
    alone = task.collator()([rows[1]])  # in another batch, as on another rank
    length = alone["labels"].shape[1]
    assert torch.equal(alone["labels"][0], first["labels"][1, :length])
    assert torch.equal(alone["input_ids"][0], first["input_ids"][1, :length])


def test_a_row_is_masked_as_the_plain_collator_masks_it(tokenizer):
    task = bound(tokenizer, join=False, mlm_probability=0.3)
    row = rows_of(task)[0]
    torch.manual_seed(3)
    expected = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)([row])
    torch.manual_seed(3)
    batch = task.collator(training=True)([row])
    assert torch.equal(batch.pop("target_places"), (batch["labels"] != -100).nonzero().t())
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for name, values in batch.items():
        assert torch.equal(values, expected[name])


def test_labels_stand_where_a_token_was_chosen_and_nowhere_on_special_ones(tokenizer):
    task = bound(tokenizer, join=False, mlm_probability=0.5)
    rows = rows_of(task)
    batch = task.collator()(rows)
    for row, ids, labels in zip(rows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        for position, (original, special) in enumerate(zip(row["input_ids"], row["special_tokens_mask"], strict=True)):
            assert labels[position] in ((-100,) if special else (-100, original))
            assert ids[position] == original or labels[position] == original
    assert count_sizes(batch, [{}] * 3).targets == (batch["labels"] != -100).sum().item() > 0


def test_a_row_in_which_chance_masks_nothing_still_has_a_target(tokenizer, model):
    task = bound(tokenizer, join=False, mlm_probability=1e-9)
    for training in (True, False):
        batch = task.collator(training=training)(rows_of(task))
        assert (batch["labels"] != -100).sum(1).tolist() == [1, 1, 1]
        assert ((batch["labels"] != -100) == (batch["input_ids"] == tokenizer.mask_token_id)).all()
        assert task.forward(model, batch).loss.isfinite()


@pytest.mark.parametrize("byte_level", [False, True])
def test_words_are_masked_whole(tokenizer, byte_level):
    texts = ["strange words filmed xyz qwerty", "abcdef good ghijk"]
    if byte_level:
        tokenizer = train_tokenizer(iter(["a good film"]), 262)
        tokenizer.model_max_length = 64
    task = bound(tokenizer, whole_word=True, mlm_probability=0.4)
    (row,) = rows_of(task, texts)
    separated = tokenizer(texts, add_special_tokens=False)
    words = [None]
    for index in range(2):
        words += [(index, word) for word in separated.word_ids(index)] + [None]
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        batch = task.collator(training=True)([row])
        chosen = {}
        for word, label in zip(words, batch["labels"][0].tolist(), strict=True):
            chosen.setdefault(word, set()).add(label != -100)
        assert chosen.pop(None) == {False}
        assert all(len(values) == 1 for values in chosen.values())
        seen |= {(word, *values) for word, values in chosen.items()}
        masked = batch["input_ids"][batch["labels"] != -100]
        assert (masked == tokenizer.mask_token_id).all()
    assert len(seen) == 2 * len(set(words) - {None})  # each word was masked once, and left once


def test_loss_gradients_and_perplexity_are_the_plain_model_s(tokenizer, model):
    task = bound(tokenizer, join=False, mlm_probability=0.4)
    batch = task.collator()(rows_of(task))
    expected = model(**batch).loss
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    chosen = batch["labels"] != -100
    by_hand = -logits.log_softmax(-1)[chosen].gather(1, batch["labels"][chosen][:, None]).mean()
    metrics = task.metrics()
    loss = task.evaluate(model, batch, metrics)
    assert loss.item() == pytest.approx(expected.item()) == pytest.approx(by_hand.item())
    assert metrics.compute()["perplexity"].item() == pytest.approx(math.exp(by_hand.item()), rel=1e-5)
    assert list(task.monitors.items()) == [("loss", "min"), ("perplexity", "min")]


def test_masks_are_filled_as_the_pipeline_fills_them(tokenizer, model):
    task = bound(tokenizer, top_k=3)
    texts = ["the [MASK] was good", "great [MASK] and [MASK]", "no mask"]
    inputs = task.encode_inputs({"text": texts})
    rows = [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]
    with torch.no_grad():
        one, two, none = task.predict(model, task.collator()(rows))
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=3)
    for candidates, expected in zip([*one["fills"], *two["fills"]], [fill(texts[0]), *fill(texts[1])], strict=True):
        assert [candidate["token"] for candidate in candidates] == [wanted["token_str"] for wanted in expected]
        assert [candidate["score"] for candidate in candidates] == pytest.approx([w["score"] for w in expected])
    assert one["filled_text"] == fill(texts[0])[0]["sequence"]
    assert none["fills"] == []


def test_a_decoder_and_a_tokenizer_without_mask_are_refused(tokenizer):
    task = bound(tokenizer)
    (problem,) = Base(config={"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}).problems(task)
    assert "'llama' model cannot do fill-mask" in problem.what
    config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8)
    assert list(Base(config={**config.to_diff_dict(), "model_type": "bert"}).problems(task)) == []
    assert BertForMaskedLM.__name__.endswith(task.auto_class.removeprefix("AutoModel"))
    tokenizer.mask_token = None
    with pytest.raises(InputError, match="no mask token"):
        bound(tokenizer)


def test_settings_that_make_no_sense_are_told_together():
    with pytest.raises(InputError) as error:
        MaskedLM(mlm_probability=1.5, top_k=0, join=False, block_length=8)
    where = [problem.where for problem in error.value.problems]
    assert where == ["task.mlm_probability", "task.top_k", "task.block_length"]
