"""Blocks: documents joined and cut to inputs of a fixed length, for language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_hf.errors import InputError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_DEFAULT = 1024
"""Tokens of a block where neither the config nor the tokenizer sets a lower limit."""


def resolve_length(tokenizer: PreTrainedTokenizerBase, wanted: int | None) -> int:
    """Return the length of blocks in tokens.

    Args:
        tokenizer: Its `model_max_length` is the limit.
        wanted: What the config asks for; None is the limit, but 1,024 at most.

    Raises:
        InputError: If the length is below 2, or above the limit.
    """
    limit = int(tokenizer.model_max_length)
    if wanted is None:
        return min(limit, LONGEST_DEFAULT)
    if wanted < 2:
        raise InputError(Problem("task.block_length", f"{wanted} is too small.", "A block needs 2 tokens or more."))
    if wanted > limit:
        what = f"blocks of {wanted:,} tokens are longer than the limit: {limit:,}."
        raise InputError(Problem("task.block_length", what, f"Set it to {limit} or less, or raise data.max_length."))
    return wanted


def cut_blocks(tokens: Sequence[Any], length: int) -> list[list[Any]]:
    """Cut joined tokens, or what goes with them token by token, to blocks; the last one holds what is left over."""
    return [list(tokens[start : start + length]) for start in range(0, len(tokens), length)]


def byte_sizes(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Share out the UTF-8 bytes of a text among its tokens and the end that follows them.

    What lies between two tokens counts with the second one. Where several tokens make one character, it counts with
    the first of them.

    Args:
        text: The text.
        offsets: Start and end of each token, in characters.

    Returns:
        Bytes of each token and of the end, `len(offsets) + 1` numbers; their sum is that of the text.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    widths = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF).astype(np.int64)
    positions = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1])
    return np.diff(positions[ends], prepend=0, append=positions[-1]).tolist()
