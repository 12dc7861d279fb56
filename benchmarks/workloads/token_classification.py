"""Names in a sentence: WikiANN, English, with MiniLM."""

from __future__ import annotations

from pathlib import Path

from benchmarks.workloads.base import AUTO_CLASSES, Rows, Workload, json_lines
from benchmarks.workloads.models import write_encoder

TAGS = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]


def _read(data: Path, rows: int, validation_rows: int) -> Rows:
    folder = data / "wikiann_en"
    return {
        "train": json_lines(folder / "train.jsonl", rows),
        "validation": json_lines(folder / "validation.jsonl", validation_rows),
    }


def _checkpoint(folder: Path, rows: Rows) -> None:
    write_encoder(folder, AUTO_CLASSES["token_classification"], TAGS)


WORKLOAD = Workload(
    name="token_classification",
    kind="token_classification",
    peers=("hf_trainer", "hf_trainer_grouped", "lightning", "accelerate", "loop"),
    read=_read,
    checkpoint=_checkpoint,
    task={
        "class_path": "TokenClassification",
        "init_args": {"tokens": "tokens", "tags": "ner_tags", "labels": TAGS},
    },
    rows=(1024, 256),
    validation_rows=400,
)
