"""LoftQ on quantized weights: LoRA starts from what quantization lost, so that training starts near the original."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lit_hf.errors import Problem
from lit_hf.models.quantization import is_quantized

log = logging.getLogger("lit_hf")


def asks_for_loftq(adapter: PeftConfig | None) -> bool:
    """Say whether an adapter is to start by LoftQ."""
    return getattr(adapter, "init_lora_weights", None) == "loftq"


def as_plain_lora(adapter: Any) -> None:
    """Have PEFT make plain LoRA of an adapter that starts by LoftQ, as its own way needs weights that are not packed.

    What is saved is plain LoRA too: the start is in its matrices, and is not to be computed again as they are loaded.
    """
    adapter.init_lora_weights = True
    adapter.loftq_config = {}


def loftq_problems(adapter: Any) -> Iterator[Problem]:
    """Find an adapter on quantized weights that LoftQ has no start for; PEFT refuses AdaLoRA itself."""
    if adapter.use_dora:
        what = "on quantized weights LoftQ starts plain LoRA, and DoRA's magnitudes would not fit its start."
        yield Problem("model.adapter.init_args.use_dora", what, "Leave it out, or init_lora_weights.")


@torch.no_grad()
def start_from_loss(adapted: PeftModel, original: nn.Module) -> None:
    """Set LoRA's matrices to the best approximation of what quantization took from the weights they stand on.

    Li et al., "LoftQ", 2023, algorithm 1 with one iteration, which leaves the quantized weights as they are; so does
    `peft.replace_lora_weights_loftq`, on CUDA and 4 bits only. Here LoRA's scaling is counted in.

    Args:
        adapted: The quantized model with plain LoRA on it, which adds nothing yet.
        original: The same model before it was quantized, on any device.
    """
    lost = left = 0.0
    for name, layer in cast(nn.Module, adapted.get_base_model()).named_modules():
        if isinstance(layer, LoraLayer) and is_quantized(layer.get_base_layer()):
            error = _error(layer, original.get_submodule(name))
            u, values, v = torch.linalg.svd(error / layer.scaling["default"], full_matrices=False)
            rank = layer.r["default"]
            root = values[:rank].sqrt()
            for part, value in ((layer.lora_A, root[:, None] * v[:rank]), (layer.lora_B, u[:, :rank] * root)):
                weight = cast(Tensor, part["default"].weight)
                weight.copy_(value.to(weight.dtype))
            lost += error.square().sum().item()
            left += (values[rank:] * layer.scaling["default"]).square().sum().item()
    share = 1 - (left / lost) ** 0.5 if lost else 0.0
    log.info("adapter: LoftQ gives back %s of what quantization took from the weights", f"{share:.0%}")


def _error(layer: Any, original: Any) -> Tensor:
    """Return the original weights of a layer minus its quantized ones, [outputs, inputs]."""
    quantized = cast(Tensor, dequantize_module_weight(layer.get_base_layer())).float()
    weight = original.weight.t() if isinstance(original, Conv1D) else original.weight  # which has inputs first
    return weight.to(quantized.device, torch.float32) - quantized
