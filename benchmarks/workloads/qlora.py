"""QLoRA: an adapter on a base model of 4 bits (NF4), on the conversations of the workload `chat`."""

from __future__ import annotations

from functools import partial

from benchmarks.workloads.base import Workload
from benchmarks.workloads.chat import CHAT_TASK, read_dialogues
from benchmarks.workloads.models import new_decoder

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}


WORKLOAD = Workload(
    name="qlora",
    kind="causal",
    peers=("trl", "trl_grouped", "hf_trainer_grouped", "loop"),
    read=read_dialogues,
    checkpoint=partial(new_decoder, SHAPE),
    task=CHAT_TASK,
    rows=(256, 64),
    validation_rows=50,
    batch_size=4,
    max_length=1024,
    learning_rate=1e-3,
    lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"},
    nf4=True,
)
