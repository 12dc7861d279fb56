"""Which numbers a training computes with, and which numbers its weights are."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch
from torch import nn


def default_precision(accelerator: str) -> Literal["32-true", "bf16-mixed"]:
    """Return the precision of a config that names none: bfloat16 over float32 weights on GPUs that compute with it.

    A CPU computes in float32, whatever it could: only few are faster with bfloat16, and results stay comparable.

    Args:
        accelerator: As the trainer's: `auto`, `gpu`, `cuda`, `cpu`, ...
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def low_precision_note(model: nn.Module) -> str:
    """Return what to say of weights that train in 16 bits, empty if there are none.

    Args:
        model: The model as it trains, after the trainer has converted it.
    """
    numbers: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            numbers[parameter.dtype] += parameter.numel()
    return " ".join(
        f"{number:,} weights train in {str(dtype).removeprefix('torch.')}, and so does the optimizer's state: updates "
        "that are small against their weights are rounded away. For float32 weights: model.dtype: float32, with "
        "trainer.precision: bf16-mixed."
        for dtype, number in numbers.items()
    )
