"""Sentiment of a sentence: SST-2 with MiniLM."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.workloads.base import AUTO_CLASSES, Rows, Workload, read_json_lines
from benchmarks.workloads.models import write_encoder


def _checkpoint(folder: Path, rows: Rows) -> None:
    write_encoder(folder, AUTO_CLASSES["text_classification"], sorted({row["label"] for row in rows["train"]}))


WORKLOAD = Workload(
    name="text_classification",
    kind="text_classification",
    peers=("hf_trainer", "hf_trainer_grouped", "lightning", "accelerate", "loop"),
    read=partial(read_json_lines, "sst2"),
    checkpoint=_checkpoint,
    task={"class_path": "TextClassification", "init_args": {"text": "sentence", "label": "label"}},
    rows=(1024, 256),
    validation_rows=400,
)
