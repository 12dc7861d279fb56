"""How many floating point operations a training step takes, by formula."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

FORWARD = 2
"""Operations of a forward pass for each weight and token: a multiplication and an addition."""


@dataclass(frozen=True)
class FlopCosts:
    """What a training step of a model costs, for each thing that it is made of; forward and backward together.

    Multiplied matrices are counted and nothing else (Chowdhery et al., "PaLM", 2022, appendix B; Kaplan et al.,
    "Scaling Laws", 2020, section 2.1). For each token a weight costs 2 operations forward, 2 for the gradient of its
    input and 2 for its own, the well-known 6; a frozen weight has no gradient of its own, and below the first weight
    that trains there are no gradients at all. What gradient checkpointing computes again is not counted, so that a
    share of the peak made of this is the model's (MFU), not the hardware's.

    Attributes:
        per_token: For each token that goes through the layers; of an encoder-decoder, through the encoder.
        per_decoder_token: For each token of the decoder of an encoder-decoder; 0 elsewhere.
        per_trained_token: For each token at which the output head is computed.
        per_pair: For each pair of tokens of which one attends to the other (`attended_pairs`), all layers together.
    """

    per_token: float
    per_decoder_token: float
    per_trained_token: float
    per_pair: float

    def step(
        self, tokens: float, attended: float, trained_tokens: float | None = None, decoder_tokens: float = 0
    ) -> float:
        """Return the operations of a step, as `training_flops` does."""
        at_head = trained_tokens if trained_tokens is not None else (decoder_tokens or tokens)
        return (
            tokens * self.per_token
            + decoder_tokens * self.per_decoder_token
            + at_head * self.per_trained_token
            + attended * self.per_pair
        )


def training_flops(
    model: nn.Module,
    tokens: float,
    attended: float,
    trained_tokens: float | None = None,
    decoder_tokens: float = 0,
) -> float:
    """Return the floating point operations of forward and backward on some tokens.

    Args:
        model: A `transformers` or PEFT model, on any device, the meta device too; quantized or not.
        tokens: Tokens that go through the layers; of an encoder-decoder, those of the encoder.
        attended: Pairs of tokens of which one attends to the other, summed over the rows: see `attended_pairs`.
        trained_tokens: Tokens at which the output head is computed; all where it is left out.
        decoder_tokens: Tokens of the decoder of an encoder-decoder.
    """
    return flop_costs(model).step(tokens, attended, trained_tokens, decoder_tokens)


def attended_pairs(lengths: Sequence[int] | np.ndarray, causal: bool) -> float:
    """Return the pairs of tokens of which one attends to the other: n * n a row, half of that where it is causal.

    Args:
        lengths: Tokens of each row (of each document where several are packed into a row).
        causal: Whether a token attends only to those before it, and to itself.
    """
    tokens = np.asarray(lengths, dtype=np.float64)
    return float((tokens * (tokens + 1) / 2 if causal else tokens**2).sum())


def flop_costs(model: nn.Module) -> FlopCosts:
    """Count a model's operations, once; `FlopCosts.step` then costs nothing.

    Matrices inside a stack of layers count for each token, the output head for each trained one; what is computed once
    a row (poolers, heads of classifiers) is left out. Of the experts of a mixture each token takes its few.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    head = getattr(model, "get_output_embeddings", lambda: None)()
    in_head = set(head.modules()) if head is not None else set()  # an adapter may wrap it
    repeats = _repeats(config)
    costs = {"encoder": 0.0, "decoder": 0.0, "head": 0.0}
    two_stacks = bool(getattr(config, "is_encoder_decoder", False))
    learnt = False  # whether something before trains, so that gradients have to come through
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        weight = _matrix_size(module, config)
        trains = any(parameter.requires_grad for parameter in own)
        if weight:
            cost = weight * (FORWARD + FORWARD * learnt + FORWARD * trains)
            if module in in_head:
                costs["head"] += cost
            elif any(part.isdigit() for part in name.split(".")):
                stack = "decoder" if two_stacks and "decoder" in name.split(".") else "encoder"
                costs[stack] += cost * repeats
        learnt = learnt or trains
    per_pair = _attention(config) * 2 * FORWARD * (3 if learnt else 1)
    return FlopCosts(costs["encoder"], costs["decoder"], costs["head"], per_pair)


def _repeats(config: Any) -> float:
    """Return how often each layer is run: models that share layers (ALBERT) run them again."""
    groups = getattr(config, "num_hidden_groups", None)
    return config.num_hidden_layers / groups if groups else 1


def _attention(config: Any) -> float:
    """Return layers times the width of attention: what q @ k and weights @ v each multiply for a pair of tokens."""
    if config is None or not getattr(config, "num_attention_heads", None):
        return 0.0
    heads = config.num_attention_heads
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    return float(config.num_hidden_layers * width)


def _matrix_size(module: nn.Module, config: Any) -> float:
    """Return the elements of a module's matrix that a token is multiplied with."""
    if isinstance(module, nn.Linear | Conv1D):
        weight = module.weight
        state = getattr(weight, "quant_state", None)
        return float(state.shape.numel() if state is not None else _elements(weight, module))
    experts = _experts(module)
    if not experts:
        return 0.0
    chosen, there = getattr(config, "num_experts_per_tok", None), max(weight.shape[0] for weight in experts)
    return sum(weight.numel() for weight in experts) * (chosen / there if chosen else 1)


def _elements(weight: Tensor, module: nn.Module) -> int:
    """Return the elements of a weight; packed ones are known by the features of their module."""
    features = getattr(module, "in_features", 0) * getattr(module, "out_features", 0)
    return max(weight.numel(), features)


def _experts(module: nn.Module) -> list[nn.Parameter]:
    """Return the matrices of experts that are stacked in one parameter [experts, in, out]."""
    return list(_stacked(module)) if "expert" in type(module).__name__.lower() else []


def _stacked(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from (parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 3)
