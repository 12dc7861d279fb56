"""What a checkpoint has to hold: all but what comes from the base model again."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn


def base_weights(model: nn.Module, new_weights: Collection[str]) -> list[nn.Parameter]:
    """Return the parameters that a model has from its checkpoint.

    Args:
        model: The model as it was loaded, before an adapter is added.
        new_weights: Names of those that the checkpoint does not have.
    """
    return [parameter for name, parameter in model.named_parameters() if name not in new_weights]


def stored_names(model: nn.Module, from_checkpoint: Iterable[nn.Parameter]) -> frozenset[str]:
    """Return the names of the tensors that a checkpoint of an adapted model holds.

    What trains, what is in no checkpoint (the adapter's frozen parts and the head that it stands beside), and buffers.

    Args:
        model: The model with its adapter.
        from_checkpoint: What `base_weights` returned for the model without it.
    """
    known = {id(parameter) for parameter in from_checkpoint}
    parameters = model.named_parameters(remove_duplicate=False)
    names = {name for name, one in parameters if one.requires_grad or id(one) not in known}
    return frozenset(names | {name for name, _ in model.named_buffers(remove_duplicate=False)})


def misfit(state: Mapping[str, Any], own: Collection[str], wanted: Collection[str]) -> str | None:
    """Say how a checkpoint's tensors are not those that a model needs; None if they are.

    Args:
        state: The checkpoint's tensors by name.
        own: The names of all that the model has.
        wanted: The names of those that must be there.
    """
    missing, unexpected = sorted(set(own) & set(wanted) - state.keys()), sorted(state.keys() - set(own))
    parts = [f"{len(missing)} missing ({missing[0]}, ...)"] if missing else []
    parts += [f"{len(unexpected)} unexpected ({unexpected[0]}, ...)"] if unexpected else []
    return "tensors are " + " and ".join(parts) if parts else None
