from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_hf.data.datamodule import LitDataModule
from lit_hf.data.sources import Source
from lit_hf.data.tokenization import TokenizerSettings, TokenizerTraining
from lit_hf.planning.machine import Machine
from lit_hf.planning.planned_run import PlannedRun, TrainerSettings
from lit_hf.planning.planner import Planner
from lit_hf.planning.workload import read_workload
from lit_hf.task import Task
from lit_hf.tasks import CausalLM
from lit_hf.training.module import LitModule

TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "vocab_size": 300,
}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., PlannedRun]:
    """Return a run of a tiny model on 40 rows of 17 to 19 tokens; task, model, data and trainer may be set."""

    def make(
        task: Task | None = None,
        *,
        config: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        **trainer: Any,
    ) -> PlannedRun:
        texts = [f"row {number} says that the sum of {number} and {number} is {2 * number}." for number in range(40)]
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
        task = task or CausalLM("text", block_length=32)
        settings = {
            "source": Source(train=str(tmp_path / "rows.jsonl"), validation=str(tmp_path / "rows.jsonl")),
            "tokenizer": TokenizerSettings(train=TokenizerTraining(300)),
            "batch_size": 4,
        }
        module = LitModule(task, config=config or TINY, **(model or {}))
        return PlannedRun(module, LitDataModule(task, **settings | (data or {})), TrainerSettings(**trainer))

    return make


def machine(memory: float = 80e9, **changes: Any) -> Machine:
    """Return a machine of plain numbers: 10^12 operations and 10^9 bytes a second, half of both reached."""
    values = {"name": "any", "is_gpu": True, "memory": memory, "flops": 1e12, "source": "the test", "efficiency": 0.5}
    where = {"link": 1e9, "network": 1e8, "devices": 1, "nodes": 1, "precision": "32-true"}
    return Machine(**values | where | changes)


@pytest.fixture
def planner(planned: Callable[..., PlannedRun]) -> Callable[..., Planner]:
    """Return what plans such a run, without its data."""

    def make(where: Machine | None = None, **settings: Any) -> Planner:
        run = planned(**settings)
        return Planner(run, read_workload(run, with_data=False), where or machine())

    return make
