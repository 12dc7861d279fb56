"""A tiny decoder with a chat template, and pairs of answers that it can learn to tell apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

NOUNS = ["day", "night", "me", "you", "it"]
WORDS = [*NOUNS, "say", "do", "not", "please", "good", "bad", "to", "is", "the", "fine", "poor", "yes", "no"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
ROLES = ["<system>", "<user>", "<assistant>", "<end>"]

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words."""
    tokens = ["<pad>", "<unk>", "<s>", "</s>", *ROLES, *WORDS]
    made = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=32,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=ROLES,
    )
    fast.chat_template = template
    return fast


def texts(count: int) -> list[dict[str, Any]]:
    """Return pairs of texts: the friendly answer is the preferred one."""
    prompts = ["say it to me", "do you say good day", "please say it", "is it night", "is the day fine"]
    return [
        {"prompt": prompts[index % 5], "chosen": ("yes good " * (1 + index % 3)).strip(), "rejected": "no bad poor"}
        for index in range(count)
    ]


def conversations(count: int) -> list[dict[str, Any]]:
    """Return the same pairs as conversations."""
    return [
        {
            side: [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
            for side in ("chosen", "rejected")
        }
        for row in texts(count)
    ]


def write(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    """Write rows as training and validation files, and return the config's source of them."""
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {split: f"{split}.jsonl" for split in ("train", "validation")}
