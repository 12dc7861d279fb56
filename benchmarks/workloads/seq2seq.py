"""English to German: Multi30k, with a small T5 from scratch."""

from __future__ import annotations

from pathlib import Path

from benchmarks.workloads.base import Rows, Workload, json_lines, texts
from benchmarks.workloads.models import write_translator


def _read(data: Path, rows: int, validation_rows: int) -> Rows:
    folder = data / "multi30k_en_de"
    files = {"train": (folder / "train.jsonl", rows), "validation": (folder / "validation.jsonl", validation_rows)}
    return {
        split: [{"source": row["translation"]["en"], "target": row["translation"]["de"]} for row in json_lines(*file)]
        for split, file in files.items()
    }


def _checkpoint(folder: Path, rows: Rows) -> None:
    write_translator(folder, texts(rows))


WORKLOAD = Workload(
    name="seq2seq",
    kind="seq2seq",
    peers=("hf_trainer", "hf_trainer_grouped", "lightning", "accelerate", "loop"),
    read=_read,
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
