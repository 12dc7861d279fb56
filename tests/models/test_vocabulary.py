import pytest
import torch
from peft import AdaptionPromptConfig, LoraConfig, PrefixTuningConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_hf.models.vocabulary import grow, token_problems, train_tokens, ungrow

OLD = 24
NEW = ["<a>", "<b>"]


@pytest.fixture
def tokenizer():
    words = {str(number): number for number in range(OLD)}
    made = Tokenizer(models.WordLevel(words, unk_token="0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="0")
    tokenizer.add_tokens(NEW)
    return tokenizer


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=OLD, pad_token_id=0, tie_word_embeddings=request.param, **shape)
    return LlamaForCausalLM(config)


def grown(model, tokenizer, adapter=None):
    """Return the grown model with LoRA, in which the rows of the added tokens train."""
    grow(model, len(tokenizer))
    adapter = adapter or LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    train_tokens(adapter, model, NEW, tokenizer)
    return get_peft_model(model, adapter)


def embeddings(model):
    """Return what the model looks up for each token, and what its head multiplies with, [tokens, hidden]."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    everything = torch.arange(OLD + len(NEW))
    with torch.no_grad():
        inputs = inner.get_input_embeddings()(everything).clone()
        outputs = inner.lm_head(torch.eye(16)).T.clone()
    return inputs, outputs


def trained(model, steps=4):
    ids = torch.tensor([[3, OLD, 5, OLD + 1, 7, OLD]])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(steps):
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_model_grows_by_rows_near_the_mean_and_keeps_the_old_ones(model, tokenizer):
    before = model.get_input_embeddings().weight.clone()
    grow(model, len(tokenizer))
    after = model.get_input_embeddings().weight
    assert after.shape[0] == model.config.vocab_size == OLD + len(NEW)
    assert torch.equal(after[:OLD], before)
    torch.testing.assert_close(after[OLD:], before.mean(0).expand(2, -1), atol=1e-3, rtol=0)
    assert (model.lm_head.weight is after) == model.config.tie_word_embeddings
    grow(model, 4)  # there is room already
    assert model.get_input_embeddings().weight.shape[0] == OLD + len(NEW)


def test_the_rows_of_added_tokens_train_beside_lora_and_the_others_stay(model, tokenizer):
    tied = model.config.tie_word_embeddings
    adapted = grown(model, tokenizer)
    inputs, outputs = embeddings(adapted)
    losses = trained(adapted)
    assert losses[-1] < losses[0]
    for before, after in zip((inputs, outputs), embeddings(adapted), strict=True):
        moved = (before != after).any(1).nonzero().flatten().tolist()
        assert moved == [OLD, OLD + 1]
    if tied:
        after_inputs, after_outputs = embeddings(adapted)
        assert torch.equal(after_inputs, after_outputs)


def test_trained_rows_are_saved_with_the_adapter_and_merge_into_the_model(model, tokenizer, tmp_path):
    from peft import PeftModel

    config, start = model.config, {name: value.clone() for name, value in model.state_dict().items()}
    adapted = grown(model, tokenizer)
    trained(adapted)
    ids = torch.tensor([[OLD, 4, OLD + 1]])
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
    adapted.save_pretrained(tmp_path)
    config.vocab_size = OLD
    again = LlamaForCausalLM(config)
    again.load_state_dict(start)
    torch.manual_seed(0)
    grow(again, len(tokenizer))
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(again, tmp_path).eval()
        torch.testing.assert_close(loaded(ids).logits[..., OLD:], expected[..., OLD:])
        merged = adapted.merge_and_unload().eval()
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_adapters_that_know_no_rows_train_all_of_the_embeddings(model, tokenizer):
    adapter = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    grow(model, len(tokenizer))
    train_tokens(adapter, model, NEW, tokenizer)
    expected = {"model.embed_tokens"} | (set() if model.config.tie_word_embeddings else {"lm_head"})
    assert set(adapter.modules_to_save) == expected


def test_rows_that_the_config_names_are_left_as_they_are(model, tokenizer):
    adapter = LoraConfig(trainable_token_indices={"embed_tokens": [1]})
    grow(model, len(tokenizer))
    train_tokens(adapter, model, NEW, tokenizer)
    assert adapter.trainable_token_indices == {"embed_tokens": [1]}


def test_a_config_goes_back_to_the_size_on_disk(model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    grow(model, len(tokenizer))
    assert ungrow(model.config, str(tmp_path), None, False) == OLD + len(NEW)
    assert model.config.vocab_size == OLD


def test_adapters_that_train_nothing_beside_themselves_are_told():
    (problem,) = token_problems(AdaptionPromptConfig(), NEW)
    assert problem.where == "data.tokenizer.add_tokens"
    assert list(token_problems(AdaptionPromptConfig(), [])) == list(token_problems(None, NEW)) == []
    assert list(token_problems(LoraConfig(), NEW)) == []
