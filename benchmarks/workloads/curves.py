"""How speed, memory and start grow with rows, length, vocabulary and ranks: workloads `<curve>_<value>`."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.workloads import chat, packed_lm, text_classification
from benchmarks.workloads.base import Rows, Workload, texts
from benchmarks.workloads.models import write_decoder, write_encoder

ROWS = (1_000, 10_000, 100_000, 1_000_000)
LENGTHS = (128, 512, 2048, 8192)
VOCABULARIES = (32_768, 65_536, 131_072, 262_144)
RANKS = (1, 2)

TOKENS_OF_A_STEP = 8192

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "thing",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "country",
]

SHAPE: dict[str, Any] = {**packed_lm.SHAPE, "num_hidden_layers": 2, "max_position_embeddings": max(LENGTHS)}


def _synthetic_rows(data: Path, rows: int, validation_rows: int) -> Rows:
    """Return sentences of random words, their lengths log-normal: 12 words in the middle, 60 at most."""
    generator = random.Random(0)

    def row(number: int) -> dict[str, Any]:
        length = min(60, max(1, round(generator.lognormvariate(2.5, 0.6))))
        return {"text": f"{number} {' '.join(generator.choices(WORDS, k=length))}", "label": "ab"[number % 2]}

    return {"train": [row(number) for number in range(rows)], "validation": [row(number) for number in range(2)]}


def _two_labels(folder: Path, rows: Rows) -> None:
    write_encoder(folder, "AutoModelForSequenceClassification", ["a", "b"])


def _decoder(folder: Path, rows: Rows, vocabulary: int | None = None) -> None:
    shape = SHAPE if vocabulary is None else {**SHAPE, "vocab_size": vocabulary}
    write_decoder(folder, islice(texts(rows), 2000), shape, tokens=4000)


def _rows(count: int) -> Workload:
    return Workload(
        name=f"rows_{count}",
        kind="text_classification",
        peers=("hf_trainer",),
        read=_synthetic_rows,
        checkpoint=_two_labels,
        task={"class_path": "TextClassification", "init_args": {"text": "text", "label": "label"}},
        rows=(count, count),
        validation_rows=0,
        steps=25,
    )


def _length(length: int) -> Workload:
    return replace(
        packed_lm.WORKLOAD,
        name=f"sequence_{length}",
        peers=("hf_trainer", "loop"),
        checkpoint=_decoder,
        task={"class_path": "CausalLM", "init_args": {"text": "text", "block_length": length}},
        rows=(7000, 7000),
        validation_rows=0,
        batch_size=TOKENS_OF_A_STEP // length,
        max_length=length,
        steps=8,
    )


def _vocabulary(size: int) -> Workload:
    return replace(
        chat.WORKLOAD,
        name=f"vocabulary_{size}",
        peers=("hf_trainer", "trl", "loop"),
        checkpoint=partial(_decoder, vocabulary=size),
        rows=(40, 40),
        validation_rows=0,
        steps=8,
    )


def _ranks(count: int) -> Workload:
    return replace(
        text_classification.WORKLOAD,
        name=f"ranks_{count}",
        peers=(),
        rows=(1024, 256),
        validation_rows=0,
        batch_size=32 // count,
        ranks=count,
    )


WORKLOADS = (
    *map(_rows, ROWS),
    *map(_length, LENGTHS),
    *map(_vocabulary, VOCABULARIES),
    *map(_ranks, RANKS),
)
