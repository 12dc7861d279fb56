import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from lit_hf.errors import InputError, LitHFError
from lit_hf.tasks import Preference
from tests import preferences

ROWS = {
    "prompt": ["say it to me", "is it night"],
    "chosen": ["yes good day", "yes"],
    "rejected": ["no", "no bad poor night"],
}
REFERENCE = torch.tensor([[-11.0, -9.0], [-3.0, -20.5]])  # chosen and rejected, of both rows


def bound(**settings):
    task = Preference(**settings)
    task.bind(preferences.tokenizer())
    return task


def batch_of(task, rows=ROWS):
    encoded = task.encode(rows)
    return task.collator()([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])


def build(seed=0):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(**preferences.MODEL, vocab_size=len(preferences.tokenizer()))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture
def model():
    return build()


def token_log_probs(model, task, prompt, completion):
    """Return the log-probability of each token of a completion and of the end token, one forward pass a sequence."""
    before = task.tokenizer(prompt)["input_ids"]
    after = [*task.tokenizer(completion)["input_ids"], task.tokenizer.eos_token_id]
    logits = model(torch.tensor([before + after])).logits[0]
    probabilities = torch.log_softmax(logits, dim=-1)
    return torch.stack([probabilities[len(before) + at - 1, token] for at, token in enumerate(after)])


def log_sigmoid(value):
    return -torch.log1p(torch.exp(-value))


def dpo(chosen, rejected, reference, smoothing=0.0):
    logits = (chosen.sum() - rejected.sum()) - (reference[0] - reference[1])
    return -log_sigmoid(0.1 * logits) * (1 - smoothing) - log_sigmoid(-0.1 * logits) * smoothing


def ipo(chosen, rejected, reference):
    return ((chosen.mean() - rejected.mean()) - (reference[0] - reference[1]) - 1 / (2 * 0.1)) ** 2


def orpo(chosen, rejected, reference):
    p, q = chosen.mean().exp(), rejected.mean().exp()
    ratio = torch.log((p / (1 - p)) / (q / (1 - q)))
    return -chosen.mean() - 0.1 * log_sigmoid(ratio)


def simpo(chosen, rejected, reference):
    return -log_sigmoid(2.0 * (chosen.mean() - rejected.mean()) - 1.0)


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"loss": "dpo"}, dpo),
        ({"loss": "dpo", "label_smoothing": 0.2}, lambda *scores: dpo(*scores, 0.2)),
        ({"loss": "ipo"}, ipo),
        ({"loss": "orpo"}, orpo),
        ({"loss": "simpo"}, simpo),
    ],
)
def test_loss_and_gradients_are_the_formula_s_on_sequences_one_by_one(model, settings, formula):
    task = bound(**settings)
    batch = batch_of(task) | {"reference_chosen": REFERENCE[:, 0], "reference_rejected": REFERENCE[:, 1]}
    loss = task.forward(model, batch).loss
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    scores = [
        (token_log_probs(model, task, prompt, chosen), token_log_probs(model, task, prompt, rejected), reference)
        for prompt, chosen, rejected, reference in zip(*ROWS.values(), REFERENCE, strict=True)
    ]
    expected = sum(formula(*row) for row in scores) / 2
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-3)


def test_rewards_are_scaled_by_beta_against_the_reference(model):
    task = bound(beta=0.5)
    batch = batch_of(task) | {"reference_chosen": REFERENCE[:, 0], "reference_rejected": REFERENCE[:, 1]}
    rewards = task.forward(model, batch).logits
    chosen = token_log_probs(model, task, "say it to me", "yes good day").sum()
    assert rewards[0, 0].item() == pytest.approx(0.5 * (chosen.item() + 11.0), rel=1e-5)


def test_the_reference_is_the_adapter_off_without_dropout_and_the_model_is_left_as_it_was(model):
    task = bound()
    batch = batch_of(task)
    expected = task.reference(model, batch)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], lora_dropout=0.5, init_lora_weights=False
    )
    adapted = get_peft_model(model, config).train()
    given = {name: value.detach() for name, value in expected.items()}
    adapted.eval()
    assert task.forward(adapted, batch).loss.item() == pytest.approx(
        task.forward(adapted, batch | given).loss.item(), abs=1e-6
    )
    adapted.train()
    task.forward(adapted, batch).loss.backward()
    assert adapted.training
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.parameters() if p.requires_grad)


def test_at_the_start_the_loss_is_that_of_a_coin(model):
    task = bound()
    batch = batch_of(task)
    output = task.forward(model, batch | task.reference(model, batch))
    assert output.loss.item() == pytest.approx(math.log(2), abs=1e-6)


def test_without_reference_and_adapter_nothing_is_trained(model):
    with pytest.raises(LitHFError, match="log-probabilities of the reference"):
        task = bound()
        task.forward(model, batch_of(task))


def test_only_dpo_and_ipo_need_a_reference():
    columns = ("reference_chosen", "reference_rejected")
    assert [Preference(loss=loss).reference_columns for loss in ("dpo", "ipo")] == [columns, columns]
    assert [Preference(loss=loss).reference_columns for loss in ("orpo", "simpo")] == [(), ()]


def test_a_row_holds_prompt_and_both_completions_each_with_its_end(model):
    task = bound()
    encoded = task.encode({name: values[:1] for name, values in ROWS.items()})
    shown = task.tokenizer.decode(encoded["input_ids"][0])
    assert shown == "say it to me yes good day </s> say it to me no </s>"
    assert (encoded["chosen_length"], encoded["prompt_length"]) == ([8], [4])


def test_a_conversation_ends_as_its_template_says():
    turns = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "yes"}]
    task = bound(prompt=None)
    encoded = task.encode({"chosen": [turns], "rejected": [[turns[0], turns[1] | {"content": "no"}]]})
    one = "<user> say it <end> <assistant> {} <end>"
    assert task.tokenizer.decode(encoded["input_ids"][0]) == f"{one.format('yes')} {one.format('no')}"
    assert (encoded["chosen_length"], encoded["prompt_length"]) == ([7], [5])


@pytest.mark.parametrize(("words", "kept", "length"), [(40, 28, 32), (2, 2, 6)])
def test_of_a_long_row_the_start_of_the_prompt_is_cut(words, kept, length):
    task = bound()
    encoded = task.encode({"prompt": ["say " * words], "chosen": ["yes good day"], "rejected": ["no"]})
    assert (encoded["prompt_length"], encoded["chosen_length"]) == ([kept], [length])


def test_of_a_row_with_long_completions_none_is_cut_away():
    task = bound()
    encoded = task.encode({"prompt": ["say " * 40], "chosen": ["yes " * 60], "rejected": ["no"]})
    assert (encoded["prompt_length"], encoded["chosen_length"]) == ([16], [32])
    assert len(encoded["input_ids"][0]) == 32 + 16 + 2


def test_generation_goes_on_from_prompts_of_other_lengths_as_from_each_alone(model):
    task = bound(generation={"max_new_tokens": 4, "do_sample": False})
    prompts = ["say it to me", "is"]
    together = task.predict(model, batch_of(task, {"prompt": prompts}))
    alone = [task.predict(model, batch_of(task, {"prompt": [prompt]}))[0] for prompt in prompts]
    assert together == alone
    assert set(together[0]) == {"generated_text"}


def test_generation_stays_within_what_the_model_takes(model):
    task = bound(generation={"max_new_tokens": 100, "do_sample": False, "min_new_tokens": 1, "eos_token_id": -1})
    batch = batch_of(task, {"prompt": ["say " * 40]})
    assert batch["input_ids"].shape == (1, 16)
    assert len(task.predict(model, batch)[0]["generated_text"].split()) <= 16


def test_a_total_length_replaces_that_of_the_answer(model):
    task = bound(generation={"max_length": 20, "eos_token_id": -1})
    assert "max_new_tokens" not in task.generation
    batch = batch_of(task, {"prompt": ["say " * 40]})
    assert batch["input_ids"].shape == (1, 10)
    expected = model.generate(**batch, max_length=20, eos_token_id=-1, do_sample=False)[0, 10:]
    assert task.predict(model, batch) == [{"generated_text": task.tokenizer.decode(expected, skip_special_tokens=True)}]


@pytest.mark.parametrize("settings", [{"max_new_token": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_unknown_settings_of_generation_are_refused(settings):
    with pytest.raises(InputError, match=r"task\.generation\.num_return_sequences|no such setting"):
        Preference(generation=settings)


def test_an_answer_and_that_of_the_export_stop_at_the_end_of_a_turn(model, tmp_path):
    end = preferences.tokenizer().convert_tokens_to_ids("<end>")
    others = [token for token in range(len(preferences.tokenizer())) if token != end]
    task = bound(generation={"suppress_tokens": others, "max_new_tokens": 9})
    batch, steps = batch_of(task, {"prompt": ["is it night"]}), []
    hook = model.register_forward_hook(lambda *_: steps.append(1))
    task.predict(model, batch)
    hook.remove()
    assert len(steps) == 1
    model.save_pretrained(tmp_path)
    task.export_files(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).generate(**batch)
    assert plain[0, batch["input_ids"].shape[1] :].tolist() == [end]


def test_a_tokenizer_without_template_stops_at_its_own_end(model, tmp_path):
    task = Preference()
    task.bind(preferences.tokenizer(template=None))
    task.export_files(tmp_path)
    config = GenerationConfig.from_pretrained(tmp_path)
    assert (config.eos_token_id, config.do_sample, config.max_new_tokens) == ([3], False, 16)


def test_a_prompt_without_column_is_the_user_s_turn_or_the_conversation_before_the_answer():
    task = bound(prompt=None)
    turns = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "yes"}]
    for value in ("say it", turns[:1], turns):
        assert (
            task.tokenizer.decode(task.encode({"chosen": [value]})["input_ids"][0]) == "<user> say it <end> <assistant>"
        )


@pytest.mark.parametrize(
    "settings", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"loss": "simpo", "label_smoothing": 0.1}]
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(InputError):
        Preference(**settings)


def test_texts_need_a_prompt():
    rows = Dataset.from_dict({"chosen": ["yes"], "rejected": ["no"]})
    (fault,) = bound(prompt=None).check(rows)
    assert "no column holds its prompt" in fault.what


def test_metrics_are_those_of_the_rewards(model):
    task = bound(loss="simpo")
    metrics = task.metrics()
    with torch.inference_mode():
        task.evaluate(model, batch_of(task), metrics)
        rewards = task.forward(model, batch_of(task)).logits
    computed = metrics.compute()
    assert computed["margin"].item() == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean().item(), abs=1e-6)
    assert next(iter(task.monitors)) == "loss"
    assert set(task.monitors) - {"loss"} < set(computed)
