"""PEFT adapters: any config by `class_path`, with the new head trained beside it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lit_hf.errors import Problem

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start LoRA that change the base model's own weights."""


def add_adapter(model: PreTrainedModel, adapter: Any, task_type: str | None, new_weights: Collection[str]) -> PeftModel:
    """Wrap a model in an adapter; what is new in the model, its head, trains in full.

    Args:
        model: The base model.
        adapter: A PEFT config; its task type, target modules and head are filled in where they are left out.
        task_type: PEFT's name of the task (`SEQ_CLS`).
        new_weights: Names of the model's weights that no checkpoint has trained.
    """
    if adapter.task_type is None:
        adapter.task_type = task_type
    if getattr(adapter, "target_modules", "none") is None and not _has_default_targets(model, adapter):
        adapter.target_modules = "all-linear"
    if heads := _heads(model, new_weights):
        adapter.modules_to_save = sorted({*(adapter.modules_to_save or ()), *heads})
    return get_peft_model(model, adapter)


def _has_default_targets(model: PreTrainedModel, adapter: Any) -> bool:
    """Say whether PEFT knows which modules of this architecture the adapter goes to."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[adapter.peft_type]
    return model.config.model_type in getattr(tuner, "target_module_mapping", {})


def _heads(model: PreTrainedModel, new_weights: Collection[str]) -> set[str]:
    """Return the modules that hold new weights: `classifier` of `classifier.out_proj.weight`, `bert.pooler.dense`."""
    prefix = f"{model.base_model_prefix}."
    inside = {name.rpartition(".")[0] for name in new_weights if name.startswith(prefix)}
    return inside | {name.partition(".")[0] for name in new_weights if not name.startswith(prefix)}


def adapter_problems(adapter: PeftConfig, skeleton: nn.Module) -> Iterator[Problem]:
    """Find target modules and modules to save that no module of the model matches.

    Args:
        adapter: The adapter's config.
        skeleton: The model, on the meta device.
    """
    names = [name for name, _ in skeleton.named_modules() if name]
    for key in ("target_modules", "modules_to_save"):
        wanted = getattr(adapter, key, None)
        if isinstance(wanted, str):
            if wanted != "all-linear" and not any(re.fullmatch(wanted, name) for name in names):
                yield _unmatched(key, wanted, names)
            continue
        for entry in wanted or ():
            if not any(name == entry or name.endswith(f".{entry}") for name in names):
                yield _unmatched(key, entry, names)


def reference_problems(adapter: PeftConfig) -> Iterator[Problem]:
    """Find settings under which the model with the adapter off is not the one from before training.

    Args:
        adapter: The adapter's config, for a task that compares with that model.
    """
    where, cause = "model.adapter.init_args", "the task compares with the model as it was before training, but"
    start = getattr(adapter, "init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        yield Problem(f"{where}.init_lora_weights", f"{cause} {start!r} changes its weights.", "Leave it out.")
    if (bias := getattr(adapter, "bias", "none")) != "none":
        yield Problem(f"{where}.bias", f"{cause} {bias!r} trains its biases.", "Leave it out.")


def _unmatched(key: str, wanted: str, names: Iterable[str]) -> Problem:
    leaves = sorted({name.rpartition(".")[2] for name in names} - {str(number) for number in range(1000)})
    return Problem(
        f"model.adapter.init_args.{key}",
        f"{wanted!r} matches no module of the model.",
        f"Its modules are named: {', '.join(leaves)}.",
    )
