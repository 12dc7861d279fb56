"""DPO: a dialogue's summary is preferred to another's; an adapter trains, and the base is the reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.workloads.base import Rows, Workload
from benchmarks.workloads.chat import SHAPE, read_dialogues
from benchmarks.workloads.models import new_decoder


def _read(data: Path, rows: int, validation_rows: int) -> Rows:
    conversations = read_dialogues(data, rows, validation_rows)
    return {
        split: [
            {"prompt": row["prompt"], "chosen": row["completion"], "rejected": other["completion"]}
            for row, other in zip(split_rows, [*split_rows[1:], split_rows[0]], strict=True)
        ]
        for split, split_rows in conversations.items()
    }


WORKLOAD = Workload(
    name="dpo",
    kind="preference",
    peers=("trl", "loop"),
    read=_read,
    checkpoint=partial(new_decoder, SHAPE),
    task={"class_path": "Preference", "init_args": {"loss": "dpo", "beta": 0.1}},
    rows=(128, 24),
    validation_rows=24,
    batch_size=4,
    max_length=1024,
    learning_rate=1e-3,
    lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"},
)
