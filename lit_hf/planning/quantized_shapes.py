"""Quantized weights that hold no numbers: what bitsandbytes keeps of them, and what it makes while it multiplies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

BLOCK = 64
"""Weights that share a scale in 4-bit quantization (Dettmers et al., "QLoRA", 2023, section 3)."""

BLOCK_OF_SCALES = 256
"""Scales that share a scale in double quantization (the same)."""


def quantize_shapes(model: Any, config: BitsAndBytesConfig, in_full: tuple[str, ...] = ()) -> None:
    """Replace the linear layers of a model that bitsandbytes would quantize; what is left is in float32.

    Args:
        model: The model on the meta device, with its adapter.
        config: How it is quantized.
        in_full: Names of modules, or ends of them, that are left.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    skipped = config.llm_int8_skip_modules
    skipped = [*(get_keys_to_not_convert(_plain(core)) if skipped is None else skipped), *in_full]
    for name, module in list(core.named_modules()):
        own = name.removesuffix(".base_layer")
        is_part = any(part in name.split(".") for part in ("modules_to_save", "original_module"))
        is_frozen = not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        is_lora = any(part.startswith(("lora_", "vera_", "ia3_", "oft_", "boft_")) for part in name.split("."))
        is_linear = type(module) in (nn.Linear, Conv1D) and not is_part and not is_lora
        if is_linear and is_frozen and should_convert_module(own, skipped):
            core.set_submodule(name, QuantizedLinear(module, config))
    for parameter in model.parameters():  # as peft.prepare_model_for_kbit_training has it
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()


def _plain(core: nn.Module) -> PreTrainedModel:
    """Return the model as transformers sees it; it is asked only for its output head and tied weights."""
    assert isinstance(core, PreTrainedModel)
    return core


class QuantizedLinear(nn.Module):
    """A linear layer of packed weights.

    Args:
        plain: The layer that is quantized.
        config: How.
    """

    def __init__(self, plain: Any, config: BitsAndBytesConfig) -> None:
        super().__init__()
        shape = plain.weight.shape if isinstance(plain, nn.Linear) else plain.weight.t().shape
        self.out_features: int = shape[0]
        self.in_features: int = shape[1]
        self.dtype, self.bits = plain.weight.dtype, 4 if config.load_in_4bit else 8
        self.compute_dtype = config.bnb_4bit_compute_dtype if config.load_in_4bit else None
        count = shape.numel()
        with torch.device("meta"):
            packed = torch.empty(-(-count * self.bits // 8), dtype=torch.uint8)
            self.weight = nn.Parameter(packed, requires_grad=False)
            self.register_buffer("scales", _scales(count, self.out_features, config))
        self.bias = plain.bias

    def forward(self, states: Tensor) -> Tensor:
        """Multiply with the weights, which are unpacked for as long as it takes."""
        dtype = states.dtype
        if self.compute_dtype is not None:
            states = states.to(self.compute_dtype)
        bias = self.bias.to(states.dtype) if self.bias is not None and self.bits == 4 else self.bias
        return _Multiply.apply(states, bias, self).to(dtype)


def _scales(count: int, rows: int, config: BitsAndBytesConfig) -> Tensor:
    """Return room for the scales: a float32 for a row of 8 bits or a block of 4, or a byte and its share of another."""
    if not config.load_in_4bit:
        return torch.empty(rows, dtype=torch.float32)
    blocks = -(-count // BLOCK)
    if not config.bnb_4bit_use_double_quant:
        return torch.empty(blocks, dtype=torch.float32)
    return torch.empty(blocks + 4 * -(-blocks // BLOCK_OF_SCALES), dtype=torch.uint8)


class _Multiply(torch.autograd.Function):
    """As `bitsandbytes.autograd`: MatMul4Bit keeps the packed weights only, MatMul8bitLt and -Fp its input too."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, bias: Tensor | None, layer: QuantizedLinear) -> Tensor:
        ctx.layer, ctx.states = layer, states if layer.bits == 8 else None
        ctx.dtype = states.dtype
        weight = torch.empty(layer.out_features, layer.in_features, dtype=states.dtype)
        return functional.linear(states, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        layer = ctx.layer
        dtype = layer.dtype if layer.bits == 4 else ctx.dtype
        weight = torch.empty(layer.out_features, layer.in_features, dtype=dtype)
        return gradient @ weight.to(gradient.dtype), None, None
