"""Batches of the training data for an adapter that starts from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from lightning.fabric.utilities import move_data_to_device
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from lit_hf.models.quantization import stored_quantization
from lit_hf.task import Batch

Draw = Callable[[PeftConfig], Sequence[Batch]]
"""Draws batches of the training data for an adapter with that config, the same on every rank."""


def place(batches: Sequence[Batch], model: PreTrainedModel, device: torch.device) -> list[Batch]:
    """Return batches on the device that the model trains on, to which the model is moved.

    Args:
        batches: As they were collated.
        model: The base model; with quantized weights it is on its device already, and stays.
        device: The one that trains.
    """
    if stored_quantization(model.config) is None:
        cast(nn.Module, model).to(device)
    return [move_data_to_device(dict(batch), model.device) for batch in batches]
