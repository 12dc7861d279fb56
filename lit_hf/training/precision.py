"""Which numbers a training computes with, and which numbers its weights are."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch
from torch import nn

SHORT_NAMES = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
"""Precisions by Lightning's short names of them."""


def default_precision(accelerator: object) -> Literal["32-true", "bf16-mixed"]:
    """Return the precision of a config that names none: bfloat16 over float32 weights on GPUs that compute with it.

    A CPU computes in float32 even where it has bfloat16, so that its results are those of other libraries.

    Args:
        accelerator: As the trainer's: `auto`, `gpu`, `cuda`, `cpu`, ...
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def unified(precision: object) -> str:
    """Return Lightning's long name of a precision, which may be given by its short one (`bf16`, 16)."""
    return SHORT_NAMES.get(str(precision), str(precision))


def precision_note(precision: str) -> str:
    """Return what to say of a precision that was not asked for."""
    if precision == "bf16-mixed":
        return "bf16-mixed, as the GPU has bfloat16; in float32: --trainer.precision 32-true"
    units: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if not torch.cuda.is_available() and (units.get("amx_bf16") or units.get("avx512_bf16")):
        return "32-true; this CPU has bfloat16, which is faster: --trainer.precision bf16-mixed"
    return "32-true"


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
