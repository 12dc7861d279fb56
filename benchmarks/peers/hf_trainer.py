"""The Hugging Face Trainer: as it is, and grouping rows by length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.measuring import StepClock
from benchmarks.peers.models import collator, load_model, with_adapter
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import Workload


def settings(workload: Workload, folder: Path, grouped: bool) -> dict[str, Any]:
    """Return the training arguments that all trainers of the Hugging Face libraries share."""
    return {
        "output_dir": str(folder.parent / "trainer"),
        "per_device_train_batch_size": workload.batch_size,
        "num_train_epochs": 1,
        "max_steps": workload.steps or -1,
        "learning_rate": workload.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 42,
        "bf16": False,  # the weights have the workload's type, as everybody's
        "gradient_checkpointing": False,
        "use_cpu": not workload.on_gpu,
        "train_sampling_strategy": "group_by_length" if grouped else "random",
        "logging_steps": 10,
        "report_to": [],
        "save_strategy": "no",
    }


def train(peer: str, workload: Workload, prepared: Prepared, clock: StepClock, folder: Path) -> None:
    """Train with `transformers.Trainer`."""
    from transformers import Trainer, TrainingArguments

    model = load_model(workload, prepared)
    clock.count(model)
    model = with_adapter(workload, model)
    arguments = TrainingArguments(**settings(workload, folder, peer.endswith("_grouped")))
    rows = prepared.encoded("train")
    trainer = Trainer(model, arguments, data_collator=collator(workload, prepared), train_dataset=rows)
    trainer.train()
    model.save_pretrained(folder)
