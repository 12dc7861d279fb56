"""Chat fine-tuning: summaries of DialogSum as prompt and completion, with a Llama shape of 20 million parameters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.workloads.base import Workload, read_json_lines
from benchmarks.workloads.models import new_decoder

SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "max_position_embeddings": 2048,
}

CHAT_TASK = {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}}


def _conversation(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": f"Summarize the dialogue.\n\n{row['dialogue']}"}],
        "completion": [{"role": "assistant", "content": row["summary"]}],
    }


read_dialogues = partial(read_json_lines, "dialogsum", row=_conversation, validation="test")
"""Returns dialogues as prompts and their summaries as completions, messages both."""

WORKLOAD = Workload(
    name="chat",
    kind="causal",
    peers=("trl", "trl_grouped", "trl_packed", "hf_trainer", "hf_trainer_grouped", "lightning", "accelerate", "loop"),
    read=read_dialogues,
    checkpoint=partial(new_decoder, SHAPE),
    task=CHAT_TASK,
    rows=(160, 32),
    validation_rows=50,
    batch_size=4,
    max_length=1024,
    learning_rate=1e-3,
)

PACKED = replace(
    WORKLOAD, name="chat_packed", data={"packing": True, "batch_tokens": 4096}, peers=("trl_packed", "trl_grouped")
)

BFLOAT16 = replace(WORKLOAD, name="chat_bf16", precision="bf16-true", peers=("trl_grouped", "loop"))
