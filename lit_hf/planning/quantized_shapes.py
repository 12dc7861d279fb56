"""Quantized weights that hold no numbers: what bitsandbytes and torchao keep of them, and make while they multiply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from lit_hf.models.quantization import SKIPPED

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

BLOCK = 64
"""Weights that share a scale in 4-bit quantization (Dettmers et al., "QLoRA", 2023, section 3)."""

BLOCK_OF_SCALES = 256
"""Scales that share a scale in double quantization (the same)."""


def has_shapes(config: QuantizationConfigMixin) -> bool:
    """Say whether it is known here what weights that are quantized so look like."""
    return isinstance(config, BitsAndBytesConfig) or (
        isinstance(config, TorchAoConfig)
        and type(config.quant_type).__name__ == "Int8WeightOnlyConfig"
        and not config.include_input_output_embeddings
    )


def quantize_shapes(model: Any, config: QuantizationConfigMixin, in_full: tuple[str, ...] = ()) -> None:
    """Replace the linear layers of a model that would be quantized; what is left is in float32.

    Args:
        model: The model on the meta device, with its adapter.
        config: How it is quantized.
        in_full: Names of modules, or ends of them, that are left.
    """
    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    skipped = next((getattr(config, key) for key in SKIPPED if hasattr(config, key)), None)
    skipped = [*(get_keys_to_not_convert(_plain(core)) if skipped is None else skipped), *in_full]
    make: Any = QuantizedLinear if isinstance(config, BitsAndBytesConfig) else TorchAoLinear
    kinds = (nn.Linear, Conv1D) if make is QuantizedLinear else (nn.Linear,)
    for name, module in list(core.named_modules()):
        own = name.removesuffix(".base_layer")
        is_part = any(part in name.split(".") for part in ("modules_to_save", "original_module"))
        is_frozen = not any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        is_lora = any(part.startswith(("lora_", "vera_", "ia3_", "oft_", "boft_")) for part in name.split("."))
        is_linear = type(module) in kinds and not is_part and not is_lora
        if is_linear and is_frozen and should_convert_module(own, skipped):
            core.set_submodule(name, make(module, config))
    for parameter in model.parameters():  # as peft.prepare_model_for_kbit_training has it
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()


def _plain(core: nn.Module) -> PreTrainedModel:
    """Return the model as transformers sees it; it is asked only for its output head and tied weights."""
    assert isinstance(core, PreTrainedModel)
    return core


class QuantizedLinear(nn.Module):
    """A linear layer of weights that bitsandbytes has packed.

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


class TorchAoLinear(nn.Module):
    """A linear layer of torchao's weights of 8 bits, as its `Int8Tensor` has them.

    It multiplies with the numbers as they lie, and scales the product. What they are turned into for that stays until
    backward has used it.

    Args:
        plain: The layer that is quantized.
        config: How.
    """

    def __init__(self, plain: nn.Linear, config: TorchAoConfig) -> None:
        super().__init__()
        group = getattr(config.quant_type.granularity, "group_size", plain.in_features)
        scales = (plain.out_features, -(-plain.in_features // group))
        with torch.device("meta"):
            numbers = torch.empty(plain.weight.shape, dtype=torch.int8)
            self.weight = nn.Parameter(numbers, requires_grad=False)
            self.scale: Tensor
            self.register_buffer("scale", torch.empty(scales, dtype=torch.float32))
            self.register_buffer("zero_point", torch.empty(scales, dtype=torch.int8))
        self.bias = plain.bias

    def forward(self, states: Tensor) -> Tensor:
        """Multiply with the weights."""
        product = torch.mm(states.reshape(-1, states.shape[-1]), self.weight.t().to(states.dtype))
        scaled = product * self.scale[:, 0].to(product.dtype)
        scaled = scaled.reshape(*states.shape[:-1], scaled.shape[-1])
        if self.bias is not None:
            scaled += self.bias
        return scaled.to(states.dtype)
