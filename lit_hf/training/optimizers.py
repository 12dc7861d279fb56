"""The optimizer: which parameters decay, what their learning rates are, and how these go."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from lit_hf.errors import InputError, Problem
from lit_hf.models.layers import distances_from_output, layer_stacks

log = logging.getLogger("lit_hf")

NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""Names of parameters that do not decay, as in the Hugging Face Trainer; those of any LayerNorm neither."""


@dataclass
class Schedule:
    """How the learning rate goes over the optimizer's steps.

    Args:
        name: `linear` and `cosine` fall to zero at the last step, `warmup_stable_decay` only in the end.
        warmup: Steps of linear warm-up; below 1 a share of all steps.
        decay: For `warmup_stable_decay`: the steps of the fall at the end; below 1 a share of all steps.
    """

    name: Literal["linear", "cosine", "constant", "warmup_stable_decay"] = "linear"
    warmup: float = 0.1
    decay: float = 0.2

    def problems(self) -> list[Problem]:
        """Find settings that make no schedule."""
        wrong = [key for key in ("warmup", "decay") if getattr(self, key) < 0]
        problems = [
            Problem(f"model.schedule.{key}", f"{getattr(self, key)} is negative.", "Give 0 or more.") for key in wrong
        ]
        if self.decay != Schedule.decay and self.name != "warmup_stable_decay":
            what = f"the schedule {self.name} has none."
            problems.append(Problem("model.schedule.decay", what, "Leave it out, or take warmup_stable_decay."))
        return problems

    @property
    def needs_end(self) -> bool:
        """Whether the rates depend on how many steps there are."""
        return self.name != "constant" or 0 < self.warmup < 1

    def build(self, optimizer: Optimizer, total_steps: float) -> LRScheduler:
        """Return the scheduler; step it once an optimizer step.

        Args:
            optimizer: Its learning rates are the highest ones of the schedule.
            total_steps: Optimizer steps of the whole training; infinite if there is no end.

        Raises:
            InputError: If the schedule needs an end and there is none.
        """
        if total_steps < 0:  # what Lightning answers for a loader without a length
            total_steps = math.inf
        if math.isinf(total_steps) and self.needs_end:
            raise InputError(
                Problem(
                    "model.schedule",
                    "the schedule needs to know the last step, and the training has no end.",
                    "Set trainer.max_steps or trainer.max_epochs, or the schedule to constant with a warmup in steps.",
                )
            )
        warmup = _steps(self.warmup, total_steps)
        if warmup >= total_steps:
            log.warning("the warm-up of %s steps is not over when the run ends, after %s", warmup, int(total_steps))
        if self.name == "constant":
            return get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=warmup)
        extra: dict[str, Any] = {}
        if self.name == "warmup_stable_decay":
            extra = {"num_decay_steps": _steps(self.decay, total_steps)}
        return get_scheduler(
            self.name,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=int(total_steps),
            scheduler_specific_kwargs=extra,
        )


def _steps(amount: float, total_steps: float) -> int:
    """Return a number of steps that is given as such or, below 1, as a share of all."""
    return math.ceil(amount * total_steps) if 0 < amount < 1 else int(amount)


@dataclass
class Rates:
    """Learning rates of parts of the model, as multiples of the optimizer's.

    Args:
        lora_b: For the matrices B of LoRA, which start at zero; 16 is what LoRA+ recommends.
        layer_decay: The factor from each layer to the one below it, as in ELECTRA and BEiT (0.9, 0.8, 0.65).
    """

    lora_b: float | None = None
    layer_decay: float | None = None

    def problems(self, model: nn.Module) -> Iterator[Problem]:
        """Find factors that are out of range, or that no parameter of the model would get.

        Args:
            model: The model with its adapter, on the meta device.
        """
        if self.lora_b is not None:
            names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
            if self.lora_b <= 0:
                yield Problem("model.rates.lora_b", f"{self.lora_b} is not above 0.", "Give a factor such as 16.")
            elif not any("lora_B" in name for name in names):
                what = "no matrix B of LoRA trains in this model."
                yield Problem("model.rates.lora_b", what, "Leave it out, or set model.adapter to peft.LoraConfig.")
        if self.layer_decay is not None:
            if not 0 < self.layer_decay <= 1:
                what = f"{self.layer_decay} is not between 0 and 1."
                yield Problem("model.rates.layer_decay", what, "Give a factor such as 0.9.")
            elif not layer_stacks(model):
                yield Problem("model.rates.layer_decay", "the model has no list of layers.", "Leave it out.")

    def factors(self, model: nn.Module) -> dict[str, float]:
        """Return what the learning rate of each parameter is multiplied by, by the parameter's name.

        The decay is that of BEiT (Bao et al. 2021, `get_num_layer_for_vit`; before it ELECTRA, Clark et al. 2020): with
        n layers `decay ** (n - i)` for layer i from 0, 1 for the head and `decay ** (n + 1)` for the embeddings. LoRA+
        (Hayou et al. 2024) is the authors' code, also in `peft.optimizers`: parameters of one dimension (biases, norms
        and magnitudes that train beside the adapter) go with the matrices B. LoRA of embeddings is not scaled.
        """
        distances = distances_from_output(model) if self.layer_decay is not None else {}
        factors = {}
        for name, parameter in model.named_parameters():
            factors[name] = (self.layer_decay or 1.0) ** distances.get(name, 0)
            if self.lora_b is not None and ("lora_B" in name or parameter.ndim == 1):
                factors[name] *= self.lora_b
        return factors


RATE = "rate"
"""Key of a parameter group: the factor of its learning rate, where there is one."""


def parameter_groups(model: nn.Module, rates: Rates | None = None) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups: with the optimizer's weight decay, and without (biases, norms).

    Where `rates` are given, there are two such groups for each learning rate, the highest first, with its factor.
    """
    decaying = set(get_parameter_names(model, [nn.LayerNorm], NO_DECAY))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    factors = (rates or Rates()).factors(model)
    groups: list[dict[str, Any]] = []
    for factor in sorted({factors[name] for name, _ in named}, reverse=True):
        mine = [(name, parameter) for name, parameter in named if factors[name] == factor]
        rate = {RATE: factor} if factor != 1 else {}
        groups += [
            {"params": [parameter for name, parameter in mine if name in decaying], **rate},
            {"params": [parameter for name, parameter in mine if name not in decaying], "weight_decay": 0.0, **rate},
        ]
    return [group for group in groups if group["params"]]


def build_optimizer(create: Callable[[Any], Optimizer], groups: list[dict[str, Any]], is_scaled: bool) -> Optimizer:
    """Return the optimizer of parameter groups, each with its learning rate.

    Args:
        create: Makes the optimizer that the config asks for.
        groups: From `parameter_groups`.
        is_scaled: Whether gradients are scaled against underflow, in float16.

    Fused kernels are taken where the config leaves that open and the optimizer has them: they compute the same, to
    rounding, in one pass over the weights. Not where gradients are scaled: they scale them back only in their step, so
    that they could not be clipped before.
    """
    optimizer = create([dict(group) for group in groups])  # it writes its defaults into them
    if not is_scaled and _may_be_fused(optimizer):
        given = {name: optimizer.defaults[name] for name in signature(type(optimizer)).parameters if name != "params"}
        optimizer = type(optimizer)(groups, **{**given, "fused": True})
    if not is_scaled:  # the flag is for a scaler; Lightning would not clip because of it, even where there is none
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group.get(RATE, 1)
    return optimizer


def base_rate(optimizer: Optimizer) -> float:
    """Return the optimizer's learning rate as it is now, without the factors of `Rates`."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get(RATE, 1)


def _may_be_fused(optimizer: Optimizer) -> bool:
    """Say whether it is one of torch's own, has fused kernels for all its weights, and no other kernels were asked."""
    others = ("fused", "foreach", "capturable", "differentiable")
    names = signature(type(optimizer)).parameters
    if not type(optimizer).__module__.startswith("torch.optim.") or "fused" not in names:
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(isinstance(parameter, DTensor) for parameter in parameters) and not isinstance(optimizer, Adam):
        return False  # torch has no other kernels for weights that are cut; AdamW is an Adam
    return (
        optimizer.defaults["fused"] is None
        and not any(optimizer.defaults.get(name) for name in others)
        and all(name == "params" or name in optimizer.defaults for name in names)
        and all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps", "xpu") for p in parameters)
    )
