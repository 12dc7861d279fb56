import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import (
    CPTConfig,
    IA3Config,
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from lit_hf.losses import output_head
from lit_hf.losses import tokens as token_loss
from tests.losses.architectures import ARCHITECTURES, PAIRS, PLAIN, WORDS, batch_of, made, model_of
from tests.losses.steps import gradients, lean, plain

every_architecture = pytest.mark.parametrize(
    ("kind", "name", "config"), ARCHITECTURES, ids=[name for _, name, _ in ARCHITECTURES]
)


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=2e-6, atol=0)
    zero = {name for name, value in expected[1].items() if not value.any()}  # of parameters without a part in the loss
    assert found[1].keys() | zero == expected[1].keys() | zero
    largest = max(value.abs().max() for value in expected[1].values() if value.numel())
    for name, value in found[1].items():
        torch.testing.assert_close(value, expected[1][name], rtol=1e-5, atol=1e-6 * largest.item(), msg=name)


@every_architecture
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_the_plain_model_s(kind, name, config, smoothing, small_chunks):
    model, batch, shift = model_of(kind, name), batch_of(kind), kind == "decoder"
    assert_same(lean(model, batch, smoothing, shift), plain(model, batch, smoothing, shift))
    head = model.get_output_embeddings()
    assert name in PLAIN or token_loss._tap(head).usable


# adapters, precisions, ranks


ADAPTERS = {
    "lora": LoraConfig(target_modules=["q_proj", "v_proj"], r=2),
    "lora_on_head": LoraConfig(target_modules=["q_proj", "lm_head"], r=2),
    "whole_head": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], r=2),
    "tokens": LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 2, 7], r=2),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "prompt": PromptTuningConfig(num_virtual_tokens=3),
    "p_tuning": PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8),
    "prefix": PrefixTuningConfig(num_virtual_tokens=3),
}


def adapted(name, base="llama_tied"):
    kind = "pair" if base in PAIRS else "decoder"
    config = copy.deepcopy(ADAPTERS[name])
    config.task_type = "CAUSAL_LM" if kind == "decoder" else "SEQ_2_SEQ_LM"
    torch.manual_seed(3)
    model = get_peft_model(copy.deepcopy(model_of(kind, base)), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.05
    return model.train()


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("base", ["llama", "llama_tied"])
def test_adapters_train_as_with_the_plain_loss(name, base, small_chunks):
    model, batch = adapted(name, base), batch_of("decoder")
    assert_same(lean(model, batch, 0.1, True), plain(model, batch, 0.1, True))
    assert token_loss._tap(model.get_base_model().get_output_embeddings()).usable


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_virtual_tokens_of_an_encoder_and_decoder_are_counted_out(name, small_chunks):
    model, batch = adapted(name, "bart"), batch_of("pair")
    assert_same(lean(model, batch), plain(model, batch))


def test_a_method_with_a_loss_of_its_own_computes_it():
    model = model_of("decoder", "llama")
    config = CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[5, 6, 7], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 4]
    )
    assert not token_loss._is_known(get_peft_model(copy.deepcopy(model), config))


def in_4_bits(module):
    bnb = pytest.importorskip("bitsandbytes")
    found = bnb.nn.Linear4bit(module.in_features, module.out_features, bias=False, quant_type="nf4")
    found.weight = bnb.nn.Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
    return found.to("cpu")


def in_8_bits(module):
    bnb = pytest.importorskip("bitsandbytes")
    found = bnb.nn.Linear8bitLt(module.in_features, module.out_features, bias=False, has_fp16_weights=False)
    found.weight = bnb.nn.Int8Params(module.weight.data, requires_grad=False, has_fp16_weights=False)
    return found.to("cpu")


def in_8_bits_of_torchao(module):
    quantization = pytest.importorskip("torchao.quantization")
    found = copy.deepcopy(module)
    quantization.quantize_(found, quantization.Int8WeightOnlyConfig())
    return found


def quantized(head, by):
    model = copy.deepcopy(model_of("decoder", "llama"))
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and (head or name != "lm_head"):
            model.set_submodule(name, by(module))
    return get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False))


@pytest.mark.parametrize("head", [False, True], ids=["plain_head", "quantized_head"])
@pytest.mark.parametrize("by", [in_4_bits, in_8_bits, in_8_bits_of_torchao])
def test_adapters_on_a_quantized_base_train_as_with_the_plain_loss(head, by, small_chunks):
    linear, values = torch.nn.Linear(16, 16, bias=False), torch.randn(4, 16)
    assert 0 < (by(linear)(values) - linear(values)).abs().max() < 0.5
    model, batch = quantized(head, by).train(), batch_of("decoder")
    assert_same(lean(model, batch, 0.0, True), plain(model, batch))
    assert token_loss._tap(model.get_base_model().get_output_embeddings()).usable


@pytest.mark.parametrize("name", ["llama", "gemma2", "mixtral_balanced"])
def test_gradient_checkpointing_changes_nothing(name, small_chunks):
    model, batch = copy.deepcopy(model_of("decoder", name)), batch_of("decoder")
    expected = plain(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(lean(model, batch, 0.0, True), expected)


@pytest.mark.parametrize("name", ["llama_tied", "gemma2", "gpt_neox"])
def test_autocast_is_as_near_to_float32_as_with_the_plain_loss(name, small_chunks):
    model, batch = model_of("decoder", name), batch_of("decoder")
    exact = plain(model, batch)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = lean(model, batch, 0.0, True), plain(model, batch)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], theirs[0], rtol=5e-3, atol=0)

    def error(gradients):
        return sum((gradients[name] - value).square().sum() for name, value in exact.items()).sqrt()

    assert error(found[1]) < 1.25 * error(theirs[1])


def test_weights_of_16_bits_keep_their_type(small_chunks):
    model, batch = copy.deepcopy(model_of("decoder", "llama")).bfloat16(), batch_of("decoder")
    found, expected = lean(model, batch, 0.0, True), plain(model, batch)
    assert {value.dtype for value in found[1].values()} == {torch.bfloat16}
    torch.testing.assert_close(found[0], expected[0], rtol=5e-3, atol=0)
    torch.testing.assert_close(found[1]["lm_head.weight"], expected[1]["lm_head.weight"], rtol=0.1, atol=1e-2)


def test_the_gradient_s_scale_is_the_caller_s(small_chunks):
    model, batch = model_of("decoder", "llama"), batch_of("decoder")
    expected = gradients_of(model, model(**batch).loss * 3.5)
    found = gradients_of(model, token_loss.token_loss(model, batch, shift=True).loss * 3.5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return gradients(model)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_without_targets_the_loss_is_nothing_and_every_weight_has_a_gradient(name, smoothing):
    model, batch = model_of("decoder", name), batch_of("decoder")
    with_targets = lean(model, batch, smoothing, True)[1]
    loss, found = lean(model, batch | {"labels": torch.full_like(batch["labels"], -100)}, smoothing, True)
    assert loss == 0
    assert found.keys() == with_targets.keys()  # else ranks would wait for each other
    assert not any(value.any() for value in found.values())


def test_evaluation_counts_what_the_model_would_have_chosen(small_chunks):
    model, batch = model_of("decoder", "gemma2"), batch_of("decoder")
    with torch.no_grad():
        found, outputs = token_loss.token_loss(model, batch, shift=True), model(**batch)
    trained = batch["labels"][:, 1:] != -100
    chosen = outputs.logits[:, :-1].argmax(-1)
    batch["labels"][:, 1:][trained] = torch.where(torch.arange(trained.sum()) % 3 == 0, chosen[trained], 5)
    with torch.no_grad():
        changed = token_loss.token_loss(model, batch, shift=True)
    torch.testing.assert_close(found.loss, outputs.loss, rtol=2e-6, atol=0)
    assert found.targets == changed.targets == trained.sum()
    assert changed.right == (chosen == batch["labels"][:, 1:])[trained].sum() >= trained.sum() // 3


def test_log_probabilities_are_the_plain_model_s(small_chunks):
    for model in (model_of("decoder", "gemma2"), adapted("lora_on_head"), adapted("prompt")):
        batch = batch_of("decoder")
        labels = batch.pop("labels")
        weights = torch.randn(labels.shape[0], labels.shape[1] - 1)
        found = token_loss.token_log_probs(model, batch, labels)
        logs = model(**batch).logits[:, -labels.shape[1] : -1].log_softmax(-1)
        wanted = labels[:, 1:] != -100
        expected = logs.gather(-1, labels[:, 1:, None].clamp(min=0)).squeeze(-1) * wanted
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            gradients_of(model, (found * weights).sum()), gradients_of(model, (expected * weights).sum()),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one():
    script = Path(__file__).with_name("ranks_of_token_loss.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


# memory and masks


class Largest(TorchDispatchMode):
    """Finds the most values that any tensor holds."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


def peak(model, run):
    with Largest() as largest:
        run(model)
    return largest.numel


@pytest.mark.parametrize("name", ["llama", "gemma2", "lora_on_head", "t5", "bert", "log_probs", "evaluation"])
def test_there_never_are_logits_of_all_targets(name, monkeypatch):
    monkeypatch.setattr(output_head, "CHUNK", 16)
    kind = {"t5": "pair", "bert": "encoder"}.get(name, "decoder")
    base = name if name in ("gemma2", "t5", "bert") else "llama"
    batch = {key: value.repeat(8, 1) for key, value in batch_of(kind).items()}
    model = adapted("lora_on_head", "llama") if name == "lora_on_head" else model_of(kind, base)
    limit = max(16 * WORDS, batch["labels"].numel() * 24, WORDS * 16)  # a chunk, the hidden states, the head

    def run(model):
        if name == "log_probs":
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            token_loss.token_log_probs(model, inputs, batch["labels"]).sum().backward()
        elif name == "evaluation":
            with torch.no_grad():
                token_loss.token_loss(model, batch, shift=True)
        else:
            token_loss.token_loss(model, batch, shift=kind == "decoder").loss.backward()

    run(model)
    assert (
        peak(model, run)
        <= limit
        < batch["labels"].numel() * WORDS
        <= peak(model, lambda model: model(**batch).loss.backward())
    )


def masks_of(model, batch, **settings):
    """Return the attention mask that the `transformers` model is called with."""
    masks = []

    def keep(module, args, kwargs):
        masks.append(kwargs.get("attention_mask"))

    handle = model.register_forward_pre_hook(keep, with_kwargs=True)
    token_loss.token_loss(model, batch, **settings)
    handle.remove()
    return masks


VOID = {"llama": True, "gpt2": True, "gemma3_text": True, "opt": True, "mixtral": True, "mixtral_balanced": False}


@pytest.mark.parametrize(("name", "void"), VOID.items())
def test_a_mask_goes_where_padding_on_the_right_makes_it_void(name, void):
    model, batch = copy.deepcopy(model_of("decoder", name)), batch_of("decoder")
    assert (masks_of(model, batch, shift=True)[0] is None) == void


@pytest.mark.parametrize("name", ["bert", "bart"])
def test_encoders_keep_their_masks(name):
    kind = "encoder" if name == "bert" else "pair"
    model, batch = copy.deepcopy(model_of(kind, name)), batch_of(kind)
    assert masks_of(model, batch, shift=False)[0] is batch["attention_mask"]


def test_bidirectional_decoders_and_virtual_tokens_keep_theirs():
    model, batch = copy.deepcopy(model_of("decoder", "gemma3_text")), batch_of("decoder")
    model.config.use_bidirectional_attention = True
    assert masks_of(model, batch, shift=True)[0] is not None
    assert masks_of(adapted("prompt"), batch, shift=True)[0] is not None


# what is not known


class Own(LlamaForCausalLM):
    """A model whose code is not transformers' own: nothing is known of its loss."""


def test_a_model_of_other_code_computes_its_loss_itself():
    model, batch = Own(model_of("decoder", "llama").config), batch_of("decoder")
    calls = []
    model.register_forward_pre_hook(lambda module, args, kwargs: calls.append("labels" in kwargs), with_kwargs=True)
    assert_same(lean(model, batch, 0.1, True), plain(model, batch, 0.1, True))
    assert calls == [True, True]


def test_what_a_model_does_to_its_logits_is_compared_with_what_is_known_of_it(caplog):
    model, batch = made.__wrapped__("decoder", "granite").train(), batch_of("decoder")  # not looked at yet
    expected = plain(model, batch)

    def scaled(module, args, output):
        output.logits = output.logits / 8.0
        if output.loss is not None:
            output.loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels.flatten())
        return output

    labels = batch["labels"][:, 1:]
    model.config.logits_scaling = 1.0  # as if it went by a name that nobody knows
    model.register_forward_hook(scaled)
    with caplog.at_level("INFO", "lit_hf"):
        assert_same(lean(model, batch, 0.0, True), expected)
        lean(model, batch, 0.0, True)
    assert [record.message for record in caplog.records] == [
        "GraniteForCausalLM computes all of its logits: it does to them what is not known here"
    ]


def test_text_is_generated_as_ever_after_training(small_chunks):
    model, batch = copy.deepcopy(model_of("decoder", "llama")), batch_of("decoder")
    prompt = batch["input_ids"][:1, :5]
    before = model.generate(prompt, max_new_tokens=6, do_sample=False)
    lean(model, batch, 0.0, True)
    assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False), before)


@pytest.mark.slow
def test_a_compiled_model_trains_and_generates_as_before(small_chunks):
    model, batch = copy.deepcopy(model_of("decoder", "llama")), batch_of("decoder")
    expected, logits = plain(model, batch), model(input_ids=batch["input_ids"]).logits
    model.compile(backend="eager")
    assert_same(lean(model, batch, 0.0, True), expected)
    torch.testing.assert_close(model(input_ids=batch["input_ids"]).logits, logits)
    assert_same(lean(model, batch, 0.0, True), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("package", ["liger_kernel", "cut_cross_entropy"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
def test_fused_kernels_are_as_near_as_their_precision(package, name, monkeypatch):
    pytest.importorskip(package)
    monkeypatch.setattr(output_head, "_is_installed", lambda other: other == package)
    model, batch = copy.deepcopy(model_of("decoder", name)).cuda(), batch_of("decoder")
    batch = {key: value.cuda() for key, value in batch.items()}
    with torch.autocast("cuda", torch.bfloat16):
        found, expected = lean(model, batch, 0.0, True), plain(model, batch)
    torch.testing.assert_close(found[0], expected[0], rtol=5e-3, atol=0)
    head = model.get_output_embeddings().weight
    exact = next(key for key, value in model.named_parameters() if value is head)
    torch.testing.assert_close(found[1][exact], expected[1][exact], rtol=0.1, atol=1e-2)
