import math

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lit_hf.data.batching import count_sizes
from lit_hf.data.encoding import encode
from lit_hf.data.tokenization import train_tokenizer
from lit_hf.errors import InputError
from lit_hf.models.loading import Base
from lit_hf.tasks import CausalLM

TEXTS = ["the film was good, and the plot was not", "great", "", "not very dull; not very fine. and more of it"]


def words(tokenizer, rows):
    return [tokenizer.convert_ids_to_tokens(row) for row in rows]


@pytest.fixture
def tokenizer():
    tokenizer = train_tokenizer(iter(TEXTS * 3), 300)
    tokenizer.model_max_length = 32
    return tokenizer


@pytest.fixture
def task(tokenizer):
    task = CausalLM(block_length=8)
    task.bind(tokenizer)
    return task


@pytest.fixture
def model(task):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(task.tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=task.tokenizer.pad_token_id,
        eos_token_id=task.tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config).eval()


def batch_of(task, texts=TEXTS):
    encoded = task.encode({"text": texts})
    return task.collator()([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])


def test_documents_are_ended_joined_and_cut_and_the_rest_is_kept(tiny_text_model):
    task = CausalLM(block_length=4)
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    encoded = task.encode({"text": ["the film was good", " ", "great plot"]})
    assert words(task.tokenizer, encoded["input_ids"]) == [
        ["the", "film", "was", "good"],
        ["[SEP]", "great", "plot", "[SEP]"],
    ]
    encoded = task.encode({"text": ["the film was good", "great plot and"]})
    assert words(task.tokenizer, encoded["input_ids"])[1:] == [["[SEP]", "great", "plot", "and"]]  # no lone end token
    encoded = task.encode({"text": ["the film was good", "great plot and film"]})
    assert words(task.tokenizer, encoded["input_ids"])[2] == ["film", "[SEP]"]
    assert encoded["labels"] == [[-100, *row[1:]] for row in encoded["input_ids"]]
    assert encoded["text_bytes"] == [len(" film was good"), len("great plot and") - len(""), 0]


def test_the_rest_is_padded_on_the_right_without_labels(task):
    batch = batch_of(task)
    last = batch["attention_mask"][-1].tolist()
    assert 0 < sum(last) < 8 and last == sorted(last, reverse=True)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert (batch["labels"][:, 0] == -100).all()


def test_the_end_token_is_trained_even_where_it_also_pads(task):
    task.tokenizer.pad_token = task.tokenizer.eos_token
    encoded = task.encode({"text": TEXTS})
    ends = sum(row[1:].count(task.tokenizer.eos_token_id) for row in encoded["input_ids"])
    assert (batch_of(task)["labels"] == task.tokenizer.eos_token_id).sum() == ends > 0


def test_a_start_token_that_the_tokenizer_sets_stands_before_each_document(task):
    task._length = 32
    (block,) = task.encode({"text": ["great", "film"]})["input_ids"]
    assert task.tokenizer.decode(block) == "[CLS]great[SEP][CLS]film[SEP]"
    (prompt,) = task.encode_inputs({"text": ["great"]})["input_ids"]
    assert task.tokenizer.decode(prompt) == "[CLS]great"
    assert task.tokenizer("great")["input_ids"] == prompt  # for others who use the tokenizer too


def test_loss_and_gradients_are_the_plain_model_s(task, model):
    batch = batch_of(task)
    plain = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=plain).loss
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = task.forward(model, batch).loss
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for got, wanted in zip(torch.autograd.grad(loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_loss_is_a_mean_over_the_targets_that_are_counted(task, model):
    batch = batch_of(task)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    total = functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    counted = count_sizes(batch, [{}] * len(batch["input_ids"])).targets
    assert task.forward(model, batch).loss.item() == pytest.approx(total.item() / counted, rel=1e-6)


@torch.no_grad()
def test_the_metrics_equal_those_computed_block_by_block_and_byte_by_byte(task, model):
    encoded = task.encode({"text": TEXTS})
    nats, targets, text_bytes = 0.0, 0, 0
    for ids in encoded["input_ids"]:
        scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for position, token in enumerate(ids[1:]):
            nats -= scores[position, token].item()
            targets += 1
            # a token of a byte-level tokenizer has one letter for each byte
            text_bytes += (
                0 if token in task.tokenizer.all_special_ids else len(task.tokenizer.convert_ids_to_tokens(token))
            )
    metrics = task.metrics()
    rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    for part in (rows[:2], rows[2:]):
        task.evaluate(model, task.collator()(part), metrics)
    values = {name: value.item() for name, value in metrics.compute().items()}
    expected = {"perplexity": math.exp(nats / targets), "bits_per_byte": nats / math.log(2) / text_bytes}
    assert values == pytest.approx(expected, rel=1e-5)
    assert task.monitors == {"loss": "min", "perplexity": "min", "bits_per_byte": "min"}


def test_a_row_of_one_block_is_not_counted_as_cut(task):
    rows = Dataset.from_dict({"text": ["the film was very good and the plot was not so very good", "great"]})
    task._length = len(task.encode({"text": rows["text"][:1]})["input_ids"][0]) * 2
    _, lengths = encode(rows, task, "train")
    assert lengths.cut == 0


def test_a_continuation_does_not_depend_on_its_batch(task, model):
    task.generation = {"max_new_tokens": 6, "min_new_tokens": 6}
    prompts = ["the film", "not very dull; not", "g"]

    def predict(texts):
        inputs = task.encode_inputs({"text": texts})
        rows = [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]
        return [row["generated_text"] for row in task.predict(model, dict(task.collator()(rows)))]

    together = predict(prompts)
    assert together == [predict([prompt])[0] for prompt in prompts]
    ids = task.tokenizer("the film", return_tensors="pt")
    plain = model.generate(**ids, max_new_tokens=6, min_new_tokens=6)[0, ids["input_ids"].shape[1] :]
    assert together[0] == task.tokenizer.decode(plain, skip_special_tokens=True)


def test_of_a_long_prompt_the_end_is_kept_and_room_for_the_answer(task, tokenizer):
    assert task.generation == {"do_sample": False, "max_new_tokens": 16}  # half of the limit, as 64 would be above it
    task = CausalLM(generation={"max_new_tokens": 27})
    task.bind(tokenizer)
    (ids,) = task.encode_inputs({"text": [TEXTS[0]]})["input_ids"]
    assert len(ids) == 32 - 27
    assert TEXTS[0].endswith(task.tokenizer.decode(ids[1:])) and ids[0] == task.tokenizer.bos_token_id


def test_a_total_length_replaces_that_of_the_answer(tokenizer, model):
    task = CausalLM(generation={"max_length": 20, "min_length": 20})
    task.bind(tokenizer)
    assert "max_new_tokens" not in task.generation
    inputs = task.encode_inputs({"text": [TEXTS[0] * 9]})
    assert len(inputs["input_ids"][0]) == 1 + (20 - 1) // 2  # the start token, and half of what is left
    batch = {name: torch.tensor(rows) for name, rows in inputs.items()}
    expected = model.generate(**batch, max_length=20, min_length=20, do_sample=False)
    new = expected[0, batch["input_ids"].shape[1] :]
    (row,) = task.predict(model, batch)
    assert row["generated_text"] == tokenizer.decode(new, skip_special_tokens=True)


def test_labels_are_smoothed_in_training_only(tokenizer, model):
    task = CausalLM(block_length=8, label_smoothing=0.2)
    task.bind(tokenizer)
    batch = batch_of(task)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
    plain, smoothed = (
        functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=share) for share in (0, 0.2)
    )
    torch.testing.assert_close(task.forward(model, batch).loss, plain)
    torch.testing.assert_close(task.forward(model.train(), batch).loss, smoothed)
    with pytest.raises(InputError, match=r"task\.label_smoothing"):
        CausalLM(label_smoothing=-0.1)


@pytest.mark.parametrize("settings", [{"max_new_token": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_unknown_settings_of_generation_are_refused(settings):
    with pytest.raises(InputError, match=r"task\.generation\.num_return_sequences|no such setting"):
        CausalLM(generation=settings)


def test_plain_generate_on_the_export_continues_as_the_task_even_of_a_checkpoint_that_samples(task, model, tmp_path):
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=0)
    inputs = task.encode_inputs({"text": ["the film"]})
    batch = {name: torch.tensor(rows) for name, rows in inputs.items()}
    torch.manual_seed(3)
    (row,) = task.predict(model, batch)
    model.save_pretrained(tmp_path)
    task.export_files(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).generate(**batch)[0, len(inputs["input_ids"][0]) :]
    assert len(plain) <= task.generation["max_new_tokens"]
    assert row["generated_text"] == task.tokenizer.decode(plain, skip_special_tokens=True) != ""


def test_a_tokenizer_without_end_and_separator_is_refused(tokenizer):
    tokenizer.eos_token = tokenizer.sep_token = None
    with pytest.raises(InputError, match="no end token"):
        CausalLM().bind(tokenizer)


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(tokenizer):
    with pytest.raises(InputError, match="no room for a prompt"):
        CausalLM(generation={"max_new_tokens": 32}).bind(tokenizer)


def test_a_model_that_reads_in_both_directions_is_refused(tiny_text_model):
    task = CausalLM()
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    (problem,) = Base(str(tiny_text_model)).problems(task)
    assert problem.where == "model.checkpoint"
    assert "both directions" in problem.what and "MaskedLM" in problem.cure
    scratch = {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2}
    (problem,) = Base(config=scratch).problems(task)
    assert "model.config.is_decoder: true" in problem.cure
    assert list(Base(config={**scratch, "is_decoder": True}).problems(task)) == []
    assert list(Base(config={"model_type": "gpt2", "n_embd": 8, "n_head": 2}).problems(task)) == []
