"""The tokenizer: loaded, or trained on the data's own text."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lit_hf.data.cache import cache_folder
from lit_hf.errors import InputError, Problem
from lit_hf.hub import load_problem

logger = logging.getLogger("lit_hf")

_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}

_ENDS = {"bos_token": "[CLS]", "eos_token": "[SEP]"}
"""The frame's tokens tell a model that generates where a text starts and ends."""

SMALLEST_VOCABULARY = 256 + len(_SPECIAL_TOKENS)


@dataclass
class TokenizerTraining:
    """How to train a tokenizer (byte-level BPE) on the text of the training rows.

    Args:
        vocab_size: Number of tokens, special ones included.
    """

    vocab_size: int = 8000


@dataclass
class TokenizerSettings:
    """Which tokenizer.

    Args:
        checkpoint: Hub id or local folder of a tokenizer; the model's own where it is left out.
        revision: Branch, tag or commit on the Hub.
        train: Train one on the text of the training rows instead.
        chat_template: Jinja template of a conversation, or a file with one (`.jinja`); in place of the tokenizer's own.
        add_tokens: Tokens to add, whole words that are never split; the model's embeddings grow by them.
    """

    checkpoint: str | None = None
    revision: str | None = None
    train: TokenizerTraining | None = None
    chat_template: str | None = None
    add_tokens: list[str] | None = None


def load_tokenizer(
    settings: TokenizerSettings,
    rows: Dataset | None = None,
    columns: Sequence[str] = (),
    max_length: int | None = None,
    checkpoint: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer, or train one.

    Args:
        settings: Which one.
        rows: The training rows; only needed to train one.
        columns: The text columns to train on.
        max_length: Where it truncates, in tokens; its own limit where it is None.
        checkpoint: The model's checkpoint, whose tokenizer is used unless the settings say otherwise.
        revision: Revision of that checkpoint.
        trust_remote_code: Whether a tokenizer's own code on the Hub may be run.

    Returns:
        A tokenizer that can pad and truncates at `model_max_length`.

    Raises:
        InputError: If there is none, or it cannot be loaded.
    """
    tokenizer = _chosen(settings, rows, columns, checkpoint, revision, trust_remote_code)
    if max_length is not None:
        tokenizer.model_max_length = max_length
    if settings.chat_template is not None:
        tokenizer.chat_template = _chat_template(settings.chat_template)
    _ensure_padding(tokenizer)
    if settings.add_tokens:
        tokenizer.add_tokens(settings.add_tokens)
    return tokenizer


def _chosen(
    settings: TokenizerSettings,
    rows: Dataset | None,
    columns: Sequence[str],
    checkpoint: str | None,
    revision: str | None,
    trust_remote_code: bool,
) -> PreTrainedTokenizerBase:
    if settings.train is not None and settings.checkpoint is not None:
        raise InputError(
            Problem("data.tokenizer", "a tokenizer is both named and to be trained.", "Leave out checkpoint or train.")
        )
    if settings.checkpoint is not None:
        return _load(settings.checkpoint, settings.revision, trust_remote_code, "data.tokenizer.checkpoint")
    if checkpoint is not None:
        if settings.train is not None:  # the config of a model from scratch, run on a pretrained one
            logger.info("tokenizer: that of the checkpoint; data.tokenizer.train is not used beside one")
        return _load(checkpoint, revision, trust_remote_code, "model.checkpoint")
    if settings.train is not None:
        return _trained(settings.train, rows, columns)
    raise InputError(
        Problem(
            "data.tokenizer",
            "no tokenizer is named, and there is no model.checkpoint to take it from.",
            "Name one (data.tokenizer.checkpoint), or train one (data.tokenizer.train: {vocab_size: 8000}).",
        )
    )


def _chat_template(given: str) -> str:
    """Return a template that is given as it is or as a file; all templates, and no file names, have braces."""
    if "{" in given:
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(
            Problem(
                "data.tokenizer.chat_template",
                f"{given!r} is no Jinja template, and no file that can be read: {reason}.",
                "Give the template's text, or the path of a .jinja file.",
            )
        ) from error


def _load(checkpoint: str, revision: str | None, trust_remote_code: bool, key: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(load_problem(key, checkpoint, "tokenizer", error)) from error
    # Where a checkpoint has no tokenizer files, transformers makes one up from the model's type, without a vocabulary.
    if len(set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)) < 2:
        cure = "Name one (data.tokenizer.checkpoint), or train one (data.tokenizer.train)."
        raise InputError(Problem(key, f"no tokenizer can be loaded from {checkpoint}: it holds no vocabulary.", cure))
    return tokenizer


def _ensure_padding(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("The tokenizer has no padding token: its end token %r pads.", tokenizer.eos_token)
    elif tokenizer.unk_token is not None:
        tokenizer.pad_token = tokenizer.unk_token
        logger.info("The tokenizer has no padding token: its unknown token %r pads.", tokenizer.unk_token)
    else:
        raise InputError(
            Problem("data.tokenizer", "the tokenizer has no padding, end or unknown token.", "Choose another one.")
        )


def _trained(settings: TokenizerTraining, rows: Dataset | None, columns: Sequence[str]) -> PreTrainedTokenizerBase:
    """Return the tokenizer trained on these rows before, or train it."""
    if rows is None:
        raise InputError(
            Problem(
                "data.tokenizer.train", "there are no training rows to train a tokenizer on.", "Name data.source.train."
            )
        )
    if settings.vocab_size < SMALLEST_VOCABULARY:
        what = f"{settings.vocab_size} tokens are too few for the 256 bytes and {len(_SPECIAL_TOKENS)} special tokens."
        raise InputError(Problem("data.tokenizer.train.vocab_size", what, f"Give at least {SMALLEST_VOCABULARY}."))
    recipe = [settings.vocab_size, sorted(columns), rows._fingerprint, "byte-level BPE 2"]
    name = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]
    folder = cache_folder("tokenizers") / name
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            tokenizer = train_tokenizer(_texts(rows, columns), settings.vocab_size)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                tokenizer.save_pretrained(Path(temporary) / name)
                (Path(temporary) / name).rename(folder)
            logger.info("tokenizer: %s tokens, trained on the training rows", f"{len(tokenizer):,}")
        else:
            logger.info("tokenizer: trained before on these rows, reused from the cache")
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer: it knows every text, and runs of blanks, as code has them, are one token.

    Args:
        texts: The text to train on.
        vocab_size: Number of tokens, special ones included.

    Returns:
        A tokenizer that frames texts as `[CLS] text [SEP]` and `[CLS] text [SEP] pair [SEP]`; these two are its tokens
        of start and end too.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    frame = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=frame
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **_SPECIAL_TOKENS, **_ENDS
    )


def _texts(rows: Dataset, columns: Sequence[str]) -> Iterator[str]:
    for batch in rows.select_columns(list(columns)).iter(batch_size=1000):
        for column in columns:
            for value in batch[column]:
                yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    """Yield the text in a value: a text, a list of words, or a structure of such."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, (list, tuple)):
        if value and all(isinstance(part, str) for part in value):
            yield " ".join(value)
        else:
            for part in value:
                yield from _strings(part)
