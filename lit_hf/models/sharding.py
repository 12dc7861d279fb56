"""What of a model can be cut into rows among devices, a layer at a time, and what cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from peft import PeftConfig
from torch import nn

from lit_hf.errors import Problem
from lit_hf.models.layers import layer_stacks

_UNCUT = {
    "ADALORA": "computes on the whole of its factors between steps",
    "OSF": "changes gradients as they are computed, before they are summed and cut",
    "SHADOW": "shares tensors with the layers beside which it computes",
}
"""PEFT's methods that train wrongly or not at all where weights are cut, and why."""

CURE = "Take another one, such as peft.LoraConfig; or trainer.strategy: ddp."


def computing_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a model's stacks that compute something, by name: a list in a list does not."""
    layers: dict[str, nn.Module] = {}
    for stack, modules in layer_stacks(model).items():
        for name, layer in modules.named_children():
            inner = layer.named_children() if isinstance(layer, nn.ModuleList) else [("", layer)]
            layers |= {".".join(filter(None, (stack, name, part))): module for part, module in inner}
    return layers


def adapter_problems(adapter: PeftConfig | None) -> Iterator[Problem]:
    """Find an adapter that needs its weights whole outside of the layers' own computing."""
    name = getattr(getattr(adapter, "peft_type", None), "value", None)
    why = _UNCUT.get(name or "")
    if getattr(adapter, "kasa_config", None) is not None or getattr(adapter, "monteclora_config", None) is not None:
        why = "adds a term to the loss from the whole of its factors"
    if why:
        yield Problem("model.adapter", f"{type(adapter).__name__} {why}, so that it cannot be cut (fsdp2).", CURE)


def model_problems(model: nn.Module) -> Iterator[Problem]:
    """Find weights that cannot be cut a layer at a time, and layers that a rank may leave out.

    Args:
        model: The model with its adapter, on the meta device.
    """
    if shared := _shared_between_layers(model):
        what = f"layers share weights ({shared[0]}), so that they cannot be cut a layer at a time (fsdp2)."
        is_adapter = hasattr(model, "peft_config")
        yield Problem("model.adapter" if is_adapter else "model.checkpoint", what, CURE if is_adapter else "Take ddp.")
    config: Any = getattr(model, "config", None)
    for name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop"):
        if config is not None and getattr(config, name, None):
            what = f"{name} leaves out layers, other ones on each rank, and ranks put every layer together (fsdp2)."
            yield Problem(f"model.config.{name}", what, "Take trainer.strategy: ddp, or a checkpoint with 0 there.")


def _shared_between_layers(model: nn.Module) -> list[str]:
    """Return the names of parameters that two layers have, or a layer and what is in none."""
    layers = computing_layers(model)
    owners: dict[int, set[str]] = defaultdict(set)
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].add(next((layer for layer in layers if name.startswith(f"{layer}.")), ""))
        names.setdefault(id(parameter), name)
    return [names[key] for key, found in owners.items() if len(found) > 1]
