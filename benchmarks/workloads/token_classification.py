"""Names in a sentence: WikiANN, English, with MiniLM."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.workloads.base import AUTO_CLASSES, Rows, Workload, read_json_lines
from benchmarks.workloads.models import write_encoder

TAGS = ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]


def _checkpoint(folder: Path, rows: Rows) -> None:
    write_encoder(folder, AUTO_CLASSES["token_classification"], TAGS)


WORKLOAD = Workload(
    name="token_classification",
    kind="token_classification",
    peers=("hf_trainer", "hf_trainer_grouped", "lightning", "accelerate", "loop"),
    read=partial(read_json_lines, "wikiann_en"),
    checkpoint=_checkpoint,
    task={
        "class_path": "TokenClassification",
        "init_args": {"tokens": "tokens", "tags": "ner_tags", "labels": TAGS},
    },
    rows=(1024, 256),
    validation_rows=400,
)
