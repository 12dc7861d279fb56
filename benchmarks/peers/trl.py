"""TRL: SFTTrainer as it is, grouping by length, and packing; DPOTrainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.measuring import StepClock
from benchmarks.peers.hf_trainer import settings
from benchmarks.peers.models import load_model, load_tokenizer, lora_config
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import Workload


def train(peer: str, workload: Workload, prepared: Prepared, clock: StepClock, folder: Path) -> None:
    """Train on the rows as they are: TRL tokenizes them itself."""
    from datasets import load_dataset

    rows = load_dataset("json", data_files=str(prepared.rows("train")), split="train")
    model = load_model(workload, prepared)
    clock.count(model)
    shared = settings(workload, folder, peer.endswith("_grouped")) | {"max_length": workload.max_length}
    make = _preference_trainer if workload.kind == "preference" else _supervised_trainer
    trainer = make(peer, workload, shared, model, rows, load_tokenizer(workload, prepared))
    trainer.train()
    trainer.model.save_pretrained(folder)


def _supervised_trainer(
    peer: str, workload: Workload, shared: dict[str, Any], model: Any, rows: Any, tokenizer: Any
) -> Any:
    from trl import SFTConfig, SFTTrainer

    packing = {"packing": True, "packing_strategy": "wrapped" if "text" in rows.column_names else "bfd"}
    arguments = SFTConfig(**shared, **(packing if peer.endswith("_packed") else {}))
    return SFTTrainer(
        model, arguments, train_dataset=rows, processing_class=tokenizer, peft_config=lora_config(workload)
    )


def _preference_trainer(
    peer: str, workload: Workload, shared: dict[str, Any], model: Any, rows: Any, tokenizer: Any
) -> Any:
    from trl import DPOConfig, DPOTrainer

    arguments = DPOConfig(**shared, beta=workload.task["init_args"]["beta"])
    return DPOTrainer(
        model, args=arguments, train_dataset=rows, processing_class=tokenizer, peft_config=lora_config(workload)
    )
