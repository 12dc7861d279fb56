"""Batches of the training data for an adapter that starts from them."""

from __future__ import annotations

from typing import Any, cast

from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from lit_hf.models.adapter_starts import start_batches
from lit_hf.models.quantization import stored_quantization
from lit_hf.task import Batch, Task


def sample(trainer: Trainer, task: Task, adapter: PeftConfig | None, model: PreTrainedModel) -> list[Batch]:
    """Return batches on the device that the model trains on, to which the model is moved.

    Args:
        trainer: It has the data, and the device.
        task: Collates the rows.
        adapter: The adapter's config.
        model: The base model.
    """
    if stored_quantization(model.config) is None:  # quantized weights are loaded where they stay
        cast(nn.Module, model).to(trainer.strategy.root_device)
    data = cast(Any, trainer).datamodule
    collate = task.collator(training=True)
    batches = start_batches(cast(PeftConfig, adapter), data.encoded["train"], data.batch_size, collate, data.seed)
    return [move_data_to_device(dict(batch), model.device) for batch in batches]
