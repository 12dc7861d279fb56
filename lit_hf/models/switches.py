"""Switches that change what a model's training costs, and nothing of what it computes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_liger_kernel_available

from lit_hf.errors import Problem
from lit_hf.models.layers import layer_stacks


@dataclass(frozen=True)
class Switches:
    """What a model's training may cost.

    Attributes:
        gradient_checkpointing: Keep no activations inside of layers; compute them again in the backward pass.
        compile: Compile the layers with `torch.compile`.
        liger: Replace norms, rotary embeddings and activations by liger-kernel's Triton kernels.
    """

    gradient_checkpointing: bool = False
    compile: bool = False
    liger: bool = False

    def problems(self, base: PreTrainedModel) -> Iterator[Problem]:
        """Find switches that this model or this machine does not have.

        Args:
            base: The base model, on the meta device.
        """
        if self.gradient_checkpointing and not base.supports_gradient_checkpointing:
            what = f"{type(base).__name__} has no gradient checkpointing."
            yield Problem("model.gradient_checkpointing", what, "Leave it out, and lower data.batch_size instead.")
        if self.compile and (missing := _missing_compiler()):
            yield Problem("model.compile", f"there is no {missing} here.", "Install it, or leave it out.")
        if self.liger:
            yield from _liger_problems(base)

    def turn_on(self, model: nn.Module) -> None:
        """Switch on what saves memory; it is for training only, and holds from then on.

        Args:
            model: The `transformers` or PEFT model, with its weights.
        """
        base = base_model(model)
        _train_without_cache(base)
        if self.gradient_checkpointing:
            # its name before transformers 5.23 is a warning now
            enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
            enable({"use_reentrant": False})

    def speed_up(self, model: nn.Module) -> None:
        """Replace kernels and compile, as training starts: what other verbs do with the model needs neither.

        Each layer is compiled in place, for all shapes, so that names of modules and weights stay as they are. Layers
        share their code, so that one compilation serves all of them; embeddings, the head and the loss, which look into
        the batch, stay as they are. A model without a list of layers is compiled whole.

        Args:
            model: The `transformers` or PEFT model, on its device.
        """
        if self.liger:
            from transformers.integrations.liger import apply_liger_kernel

            # the loss is the task's own
            apply_liger_kernel(base_model(model), {"cross_entropy": False, "fused_linear_cross_entropy": False})
        layers = [layer for stack in layer_stacks(model).values() for layer in stack]
        for module in (layers or [model]) if self.compile else ():
            module.compile(dynamic=True)


def base_model(model: nn.Module) -> Any:
    """Return the `transformers` model inside of a PEFT model, or the model itself."""
    return getattr(model, "get_base_model", lambda: model)()


def _train_without_cache(base: PreTrainedModel) -> None:
    """Keep no keys and values in training, which a model does by default as if it were to go on generating."""
    if "use_cache" not in inspect.signature(base.forward).parameters:
        return

    def turn_off(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {"use_cache": False, **kwargs} if module.training else kwargs

    base.register_forward_pre_hook(turn_off, with_kwargs=True)


def _missing_compiler() -> str:
    """Return what torch.compile's backend lacks on this machine: Triton on a GPU, a C++ compiler without one."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if torch.cuda.is_available():
        return "" if has_triton() else "Triton"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "C++ compiler (g++)"
    return ""


def _liger_problems(base: PreTrainedModel) -> Iterator[Problem]:
    where = "model.liger"
    if not torch.cuda.is_available():
        yield Problem(where, "liger-kernel needs a CUDA GPU, and there is none.", "Leave it out.")
    elif not is_liger_kernel_available():
        yield Problem(where, "liger-kernel is not installed.", "pip install liger-kernel, or leave it out.")
    else:
        # no dependency of ours: only those who switch it on have it
        known = import_module("liger_kernel.transformers.monkey_patch").MODEL_TYPE_TO_APPLY_LIGER_FN
        if base.config.model_type not in known:
            what = f"liger-kernel has no kernels for a {base.config.model_type!r} model."
            yield Problem(where, what, f"Leave it out. It has them for: {', '.join(sorted(known))}.")
