"""What tests of conversations share: a tiny tokenizer with the tokens of ChatML, its template, and a tiny decoder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from lit_hf.data.tokenization import train_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CHATML_MARKED = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|im_end|>{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXTS = ["user\nWhat is red?\n", "assistant\nA colour.\n", "system\nBe brief.\n", "And blue? Another colour."] * 3


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose end-of-turn token is its end token and its padding token, too."""
    tokenizer = train_tokenizer(iter(TEXTS), 320)
    tokenizer.add_special_tokens(
        {"bos_token": AddedToken("<|im_start|>", special=True), "eos_token": AddedToken("<|im_end|>", special=True)}
    )
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = 128
    tokenizer.chat_template = template
    return tokenizer


def save_chat_model(folder: Path, template: str | None = CHATML) -> Path:
    """Write a decoder of some thousand weights and its tokenizer."""
    tokenizer = chat_tokenizer(template)
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
