"""Attention implementations: which there are, and what is said of those that cannot be had."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import AttentionInterface

from lit_hf.errors import Problem, nearest

WHERE = "model.attention"


def attention_problems(attention: str | None) -> Iterator[Problem]:
    """Find an attention implementation that does not exist, or that does not train on this machine.

    Args:
        attention: The implementation's name; None leaves the choice to transformers.
    """
    names = {"eager", *(name for name in AttentionInterface().valid_keys() if "|" not in name)}
    if attention is None or "/" in attention:  # a kernel of the Hub
        return
    if attention not in names:
        yield Problem(WHERE, f"no attention is named {attention!r}.", nearest(attention, names))
    elif attention == "flex_attention" and not torch.cuda.is_available():
        what = "flex_attention trains on a GPU only: on the CPU it has no backward pass."
        yield Problem(WHERE, what, "Leave it out, or take sdpa.")


def unavailable(attention: str, error: Exception) -> Problem:
    """Return the problem of an attention implementation that a model or a machine does not have.

    Args:
        attention: The implementation's name.
        error: What transformers said of it.
    """
    reason = " ".join(str(error).split()).rpartition("following error: ")[2]
    cure = "Leave it out to let transformers choose."
    if attention.startswith("flash"):
        cure = f"Install flash-attn, for a CUDA GPU: pip install flash-attn. {cure.replace('Leave', 'Or leave')}"
    return Problem(WHERE, f"{attention} cannot be had: {reason}", cure)
