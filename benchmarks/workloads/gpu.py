"""Large decoders on one GPU: the shapes of Llama 3 8B and Llama 3.2 3B with random weights, blocks of 4,096 tokens."""

from __future__ import annotations

import random
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.workloads.base import Rows, Workload, texts
from benchmarks.workloads.curves import WORDS
from benchmarks.workloads.models import write_decoder

LENGTH = 4096

LLAMA_3_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}

LLAMA_3_2_3B: dict[str, Any] = {
    **LLAMA_3_8B,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "tie_word_embeddings": True,
}

ADAPTER = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}

ANCHORS = (
    "8B LoRA: NeMo Automodel 12,473 tokens/s (H100)",
    "3B full: torchtune 8,998 tokens/s (A100, packed, compiled)",
    "8B full: torchtitan 5,762 to 6,667 tokens/s (H100)",
)
"""Published figures of others, on other data: to see whether ours are of the right size."""


def _documents(data: Path, rows: int, validation_rows: int) -> Rows:
    """Return documents of random words; a block holds about five."""
    generator = random.Random(0)

    def document() -> dict[str, Any]:
        return {"text": " ".join(generator.choices(WORDS, k=generator.randint(200, 1400)))}

    return {"train": [document() for _ in range(rows)], "validation": [document() for _ in range(2)]}


def _checkpoint(shape: dict[str, Any], folder: Path, rows: Rows) -> None:
    write_decoder(folder, islice(texts(rows), 500), shape, tokens=2000, dtype="bfloat16")


def _workload(name: str, shape: dict[str, Any], batch_size: int, **settings: Any) -> Workload:
    return Workload(
        name=name,
        kind="causal",
        peers=("hf_trainer", "trl_packed", "loop"),
        read=_documents,
        checkpoint=partial(_checkpoint, shape),
        task={"class_path": "CausalLM", "init_args": {"text": "text", "block_length": LENGTH}},
        rows=(200 * batch_size, 100 * batch_size),
        validation_rows=0,
        batch_size=batch_size,
        max_length=LENGTH,
        learning_rate=1e-4,
        precision="bf16-true",
        on_gpu=True,
        steps=20,
        **settings,
    )


WORKLOADS = (
    _workload("llama3_8b_lora", LLAMA_3_8B, 1, lora=ADAPTER),
    _workload("llama3_8b_qlora", LLAMA_3_8B, 1, lora=ADAPTER, nf4=True),
    _workload("llama3_2_3b_lora", LLAMA_3_2_3B, 2, lora=ADAPTER),
    _workload("llama3_2_3b_qlora", LLAMA_3_2_3B, 2, lora=ADAPTER, nf4=True),
    _workload("llama3_2_3b_full", LLAMA_3_2_3B, 2),
)
