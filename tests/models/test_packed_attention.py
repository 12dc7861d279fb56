from __future__ import annotations

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lit_hf.models.packed_attention import PACKED, packing_problems, prompt_problems

DOCUMENTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18], [20, 21, 22, 23, 24], [30, 31]]

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GQA = {**SIZES, "num_key_value_heads": 2}
LOCAL = {**GQA, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

FAMILIES = {
    "llama": GQA,
    "mistral": {**GQA, "sliding_window": 4},
    "qwen2": GQA,
    "qwen3": GQA,
    "qwen3_moe": {**GQA, **EXPERTS},
    "gemma3_text": LOCAL,
    "cohere2": LOCAL,
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **NO_DROPOUT},
    "gpt_neox": SIZES,
    "phi3": {**GQA, "resid_pdrop": 0.0},
    "opt": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48,
            "max_position_embeddings": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
}  # fmt: skip


def tiny(family, attention=None, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**FAMILIES.get(family, SIZES), **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():  # large enough that tokens matter to each other
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)
    return model.train()


def packed_row():
    ids = torch.tensor([[token for document in DOCUMENTS for token in document]])
    bounds = torch.tensor([0, *(len(document) for document in DOCUMENTS)]).cumsum(0).to(torch.int32)
    return {
        "input_ids": ids,
        "labels": torch.tensor([[label for document in DOCUMENTS for label in (-100, *document[1:])]]),
        "position_ids": torch.tensor([[place for document in DOCUMENTS for place in range(len(document))]]),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": 7,
        "max_length_k": 7,
        "use_cache": False,
    }


def gradients(model):
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def apart(model):
    """Return logits, loss and gradients of the documents read one by one."""
    outputs = [model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])) for ids in DOCUMENTS]
    targets = [len(ids) - 1 for ids in DOCUMENTS]
    loss = sum(output.loss * count for output, count in zip(outputs, targets, strict=True)) / sum(targets)
    loss.backward()
    return torch.cat([output.logits for output in outputs], dim=1), loss, gradients(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_give_logits_loss_and_gradients_of_single_ones(family):
    model = tiny(family, PACKED)
    assert model.config._attn_implementation == PACKED

    output = model(**packed_row())
    output.loss.backward()

    logits, loss, expected = apart(tiny(family))
    torch.testing.assert_close(output.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, loss, rtol=1e-5, atol=0)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-5 * float(largest))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_that_the_config_names_keeps_documents_apart_by_their_positions(attention):
    output = tiny("llama", attention)(**packed_row())

    torch.testing.assert_close(output.logits, apart(tiny("llama"))[0], rtol=1e-5, atol=1e-5)


def test_no_mask_of_tokens_by_tokens_is_made_of_a_packed_row():
    model, masks = tiny("llama", PACKED), []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )

    model(**packed_row())

    assert [mask.numel() for mask in masks] == [0]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_are_read_as_with_pytorch_s_attention(family, side):
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[1, : 4 if side == "left" else None] = 0 if side == "left" else 1
    mask[1, 5:] = 0 if side == "right" else 1
    batch = {"input_ids": torch.arange(10, 28).view(2, 9), "attention_mask": mask}

    logits = [tiny(family, attention)(**batch).logits for attention in (PACKED, "sdpa")]

    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_text_is_generated_as_with_pytorch_s_attention():
    batch = {"input_ids": torch.tensor([[3, 4, 5], [6, 7, 8]]), "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])}

    texts = [
        tiny("llama", attention).eval().generate(**batch, max_new_tokens=5, do_sample=False).tolist()
        for attention in (PACKED, "sdpa")
    ]

    assert texts[0] == texts[1]


def test_gradient_checkpointing_changes_nothing():
    model = tiny("llama", PACKED)
    model.gradient_checkpointing_enable()

    model(**packed_row()).loss.backward()

    expected = apart(tiny("llama"))[2]
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_a_packed_row_without_its_bounds_is_an_error_and_not_read_across_documents():
    row = {name: value for name, value in packed_row().items() if not name.startswith("cu_")}

    with pytest.raises(RuntimeError, match="cannot be kept apart"):
        tiny("llama", PACKED)(**row)


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("bloom", {}, "takes no positions"),
        ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "does not let transformers' attention"),
        ("stablelm", {}, "does not let transformers' attention"),
        ("mamba", {"state_size": 4}, "runs from one document to the next"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "has conv"),
        ("llama", {"is_causal": False}, "reads in both directions"),
        ("gemma2", {"head_dim": 8, "num_key_value_heads": 2}, "soft caps"),
    ],
)
def test_models_that_would_mix_documents_are_refused(family, changes, what):
    model = tiny(family, **changes).to("meta")
    if changes.get("is_causal") is False:
        for layer in model.model.layers:
            layer.self_attn.is_causal = False

    (problem,) = packing_problems(model)

    assert problem.where == "data.packing"
    assert what in problem.what


def test_soft_caps_are_no_problem_of_an_attention_that_has_them():
    assert not list(packing_problems(tiny("gemma2", head_dim=8, num_key_value_heads=2).to("meta"), own_attention=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_models_that_keep_documents_apart_are_not_refused_nor_changed(family):
    model = tiny(family).to("meta")
    before = model.config._attn_implementation

    assert not list(packing_problems(model))
    assert model.config._attn_implementation == before


def test_learnt_prompts_are_refused():
    (problem,) = prompt_problems(peft.PromptTuningConfig(num_virtual_tokens=4))

    assert "before each of the documents" in problem.what
    assert not list(prompt_problems(peft.LoraConfig()))
    assert not list(prompt_problems(None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gpt2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_a_gpu_reads_packed_documents_as_a_cpu_does(family, dtype, tolerance):
    expected = apart(tiny(family))[0]
    row = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in packed_row().items()}

    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        logits = tiny(family, PACKED).cuda()(**row).logits

    torch.testing.assert_close(logits.float().cpu(), expected, rtol=tolerance, atol=tolerance * float(expected.std()))
