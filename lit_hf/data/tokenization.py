"""Stub; being written."""

from dataclasses import dataclass


@dataclass
class TokenizerTraining:
    """How to train a tokenizer on the data's own text."""

    vocab_size: int = 8000


@dataclass
class TokenizerSettings:
    """Which tokenizer."""

    checkpoint: str | None = None
    revision: str | None = None
    train: TokenizerTraining | None = None
