"""English to German: Multi30k, with a small T5 from scratch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.workloads.base import Rows, Workload, read_json_lines, texts
from benchmarks.workloads.models import write_translator


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    return {"source": row["translation"]["en"], "target": row["translation"]["de"]}


def _checkpoint(folder: Path, rows: Rows) -> None:
    write_translator(folder, texts(rows))


WORKLOAD = Workload(
    name="seq2seq",
    kind="seq2seq",
    peers=("hf_trainer", "hf_trainer_grouped", "lightning", "accelerate", "loop"),
    read=partial(read_json_lines, "multi30k_en_de", row=_pair),
    checkpoint=_checkpoint,
    task={
        "class_path": "Seq2Seq",
        "init_args": {
            "source": "source",
            "target": "target",
            "kind": "translation",
            "predict_with_generate": False,
        },
    },
    rows=(3072, 512),
    validation_rows=400,
    max_length=128,
    learning_rate=1e-3,
)
