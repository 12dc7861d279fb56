import logging

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

from lit_hf.errors import InputError
from lit_hf.tasks import Chat
from tests.conversations import CHATML, chat_tokenizer, save_chat_model

ASKED = {"role": "user", "content": "What is red?"}
ANSWERED = {"role": "assistant", "content": "A colour."}
AGAIN = {"role": "user", "content": "And blue?"}
OTHER = {"role": "assistant", "content": "Another colour. And another colour."}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chat_model(tmp_path_factory.mktemp("chat-model"))


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def bound(tokenizer=None, **settings):
    task = Chat(**settings)
    task.bind(tokenizer or chat_tokenizer())
    return task


def batch_of(task, encoded):
    return task.collator()([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])


def faults(task, **columns):
    return [(list(found.rows), found.column, found.what) for found in task.check(Dataset.from_dict(columns))]


def test_the_end_of_a_turn_is_trained_though_it_pads_too():
    task = bound()
    end = task.tokenizer.eos_token_id
    assert task.tokenizer.pad_token_id == end
    batch = batch_of(task, task.encode({"messages": [[ASKED, ANSWERED], [ASKED, ANSWERED, AGAIN, OTHER]]}))
    assert (batch["labels"] == end).sum(1).tolist() == [1, 2]
    padding = batch["attention_mask"] == 0
    assert padding[0].any() and not padding[0, 0]
    assert (batch["labels"][padding] == -100).all()


@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_the_loss_and_its_gradients_are_those_of_the_plain_model(model, train_on):
    task = bound(train_on=train_on)
    batch = batch_of(task, task.encode({"messages": [[ASKED, ANSWERED, AGAIN, OTHER], [ASKED, ANSWERED]]}))
    outputs = task.forward(model, batch)
    gradient = torch.autograd.grad(outputs.loss, model.lm_head.weight)[0]

    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logs = logits[:, :-1].log_softmax(-1).gather(-1, batch["labels"][:, 1:, None].clamp(min=0)).squeeze(-1)
    trained = batch["labels"][:, 1:] != -100
    expected = -logs[trained].mean()
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, model.lm_head.weight)[0])
    assert trained.sum() == (batch["labels"] != -100).sum()


def test_labels_are_smoothed_in_training_only(model):
    task = bound(label_smoothing=0.2)
    batch = batch_of(task, task.encode({"messages": [[ASKED, ANSWERED, AGAIN, OTHER], [ASKED, ANSWERED]]}))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1].flatten(0, 1)
    plain, smoothed = (
        torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), label_smoothing=share)
        for share in (0.0, 0.2)
    )
    torch.testing.assert_close(task.forward(model, batch).loss, plain)
    try:
        torch.testing.assert_close(task.forward(model.train(), batch).loss, smoothed)
    finally:
        model.eval()
    with pytest.raises(InputError, match=r"task\.label_smoothing: 1\.5 is not in \[0, 1\)"):
        Chat(label_smoothing=1.5)


def test_the_metrics_are_over_all_trained_tokens_of_all_batches(model):
    task = bound()
    metrics = task.metrics()
    losses, right = [], []
    with torch.no_grad():
        for messages in ([ASKED, ANSWERED], [ASKED, ANSWERED, AGAIN, OTHER]):
            batch = batch_of(task, task.encode({"messages": [messages]}))
            task.evaluate(model, batch, metrics)
            logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
            targets = batch["labels"][0, 1:]
            chosen = targets != -100
            losses += torch.nn.functional.cross_entropy(logits[chosen], targets[chosen], reduction="none").tolist()
            right += (logits[chosen].argmax(-1) == targets[chosen]).tolist()
    results = metrics.compute()
    assert results["perplexity"].item() == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-5)
    assert results["token_accuracy"].item() == pytest.approx(sum(right) / len(right))
    assert task.monitors == {"loss": "min", "perplexity": "min", "token_accuracy": "max"}


def test_truncation_keeps_the_first_tokens():
    task = bound()
    whole = task.encode({"messages": [[ASKED, ANSWERED, AGAIN, OTHER]]})
    task.tokenizer.model_max_length = 20
    cut = task.encode({"messages": [[ASKED, ANSWERED, AGAIN, OTHER]]})
    assert cut == {name: [rows[0][:20]] for name, rows in whole.items()}


def test_a_row_whose_answer_is_cut_away_is_told():
    task = bound()
    task.tokenizer.model_max_length = 12
    question = {"role": "user", "content": "What is red? " * 5}
    assert faults(task, messages=[[ASKED, ANSWERED], [question, ANSWERED]]) == [
        ([0, 1], "messages", "what is trained lies beyond the first 12 tokens, where the row is cut.")
    ]
    task.tokenizer.model_max_length = 20
    assert [rows for rows, _, _ in faults(task, messages=[[ASKED, ANSWERED], [question, ANSWERED]])] == [[1]]


def test_faults_of_rows_are_gathered():
    rows = [
        [ASKED, ANSWERED],
        [ASKED],
        [{"role": "bard", "content": "a"}, ANSWERED],
        [AGAIN],
        [ASKED, {"role": "assistant", "content": ""}],
    ]
    assert faults(bound(), messages=rows) == [
        ([1, 3], "messages", "there is no assistant turn, so there is nothing to learn."),
        ([2], "messages", "turn 1: the role 'bard' is not known."),
        ([4], "messages", "turn 2: the assistant turn is empty."),
    ]


def test_templates_that_do_not_render_are_faults_with_their_line():
    strict = "{% if messages[0].role == 'system' %}\n{{ raise_exception('no system turns') }}{% endif %}" + CHATML
    task = bound(chat_tokenizer(strict), system="Be brief.")
    assert faults(task, messages=[[ASKED, ANSWERED]]) == [
        ([0], "messages", "the chat template does not render (line 2): no system turns.")
    ]


def test_tools_are_schemas_or_their_text():
    template = "{% if tools %}{{ tools[0].name }} {% endif %}" + CHATML
    task = bound(chat_tokenizer(template), prompt="p", completion="c", tools="t")
    columns = {"p": ["What is red?"], "c": ["A colour."]}
    for tools in ([{"name": "look", "x": None}], '[{"name": "look"}]'):
        encoded = task.encode({**columns, "t": [tools]})
        assert task.tokenizer.decode(encoded["input_ids"][0]).startswith("look <|im_start|>user")
    for tools in (None, ""):
        encoded = task.encode({**columns, "t": [tools]})
        assert task.tokenizer.decode(encoded["input_ids"][0]).startswith("<|im_start|>user")
    assert "the tools are not valid JSON" in faults(task, **columns, t=["{"])[0][2]
    assert "this is no list of tools" in faults(task, **columns, t=['{"a": 1}'])[0][2]
    assert faults(task, **columns)[0][1:] == ("t", "there is no such column.")


def test_a_template_without_an_end_is_told(caplog):
    task = bound(chat_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"))
    with caplog.at_level(logging.WARNING, "lit_hf"):
        assert faults(task, messages=[[ASKED, ANSWERED]]) == []
    assert "may not learn to stop" in caplog.text


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(InputError, match="the tokenizer has no chat template") as caught:
        bound(chat_tokenizer(None))
    assert "data.tokenizer.chat_template" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"messages": "m", "prompt": "p", "completion": "c"}, "messages and prompt are both given"),
        ({"prompt": "p"}, "task.completion: the column of the answer is not named"),
        ({"instruction": "i", "completion": "c", "output": "o"}, "task.completion: it goes with prompt"),
        ({"output": "o"}, "task.output: it goes with instruction"),
        ({"generation": {"max_new_token": 3}}, r"task.generation.max_new_token: .*\n    Did you mean 'max_new_tokens'"),
        ({"roles": {"bard": "helper"}}, "task.roles.bard: 'helper' is no role"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Chat(**settings)


def test_the_columns_follow_from_the_settings():
    task = Chat(instruction="i", input="x", output="o", tools="t")
    assert (task.input_columns, task.target_columns, task.optional_columns) == (["i"], ["o"], ["x", "t"])
    assert (Chat().input_columns, Chat().target_columns) == (["messages"], [])


def test_prompts_end_where_the_answer_begins_and_are_padded_to_the_left(caplog):
    task = bound()
    encoded = task.encode_inputs({"messages": [[ASKED, ANSWERED, AGAIN, OTHER], "What is red?"]})
    assert [task.tokenizer.decode(ids) for ids in encoded["input_ids"]] == [
        task.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        for messages in ([ASKED, ANSWERED, AGAIN], [ASKED])
    ]
    batch = batch_of(task, encoded)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert batch["attention_mask"][1, 0] == 0
    task.tokenizer.model_max_length = 10
    shorter = task.encode_inputs({"messages": [[ASKED]]})
    assert shorter["input_ids"] == [encoded["input_ids"][1][-5:]]
    assert "1 prompts are longer than 5 tokens" in caplog.text


def test_answers_are_those_of_generate_row_by_row(folder, model):
    task = bound(AutoTokenizer.from_pretrained(folder), generation={"max_new_tokens": 8})
    rows = [[ASKED, ANSWERED, AGAIN], [ASKED]]
    with torch.inference_mode():
        predicted = task.predict(model, batch_of(task, task.encode_inputs({"messages": rows})))
        for messages, prediction in zip(rows, predicted, strict=True):
            inputs = task.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
            alone = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
            assert prediction == {"generated_text": task.tokenizer.decode(alone, skip_special_tokens=True)}


def test_prediction_and_export_stop_at_the_end_of_a_turn_beside_the_tokenizer_s_own_end(model, tmp_path):
    tokenizer = chat_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.pad_token = "[SEP]"
    assert end not in tokenizer.all_special_ids
    others = [token for token in range(len(tokenizer)) if token != end]
    task = bound(tokenizer, generation={"suppress_tokens": others, "max_new_tokens": 9})
    model.generation_config.eos_token_id = [7]
    batch, steps = batch_of(task, task.encode_inputs({"messages": [[ASKED]]})), []
    model.register_forward_hook(lambda *_: steps.append(1))
    task.predict(model, batch)
    assert len(steps) == 1
    model.generation_config.save_pretrained(tmp_path)
    task.export_files(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == [7, 3, end]


def test_a_long_prompt_and_its_answer_stay_within_the_positions():
    task = bound()
    assert task.generation == {"do_sample": False, "max_new_tokens": 64}  # half of the limit, as 256 would be above it
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(task.tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=128, eos_token_id=None)
    ).eval()
    model.generation_config.eos_token_id = None
    task.generation["min_new_tokens"] = 64
    long = {"role": "user", "content": "What is red? " * 100}
    encoded = task.encode_inputs({"messages": [[long], [ASKED]]})
    assert len(encoded["input_ids"][0]) == 64
    assert len(task.predict(model, batch_of(task, encoded))) == 2


def test_a_total_length_replaces_that_of_the_answer():
    task = bound(generation={"max_length": 20})
    assert task.generation == {"do_sample": False, "max_length": 20}
    (prompt,) = task.encode_inputs({"messages": [[{"role": "user", "content": "What is red? " * 9}]]})["input_ids"]
    assert len(prompt) == 10


def test_the_export_of_a_checkpoint_that_samples_is_greedy(model, tmp_path):
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, top_k=20)
    model.generation_config.save_pretrained(tmp_path)
    bound().export_files(tmp_path)
    config = GenerationConfig.from_pretrained(tmp_path)
    config.validate(strict=True)
    assert (config.do_sample, config.temperature, config.max_new_tokens) == (False, None, 64)
