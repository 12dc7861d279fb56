"""Attention in packed rows: each document attends to itself alone, and no mask of tokens by tokens is made for it.

It is registered with `transformers` under `PACKED`, for models that take their attention from its interface. Rows that
are not packed, in evaluation, get PyTorch's own attention with the masks of `transformers`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftConfig, PromptLearningConfig
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_hf.errors import Problem

PACKED = "lit_hf_packed"
"""The name of the attention, as `transformers` knows it."""

_PROBE = "lit_hf_packed_probe"

_LAYERS = {"full_attention", "sliding_attention"}
_CURE = "Leave data.packing out, or take a decoder such as Llama, Qwen, Mistral or GPT-2."


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as `transformers` asks it of an attention.

    Args:
        module: The layer.
        query: Of shape [rows, heads, tokens, head_dim]; in packed rows there is one row.
        key: Of shape [rows, key_heads, tokens, head_dim].
        value: Of the same shape but for the last dimension.
        attention_mask: What tokens see in rows that are not packed.
        dropout: Share of attention weights that are dropped.
        scaling: What scores are multiplied with; by default 1 / sqrt(head_dim).
        sliding_window: How many tokens, itself included, a token sees at most.
        cu_seq_lens_q: Where documents start, and where the last one ends, shape [documents + 1].
        max_length_q: Tokens of the longest document.
        kwargs: What other attentions need.

    Returns:
        The output, of shape [rows, tokens, heads, head_dim], and no weights.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        if attention_mask is not None and not attention_mask.numel():
            raise RuntimeError("a packed row came without cu_seq_lens_q, so its documents cannot be kept apart")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if _has_kernel(query, value, dropout):
        return _by_kernel(query, key, value, cu_seq_lens_q, max_length_q, sliding_window, scaling), None
    return _by_document(query, key, value, cu_seq_lens_q, sliding_window, dropout, scaling), None


def _has_kernel(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Say whether PyTorch's kernel for documents of different lengths, that of FlashAttention, can be used."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= 256
        and not dropout
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, window: int | None, scaling: float | None
) -> Tensor:
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    sides = (-1 if window is None else window - 1, 0)
    grouped = query.shape[1] != key.shape[1]
    output = varlen_attn(
        queries, keys, values, bounds, bounds, longest, longest, scale=scaling, window_size=sides, enable_gqa=grouped
    )
    return cast(Tensor, output)[None]


@torch.compiler.disable
def _by_document(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, window: int | None, dropout: float, scaling: float | None
) -> Tensor:
    lengths, grouped = bounds.diff().tolist(), query.shape[1] != key.shape[1]
    # split, not slices: the gradient of a slice is as large as the whole
    documents = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), lengths, strict=True)
    outputs = []
    for queries, keys, values, length in documents:
        mask = _band(length, window, query.device) if window is not None and length > window else None
        output = scaled_dot_product_attention(
            queries, keys, values, mask, dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Return which tokens see which, of shape [length, length], where each sees the last `window` ones."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def make_mask(
    batch_size: int, q_length: int, attention_mask: Tensor | None = None, device: Any = "cpu", **kwargs: Any
) -> Tensor | None:
    """Return the mask of PyTorch's own attention, but an empty one where transformers has found a packed row.

    It then asks for a mask although nothing is padded: causality alone does not do.
    """
    is_plain = kwargs.get("allow_is_causal_skip", True)
    is_custom = kwargs.get("use_vmap", False)
    if attention_mask is None and batch_size == 1 and q_length > 1 and not is_plain and not is_custom:
        return torch.empty((1, 1, 0, 0), dtype=torch.bool, device=device)
    return sdpa_mask(batch_size, q_length, attention_mask=attention_mask, device=device, **kwargs)


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, make_mask)


def packing_problems(model: PreTrainedModel, own_attention: bool = True) -> Iterator[Problem]:
    """Find what keeps a model from reading documents side by side without seeing one from another.

    Args:
        model: The model, on the meta device, with any attention.
        own_attention: Whether it is to have this module's attention, not another one that the config names.
    """
    name, config = model.config.model_type, model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ())
    if getattr(model, "_is_stateful", False) or not layers <= _LAYERS:
        kinds = ", ".join(sorted(layers - _LAYERS)) or "a state"
        yield Problem("data.packing", f"a {name!r} model has {kinds}, which runs from one document to the next.", _CURE)
        return
    if "position_ids" not in inspect.signature(model.forward).parameters:
        yield Problem("data.packing", f"a {name!r} model takes no positions, which start anew in documents.", _CURE)
        return
    calls = _attention_calls(model)
    if not calls or any("cu_seq_lens_q" not in call for call in calls):
        what = f"a {name!r} model does not let transformers' attention interface keep documents apart."
        yield Problem("data.packing", what, _CURE)
    elif not all(call["is_causal"] for call in calls):
        yield Problem("data.packing", f"this {name!r} model reads in both directions.", _CURE)
    elif own_attention and any(call.get(extra) is not None for call in calls for extra in _EXTRAS):
        what = f"a {name!r} model's attention has soft caps, sinks or biases, which the fast attention leaves out."
        yield Problem("data.packing", what, "Set model.attention: eager, or flash_attention_2 on a GPU.")


def prompt_problems(adapter: PeftConfig | None) -> Iterator[Problem]:
    """Find an adapter whose learnt prompt stands before a row, where only the first of its documents would see it."""
    if isinstance(adapter, PromptLearningConfig):
        what = "a learnt prompt stands before a row, not before each of the documents that are packed into it."
        yield Problem("data.packing", what, "Leave it out, or take another adapter (peft.LoraConfig).")


_EXTRAS = ("softcap", "s_aux", "position_bias")


def _attention_calls(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Return the arguments of the attention layers when a packed row runs through a model on the meta device."""
    calls: list[dict[str, Any]] = []

    def record(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        is_causal = kwargs.pop("is_causal", None)
        calls.append({**kwargs, "is_causal": getattr(module, "is_causal", True) if is_causal is None else is_causal})
        return query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None

    # it has no masks registered, so that transformers makes none, for which it would read the positions
    AttentionInterface.register(_PROBE, record)
    before = model.config._attn_implementation
    model.config._attn_implementation = _PROBE
    row = torch.zeros(1, 4, dtype=torch.int64, device="meta")
    bounds = torch.zeros(3, dtype=torch.int32, device="meta")
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 2, "max_length_k": 2}
    try:
        # not every operation can run without data (experts cannot): what was called until then must do
        with contextlib.suppress(Exception), torch.no_grad():
            model(input_ids=row, position_ids=row, use_cache=False, **lengths)
    finally:
        model.config._attn_implementation = before
    return calls
