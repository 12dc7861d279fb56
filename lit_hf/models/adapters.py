"""PEFT adapters: any config by `class_path`, with the new head trained beside it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lit_hf.errors import InputError, Problem
from lit_hf.models.module_names import closest

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start LoRA that change the base model's own weights."""

WHERE = "model.adapter.init_args"

_REFUSALS = (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What PEFT raises where an adapter does not fit a model."""


def add_adapter(model: PreTrainedModel, adapter: Any, task_type: str | None, new_weights: Collection[str]) -> PeftModel:
    """Wrap a model in an adapter; what is new in the model, its head, trains in full.

    Args:
        model: The base model.
        adapter: A PEFT config; its task type, target modules and head are filled in where they are left out.
        task_type: PEFT's name of the task (`SEQ_CLS`).
        new_weights: Names of the model's weights that no checkpoint has trained.

    Raises:
        InputError: If PEFT has no such adapter for this model.
    """
    if adapter.task_type is None:
        adapter.task_type = task_type
    if getattr(adapter, "target_modules", "none") is None and _takes_all_linear(model, adapter):
        adapter.target_modules = "all-linear"
    if heads := _heads(model, new_weights):
        if not hasattr(adapter, "modules_to_save"):
            what = f"{type(adapter).__name__} trains nothing beside itself, but these weights are new: "
            raise InputError(Problem("model.adapter", f"{what}{', '.join(sorted(heads))}.", "Take another adapter."))
        adapter.modules_to_save = sorted({*(adapter.modules_to_save or ()), *heads})
    try:
        with own_rank_pattern(adapter):
            return get_peft_model(model, adapter)
    except _REFUSALS as error:
        raise InputError(_refusal(adapter, error)) from error


def _refusal(adapter: PeftConfig, error: Exception) -> Problem:
    text = " ".join(str(error).split()) or type(error).__name__
    return Problem("model.adapter", f"{type(adapter).__name__} does not fit this model: {text.removesuffix('.')}.")


@contextmanager
def own_rank_pattern(adapter: PeftConfig) -> Iterator[None]:
    """Keep PEFT from warning of AdaLoRA's ranks, which it takes for those of LoRA, by other names."""
    with warnings.catch_warnings():
        if hasattr(adapter, "total_step"):
            warnings.filterwarnings("ignore", "The following rank_pattern keys did not match")
        yield


def _takes_all_linear(model: PreTrainedModel, adapter: Any) -> bool:
    """Say whether the adapter goes to linear layers, and PEFT does not know to which of this architecture."""
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[adapter.peft_type]
    known = getattr(tuner, "target_module_mapping", {})
    goes_to_norms = any("norm" in name for names in known.values() for name in names)
    return bool(known) and model.config.model_type not in known and not goes_to_norms


def _heads(model: PreTrainedModel, new_weights: Collection[str]) -> set[str]:
    """Return the modules that hold new weights: `classifier` of `classifier.out_proj.weight`, `bert.pooler.dense`."""
    prefix = f"{model.base_model_prefix}."
    inside = {name.rpartition(".")[0] for name in new_weights if name.startswith(prefix)}
    return inside | {name.partition(".")[0] for name in new_weights if not name.startswith(prefix)}


def adapter_problems(adapter: PeftConfig, skeleton: nn.Module) -> Iterator[Problem]:
    """Find settings that an adapter lacks, and target modules and modules to save that no module of the model matches.

    Args:
        adapter: The adapter's config.
        skeleton: The model, on the meta device.
    """
    yield from _setting_problems(adapter)
    names = {name: any(True for _ in module.parameters(recurse=False)) for name, module in skeleton.named_modules()}
    with_weights = [name for name, has_weights in names.items() if has_weights]
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        wanted = getattr(adapter, key, None)
        if isinstance(wanted, str) and not adapter.is_adaption_prompt:
            if wanted != "all-linear" and not any(re.fullmatch(wanted, name) for name in names):
                yield _unmatched(key, wanted, with_weights)
            continue
        for entry in [wanted] if isinstance(wanted, str) else sorted(wanted or ()):
            if not any(name == entry or name.endswith(f".{entry}") for name in names):
                yield _unmatched(key, entry, with_weights)
    yield from _part_problems(adapter, skeleton, with_weights)


def _part_problems(adapter: Any, skeleton: nn.Module, modules: Collection[str]) -> Iterator[Problem]:
    """Find layers, parameters and patterns of ranks that the model has nothing for; PEFT overlooks them.

    Args:
        adapter: The adapter's config.
        skeleton: The model, on the meta device.
        modules: Names of the modules that have weights.
    """
    given = getattr(adapter, "layers_to_transform", None)
    layers = sorted({int(part) for name in modules for part in name.split(".") if part.isdigit()})
    if lost := sorted({given} - {*layers} if isinstance(given, int) else {*(given or ())} - {*layers}):
        what = f"the model has no layer {', '.join(map(str, lost))}."
        there = f"Its layers are {layers[0]} to {layers[-1]}." if layers else "It has no numbered layers."
        yield Problem(f"{WHERE}.layers_to_transform", what, there)
    parameters = [name for name, _ in skeleton.named_parameters()]
    for entry in getattr(adapter, "target_parameters", None) or ():
        if not any(name == entry or name.endswith(f".{entry}") for name in parameters):
            what = f"{entry!r} matches no parameter of the model."
            yield Problem(f"{WHERE}.target_parameters", what, closest(entry, parameters))
    # AdaLoRA's rank_pattern is what came of its training
    for key in () if hasattr(adapter, "total_step") else ("rank_pattern", "alpha_pattern"):
        for entry in getattr(adapter, key, None) or ():
            if not any(re.match(rf"(.*\.)?({entry})$", name) for name in modules):
                yield _unmatched(key, entry, modules)


def _unmatched(key: str, wanted: str, names: Collection[str]) -> Problem:
    return Problem(f"{WHERE}.{key}", f"{wanted!r} matches no module of the model.", closest(wanted, names))


def _setting_problems(adapter: Any) -> Iterator[Problem]:
    """Find settings that PEFT cannot do without, or that ask for what a run has not got."""
    kind = type(adapter).__name__
    if adapter.is_prompt_learning and not adapter.num_virtual_tokens:
        yield Problem(f"{WHERE}.num_virtual_tokens", f"{kind} needs it.", "20 is a good start.")
    for key in ("adapter_len", "adapter_layers") if adapter.is_adaption_prompt else ():
        if getattr(adapter, key) is None:
            yield Problem(f"{WHERE}.{key}", f"{kind} needs it.")
    if hasattr(adapter, "n_tasks") or hasattr(adapter, "num_tasks"):
        what = f"{kind} learns several tasks at once from each row's task id, and a run has one task."
        yield Problem("model.adapter", what, "Take another adapter, such as peft.LoraConfig.")
    if hasattr(adapter, "token_indices") and not adapter.token_indices:
        yield Problem(
            f"{WHERE}.token_indices", f"{kind} trains the embeddings of these tokens only.", "List their ids."
        )
    if hasattr(adapter, "cpt_token_ids"):
        what = f"{kind} trains a prompt of worked examples through a loss of its own, which a task does not have."
        yield Problem("model.adapter", what, "Take peft.PromptTuningConfig.")
    if hasattr(adapter, "global_scaling_weight"):
        what = f"{kind} mixes LoRA adapters that are trained already by a gate with a forward pass of its own."
        yield Problem("model.adapter", what, "Merge one (model.merge_adapters), and train a new one.")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if changes_base(adapter) == "loftq" and (accelerator is None or accelerator.type not in ("cuda", "xpu")):
        what = "PEFT computes LoftQ on a GPU (CUDA or XPU) only, unless the base is quantized."
        cure = "Quantize the base (model.quantization), where LoftQ starts on any device; or leave it out."
        yield Problem(f"{WHERE}.init_lora_weights", what, cure)
    if hasattr(adapter, "total_step"):
        yield from _budget_problems(adapter)


def _budget_problems(adapter: Any) -> Iterator[Problem]:
    """Find settings of AdaLoRA by which its ranks cannot shrink, or not to what is asked for."""
    if not 0 < adapter.target_r < adapter.init_r:
        what = f"{adapter.init_r} ranks cannot shrink to {adapter.target_r}."
        yield Problem(f"{WHERE}.target_r", what, "Give 1 or more, and less than init_r.")
    for key, least in (("tinit", 0), ("tfinal", 0), ("deltaT", 1)):
        if (value := getattr(adapter, key)) < least:
            yield Problem(f"{WHERE}.{key}", f"{value} is too few steps.", f"Give {least} or more.")
    for key in ("beta1", "beta2"):
        if not 0 < (value := getattr(adapter, key)) < 1:
            yield Problem(f"{WHERE}.{key}", f"{value} is not between 0 and 1.", "Leave it out (0.85).")


def reference_problems(adapter: PeftConfig) -> Iterator[Problem]:
    """Find settings under which the model with the adapter off is not the one from before training.

    Args:
        adapter: The adapter's config, for a task that compares with that model.
    """
    cause = "the task compares with the model as it was before training, but"
    if start := changes_base(adapter):
        yield Problem(f"{WHERE}.init_lora_weights", f"{cause} {start!r} changes its weights.", "Leave it out.")
    if (bias := getattr(adapter, "bias", "none")) != "none":
        yield Problem(f"{WHERE}.bias", f"{cause} {bias!r} trains its biases.", "Leave it out.")


def settle_ranks(model: PeftModel) -> None:
    """Have an adapter that moves ranks (AdaLoRA) be written with those that it has; PEFT keeps them in its config.

    At least one is kept of each layer: PEFT takes tensors without any for damaged ones.
    """
    config: Any = model.active_peft_config
    if not hasattr(config, "total_step"):
        return
    pattern = {}
    tuner: Any = model.base_model
    for name, values in tuner.model.named_parameters():
        if ".lora_E." in name:
            kept = (values != 0).flatten().tolist()
            pattern[name] = kept if any(kept) else [True, *kept[1:]]
    config.rank_pattern = pattern


def changes_base(adapter: PeftConfig | None) -> str | None:
    """Return the way to start the adapter, where it changes the base model's own weights."""
    start = getattr(adapter, "init_lora_weights", True)
    return start if isinstance(start, str) and start.lower().startswith(CHANGES_BASE) else None


def export_problems(adapter: PeftConfig | None, merged: Sequence[str], merge: bool) -> Iterator[Problem]:
    """Find adapters that would be no use alone, because the base model that they were trained on is not kept.

    Args:
        adapter: The adapter's config.
        merged: Adapters that are merged into the base model before.
        merge: Whether the export merges the adapter into the base model too.
    """
    start, cure = changes_base(adapter), "Export both as one model: merge: true."
    if adapter is None or merge:
        return
    if start is not None and start not in ("pissa", "olora"):  # PEFT repeats these two as it loads the adapter
        what = f"{start!r} changes the base model's weights, so the adapter alone would be no use."
        yield Problem(f"{WHERE}.init_lora_weights", what, cure)
    if merged:
        what = "the new adapter is trained on a base with others merged into it, so it alone would be no use."
        yield Problem("model.merge_adapters", what, cure)
