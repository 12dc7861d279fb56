"""Language modelling on blocks that are full of text: Tiny Shakespeare, a small Llama from scratch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.workloads.base import Rows, Workload
from benchmarks.workloads.models import new_decoder

BLOCK_LENGTH = 512

SHAPE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}


def read_speeches(data: Path, rows: int, validation_rows: int) -> Rows:
    """Return the speeches of the plays, a row each."""
    folder = data / "tinyshakespeare"
    return {
        "train": _speeches(folder / "train.txt", rows),
        "validation": _speeches(folder / "validation.txt", validation_rows),
    }


def _speeches(path: Path, limit: int) -> list[dict[str, Any]]:
    speeches = path.read_text(encoding="utf-8").split("\n\n")
    return [{"text": speech.strip()} for speech in speeches if speech.strip()][:limit]


WORKLOAD = Workload(
    name="packed_lm",
    kind="causal",
    peers=("litgpt", "trl_packed", "hf_trainer", "lightning", "accelerate", "loop"),
    read=read_speeches,
    checkpoint=partial(new_decoder, SHAPE, tokens=4000),
    task={"class_path": "CausalLM", "init_args": {"text": "text", "block_length": BLOCK_LENGTH}},
    rows=(3000, 1000),
    validation_rows=150,
    batch_size=8,
    max_length=BLOCK_LENGTH,
    learning_rate=1e-3,
)

COMPILED = replace(WORKLOAD, name="packed_lm_compiled", compile=True, peers=("litgpt",))
