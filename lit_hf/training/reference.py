"""The model as it is before training: what a task must know of it, row by row."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Trainer

from lit_hf.hub import is_local
from lit_hf.task import Batch
from lit_hf.training.module import LitModule


def run_reference(module: LitModule, trainer: Trainer, batches: Iterable[Batch]) -> dict[str, list[float]]:
    """Return the task's reference columns of the rows of all batches; the model is built if it is not yet.

    Args:
        module: Its model must not have been trained.
        trainer: Says on which device and in which precision the model will run.
        batches: Batches with the task's columns.
    """
    module.configure_model()
    device = trainer.strategy.root_device
    model = module.model.to(device).eval()
    columns: dict[str, list[float]] = defaultdict(list)
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "sizes"}
            for name, values in module.task.reference(model, move_data_to_device(inputs, device)).items():
                columns[name] += values.tolist()
    model.train()
    return dict(columns)


def reference_key(module: LitModule, trainer: Trainer, seed: int | bool | None) -> str:
    """Return what the untouched model's outputs depend on: its weights' origin, and the precision."""
    base = module.base
    parts = [
        base.checkpoint if base.checkpoint and not is_local(base.checkpoint) else None,
        base.revision,
        base.fingerprint,  # by content: a folder may be moved, or copied
        [_stamps(folder) for folder in module.adaptation.merged],
        list(module.adaptation.merged),
        module.adaptation.tokens,
        base.dtype,
        base.attention,
        repr(base.quantization),
        str(trainer.precision),
        None if base.checkpoint else seed,
    ]
    return json.dumps(parts)


def _stamps(folder: str) -> list[tuple[str, int, int]]:
    """Return name, size and time of an adapter's weights in a local folder; nothing for what is on the Hub."""
    files = sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
