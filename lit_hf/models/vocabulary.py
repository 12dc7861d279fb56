"""Tokens that are added to a pretrained model: its embeddings grow, and the new ones train beside an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from peft import PeftConfig
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_hf.errors import Problem


def grow(model: PreTrainedModel, size: int) -> None:
    """Give the embeddings, and the head that is tied to them or like them, at least so many tokens.

    New rows start near the mean of the old ones (Hewitt 2021), so that new tokens take no probability from the others.
    """
    weight = cast(Tensor, model.get_input_embeddings().weight)
    if size > weight.shape[0]:
        model.resize_token_embeddings(size, mean_resizing=weight.device.type != "meta")


def ungrow(config: PreTrainedConfig, base: str, revision: str | None, trust_remote_code: bool) -> int:
    """Set an adapted model's config to the vocabulary that its base model has on disk, and return its own size."""
    text = config.get_text_config()
    size, own = (
        text.vocab_size,
        AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=trust_remote_code),
    )
    text.vocab_size = own.get_text_config().vocab_size
    return size


def train_tokens(
    adapter: Any, model: PreTrainedModel, tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Have an adapter train and save the embeddings of added tokens too: their rows alone where PEFT can, else all.

    Args:
        adapter: A PEFT config, which is changed.
        model: The base model, which has grown.
        tokens: The added tokens.
        tokenizer: Knows their ids.
    """
    layers = _embedding_layers(model)
    ids = sorted(cast(list[int], tokenizer.convert_tokens_to_ids(list(tokens))))
    if hasattr(adapter, "trainable_token_indices"):
        if adapter.trainable_token_indices is None:
            adapter.trainable_token_indices = dict.fromkeys(layers, ids)
    else:
        adapter.modules_to_save = sorted({*(adapter.modules_to_save or ()), *layers})


def _embedding_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the input embeddings and of an output head with weights of its own."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    wanted: list[nn.Module] = [inputs]
    if outputs is not None and not model.config.get_text_config().tie_word_embeddings:
        wanted.append(outputs)
    return [name for name, module in model.named_modules() if any(module is one for one in wanted)]


def token_problems(adapter: PeftConfig | None, tokens: Sequence[str]) -> Iterator[Problem]:
    """Find an adapter beside which the embeddings of added tokens cannot train."""
    if not tokens or adapter is None:
        return
    if not hasattr(adapter, "trainable_token_indices") and not hasattr(adapter, "modules_to_save"):
        what = f"{type(adapter).__name__} cannot train the embeddings of added tokens."
        yield Problem("data.tokenizer.add_tokens", what, "Take another adapter, such as peft.LoraConfig.")
