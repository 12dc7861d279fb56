"""What a training step needs of a device's memory, and of each device's where several share the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.utils.quantization_config import QuantizationConfigMixin

from lit_hf.models.layers import layer_stacks
from lit_hf.models.switches import Switches
from lit_hf.planning.quantized_shapes import quantize_shapes
from lit_hf.planning.rehearsal import Forward, Peaks, rehearse

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]

PRECISIONS = {
    "32-true": (None, None),
    "bf16-mixed": (torch.bfloat16, None),
    "16-mixed": (torch.float16, None),
    "bf16-true": (None, torch.bfloat16),
    "16-true": (None, torch.float16),
}
"""Lightning's names of precisions: what forward is cast to, and what the weights are."""


@dataclass(frozen=True)
class Setting:
    """How a model trains, as far as memory goes.

    Attributes:
        precision: Lightning's name of it.
        switches: What forward and backward keep.
        quantization: How the frozen weights are quantized; None for not at all.
        in_full: Names of modules that are not quantized.
        on_gpu: Whether it trains on a GPU.
    """

    precision: str = "32-true"
    switches: Switches = field(default_factory=Switches)
    quantization: QuantizationConfigMixin | None = None
    in_full: tuple[str, ...] = ()
    on_gpu: bool = False


def step_memory(
    skeleton: nn.Module,
    forward: Forward,
    optimizer: MakeOptimizer,
    setting: Setting,
    adapt: Callable[[nn.Module], nn.Module] | None = None,
) -> Peaks:
    """Return the bytes of a training step on one device that has the whole model.

    Of deep models two shallow ones are rehearsed, and the rest follows from their difference: layers that are alike
    add alike to each peak.

    Args:
        skeleton: The model with its adapter, on the meta device; it is left as it is.
        forward: Computes the loss.
        optimizer: Makes the optimizer of a model's parameters.
        setting: How it trains.
        adapt: Puts an adapter on the model, the same on all layers: on shallow ones that is quickly done.
    """

    def run(layers: int | None) -> Peaks:
        model = shortened(skeleton, layers)
        model = (adapt(model) if adapt is not None else model).train()
        autocast, dtype = PRECISIONS[setting.precision]
        if setting.quantization is not None:
            quantize_shapes(model, setting.quantization, setting.in_full)
        if dtype is not None:
            model = model.to(dtype)
        setting.switches.turn_on(model)
        return rehearse(model, forward, optimizer, autocast, setting.on_gpu)

    depth = depths(skeleton)
    if depth is None:
        return run(None)
    few, more = run(depth.few), run(depth.few + depth.period)
    periods = (depth.layers - depth.few) / depth.period
    return Peaks(*(low + (high - low) * periods for low, high in zip(few, more, strict=True)))


class Depth(NamedTuple):
    """How deep a model is, and how its layers repeat.

    Attributes:
        layers: Layers of each stack.
        few: Layers after which all others are like ones before.
        period: Layers after which they are again like the first of them.
    """

    layers: int
    few: int
    period: int


def depths(model: nn.Module) -> Depth | None:
    """Return how a model's layers repeat, or None where they do not, or are too few for that to save work.

    Layers are alike where their parameters have the same shapes and train alike, and the config gives them one type.
    """
    stacks = list(layer_stacks(model).values())
    if not stacks or len({len(stack) for stack in stacks}) > 1:
        return None
    config: Any = getattr(model, "config", None)
    types = getattr(config.get_text_config(), "layer_types", None) if config is not None else None
    count = len(stacks[0])
    kinds = [
        (*(_kind(stack[index]) for stack in stacks), types[index] if types and len(types) == count else None)
        for index in range(count)
    ]
    for period in range(1, count // 2):
        for first in range(count - 2 * period):
            if all(kinds[index] == kinds[index - period] for index in range(first + period, count)):
                few = max(2, first + period)
                return Depth(count, few, period) if few + period < count else None
    return None


def _kind(layer: nn.Module) -> Any:
    return tuple((name, tuple(part.shape), part.requires_grad) for name, part in layer.named_parameters())


def shortened(model: nn.Module, layers: int | None) -> nn.Module:
    """Return a copy of a model on the meta device with the first layers of each stack, or all."""
    stacks = layer_stacks(model)
    kept = {name: list(stack) for name, stack in stacks.items()}
    try:
        for stack in stacks.values():
            if layers is not None:
                del stack[layers:]
        return copy.deepcopy(model)
    finally:
        for name, stack in stacks.items():
            stack.extend(kept[name][len(stack) :])
