import logging

import pytest
import torch
import torch._dynamo
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._dynamo.utils import counters
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
)
from transformers.pytorch_utils import Conv1D

from lit_hf.models.freezing import freeze
from lit_hf.models.switches import Switches

SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = (AutoModelForCausalLM, LlamaConfig(**SIZES, num_key_value_heads=1))
BERT = (AutoModelForSequenceClassification, BertConfig(**SIZES))
GPT2 = (AutoModelForCausalLM, GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2))
T5_SIZES = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
T5 = (AutoModelForSeq2SeqLM, T5Config(**T5_SIZES, decoder_start_token_id=0))
ALL = pytest.mark.parametrize("kind", [LLAMA, BERT, GPT2, T5], ids=["llama", "bert", "gpt2", "t5"])


def built(kind, **settings):
    """A model with dropout as its config has it, in training mode; always the same one."""
    torch.manual_seed(0)
    auto_class, config = kind
    return auto_class.from_config(type(config).from_dict(config.to_dict()), **settings).train()


def padded_batch(kind):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 32, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 7:] = 0
    labels = torch.tensor([0, 1, 0]) if kind is BERT else ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model, batch):
    torch.manual_seed(1)
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=1e-6):
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert found[1].keys() == expected[1].keys()
    assert expected[1]
    for name, gradient in found[1].items():
        assert torch.allclose(gradient, expected[1][name], atol=tolerance), name


def passes(model):
    """Count the forward passes of the first linear layer inside of the model's layers."""
    calls = []
    inner = next(
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))
    )
    inner.register_forward_hook(lambda *_: calls.append(1))
    return calls


@ALL
def test_checkpointing_computes_layers_again_and_the_same_gradients(kind):
    batch = padded_batch(kind)
    expected = loss_and_gradients(built(kind), batch)
    model = built(kind)
    Switches(gradient_checkpointing=True).turn_on(model)
    calls = passes(model)
    assert_same(loss_and_gradients(model, batch), expected)
    assert len(calls) == 2
    model.eval()(**batch)
    assert len(calls) == 3


@ALL
def test_checkpointing_works_with_an_adapter_on_a_frozen_base(kind, recwarn):
    def adapted():
        torch.manual_seed(2)
        config = LoraConfig(target_modules="all-linear", lora_dropout=0.1, init_lora_weights=False)
        return get_peft_model(built(kind), config)

    batch = padded_batch(kind)
    expected = loss_and_gradients(adapted(), batch)
    model = adapted()
    Switches(gradient_checkpointing=True).turn_on(model)
    assert_same(loss_and_gradients(model, batch), expected)
    assert all("lora_" in name for name in expected[1])
    assert not [warning for warning in recwarn if "use_reentrant" in str(warning.message)]


def test_checkpointing_works_where_the_lower_layers_are_frozen():
    def frozen():
        model = built(BERT)
        freeze(model, ["embeddings", r"layer\.0\."])
        return model

    batch = padded_batch(BERT)
    expected = loss_and_gradients(frozen(), batch)
    model = frozen()
    Switches(gradient_checkpointing=True).turn_on(model)
    assert_same(loss_and_gradients(model, batch), expected)
    assert not any("layer.0." in name for name in expected[1])


class NoLayers(PreTrainedModel):
    config_class = PreTrainedConfig


def test_checkpointing_that_a_model_does_not_have_is_refused():
    (problem,) = Switches(gradient_checkpointing=True).problems(NoLayers(PreTrainedConfig()))
    assert problem.where == "model.gradient_checkpointing"
    assert "NoLayers has no gradient checkpointing" in problem.what
    assert list(Switches(gradient_checkpointing=True).problems(built(LLAMA))) == []


@pytest.mark.parametrize("kind", [LLAMA, GPT2, T5], ids=["llama", "gpt2", "t5"])
def test_training_keeps_no_cache_and_evaluation_may(kind):
    model, batch = built(kind), padded_batch(kind)
    assert model(**batch).past_key_values is not None
    Switches().turn_on(model)
    assert model(**batch).past_key_values is None
    assert model(**batch, use_cache=True).past_key_values is not None
    assert model.eval()(**batch).past_key_values is not None
    assert model.config.to_dict() == built(kind).config.to_dict()


def logits_of_tokens(kind, attention):
    batch = padded_batch(kind)
    with torch.no_grad():  # flex_attention has no backward pass on the CPU
        logits = built(kind, attn_implementation=attention).eval()(**batch).logits
    return logits if kind is BERT else logits[batch["attention_mask"].bool()]


@ALL
def test_sdpa_computes_what_eager_does_on_a_padded_batch(kind):
    assert torch.allclose(logits_of_tokens(kind, "sdpa"), logits_of_tokens(kind, "eager"), atol=1e-5)


@pytest.mark.slow  # compiles C++ for half a minute
def test_flex_attention_computes_what_eager_does_on_a_padded_batch():
    found = logits_of_tokens(LLAMA, "flex_attention")
    assert torch.allclose(found, logits_of_tokens(LLAMA, "eager"), atol=1e-5)


@pytest.mark.slow  # compiles C++ for some ten seconds
def test_compiled_layers_compute_the_same_for_all_shapes_under_the_same_names():
    torch._dynamo.reset()
    counters.clear()
    expected = built(LLAMA)
    model = built(LLAMA)
    switches = Switches(compile=True)
    assert list(switches.problems(model)) == []
    switches.turn_on(model)
    names = list(model.state_dict())
    switches.speed_up(model)
    assert list(model.state_dict()) == names
    batch = padded_batch(LLAMA)
    for rows, length in [(3, 9), (2, 9), (3, 7)]:
        part = {name: value[:rows, :length] for name, value in batch.items()}
        model.zero_grad(), expected.zero_grad()
        assert_same(loss_and_gradients(model, part), loss_and_gradients(expected, part), 1e-5)
    # all layers and shapes share two graphs: lengths that are a multiple of the vector's width, and others
    assert counters["stats"]["unique_graphs"] <= 2


def test_compilation_without_a_compiler_is_refused(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("a GPU needs no C++ compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    from torch._inductor import cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    (problem,) = Switches(compile=True).problems(built(LLAMA))
    assert problem.where == "model.compile"
    assert "g++" in problem.what


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_liger_is_refused_without_a_gpu():
    (problem,) = Switches(liger=True).problems(built(LLAMA))
    assert problem.where == "model.liger"
    assert "needs a CUDA GPU" in problem.what


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_liger_computes_the_same_on_a_gpu():
    pytest.importorskip("liger_kernel")
    batch = {name: value.cuda() for name, value in padded_batch(LLAMA).items()}
    expected = loss_and_gradients(built(LLAMA).cuda(), batch)
    model = built(LLAMA).cuda()
    Switches(liger=True).speed_up(model)
    assert "Liger" in repr(model)
    assert_same(loss_and_gradients(model, batch), expected, 1e-3)
    (problem,) = Switches(liger=True).problems(built(T5))
    assert "no kernels for a 't5' model" in problem.what


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
