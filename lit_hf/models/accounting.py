"""How large a model is."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Parameters(NamedTuple):
    """Numbers of parameters.

    Attributes:
        trainable: Those that training changes.
        total: All; a tied weight counts once.
    """

    trainable: int
    total: int

    def __str__(self) -> str:
        """Return one line for people."""
        return f"{self.trainable:,} of {self.total:,} parameters train ({self.trainable / max(self.total, 1):.2%})"


def count_parameters(model: nn.Module) -> Parameters:
    """Count a model's parameters; packed 4-bit weights count by their original number of elements."""
    trainable = total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        size = state.shape.numel() if state is not None else parameter.numel()
        total += size
        trainable += size if parameter.requires_grad else 0
    return Parameters(trainable, total)
