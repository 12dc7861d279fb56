"""Adapters that start from the data: how a batch runs through the model says where they begin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, initialize_lora_eva_weights
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor
from transformers import PreTrainedModel

from lit_hf.task import Batch, Collator

SAMPLED_ROWS = 256
"""Rows of the training data that a start is computed from; CorDA's authors take as many."""

if TYPE_CHECKING:
    from datasets import Dataset

Loss = Callable[[Any, Batch], Tensor]
"""Runs a batch through a model and returns its loss."""


def data_driven(adapter: PeftConfig | None) -> str | None:
    """Return how the adapter starts, where that needs batches of the training data: `eva`, `corda` or `lora_ga`."""
    start = getattr(adapter, "init_lora_weights", None)
    return start if start in ("eva", "corda", "lora_ga") else None


def start_batches(adapter: PeftConfig, rows: Dataset, batch_size: int, collate: Collator, seed: int) -> list[Batch]:
    """Return batches of the training data to start an adapter from: the same on every rank.

    Args:
        adapter: The adapter's config.
        rows: The encoded training rows.
        batch_size: Rows of a training batch; CorDA's covariances are taken row by row.
        collate: The task's collator.
        seed: Chooses the rows.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:SAMPLED_ROWS].tolist()
    at_once = 1 if data_driven(adapter) == "corda" else batch_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [collate([rows[index] for index in order[at : at + at_once]]) for at in range(0, len(order), at_once)]


def prepare(model: PreTrainedModel, adapter: LoraConfig, targets: Any, batches: Sequence[Batch], loss: Loss) -> None:
    """Attach to the base model's layers what CorDA and LoRA-GA start from; EVA needs nothing before the adapter is on.

    Args:
        model: The base model.
        adapter: The adapter's config.
        targets: Its target modules by name, as PEFT has found them.
        batches: Batches of the training data, on the model's device.
        loss: Runs one of them.
    """
    config = copy.copy(adapter)
    config.target_modules = targets
    if data_driven(adapter) == "corda":
        preprocess_corda(model, config, run_model=lambda: _run(model, batches, loss))
    elif data_driven(adapter) == "lora_ga":
        preprocess_loraga(model, config, train_step=lambda: _run(model, batches, lambda *one: loss(*one).backward()))
    model.train()


def _run(model: PreTrainedModel, batches: Sequence[Batch], step: Callable[[Any, Batch], Any]) -> None:
    for batch in batches:
        step(model, batch)


def finish(model: PeftModel, batches: Sequence[Batch], loss: Loss) -> None:
    """Set an adapter that is on the model to where EVA says: the principal directions of each layer's inputs.

    Ranks move to the layers whose inputs need more directions; the adapter's config says which in the end.
    """
    initialize_lora_eva_weights(
        model,
        dataloader=batches,
        forward_fn=loss,
        prepare_model_inputs_fn=_counted_positions,
        prepare_layer_inputs_fn=_layer_inputs,
        gather_distributed_inputs=False,  # all ranks are given the same batches
        show_progress_bar=False,
    )
    model.train()


def _counted_positions(batch: Batch, adapter: Any) -> Tensor | None:
    """Return where a batch's tokens count, of the shape of its ids: not in padding, nor where nothing is learnt."""
    mask, labels = batch.get("attention_mask"), batch.get("labels")
    if mask is None:
        return None
    counted = mask.bool()
    if adapter.eva_config.use_label_mask and isinstance(labels, Tensor) and labels.shape == mask.shape:
        counted = counted & (labels != adapter.eva_config.label_mask_value)
    return counted


def _layer_inputs(inputs: Any, counted: Tensor | None, name: str) -> Tensor:
    """Return a layer's inputs as [positions, features]; all positions, where the layer sees another shape."""
    values = inputs[0] if isinstance(inputs, tuple | list) else inputs
    if counted is not None and values.shape[:-1] == counted.shape:
        return values[counted]
    return values.reshape(-1, values.shape[-1]).contiguous()
