"""A model's stacks of layers, and how deep each of its parameters lies, by the names of its modules."""

from __future__ import annotations

from torch import nn


def layer_stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """Return the lists of layers by name, those inside of other lists left out: one of an encoder, two of a T5."""
    stacks: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in stacks)
        if isinstance(module, nn.ModuleList) and not is_inside and any(True for _ in module.parameters()):
            stacks[name] = module
    return stacks


def distances_from_output(model: nn.Module) -> dict[str, int]:
    """Return how many layers lie between each parameter and the output, by the parameter's name.

    0 for the head, and for all else that follows the last layer (a pooler, a final norm); 1 for the last layer, n for
    the first of n; n + 1 for the embeddings, and for all else that precedes the first layer. Where a model has an
    encoder and a decoder, each counts from its own end.
    """
    stacks = {name: len(stack) for name, stack in layer_stacks(model).items()}
    deepest = 1 + max(stacks.values(), default=0)
    distances, seen = {}, set()
    for name, _ in model.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if stack is not None:
            seen.add(stack)
            index = int(name[len(stack) + 1 :].partition(".")[0])
            distances[name] = stacks[stack] - index
        else:
            is_embedding = not seen or "embed" in name  # a decoder's come after the encoder's layers
            distances[name] = deepest if is_embedding else 0
    return distances
