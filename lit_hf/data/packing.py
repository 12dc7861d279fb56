"""Packing: whole documents side by side in one row, without padding, so that no token is computed for nothing."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorWithFlattening

from lit_hf.errors import Problem
from lit_hf.task import IGNORED, TARGETS, Batch, Task

BOUNDS = "cu_seq_lens_q"
"""Where the documents of a packed row start, and where the last one ends: transformers' name for it."""

PACKED_INPUTS = ("position_ids", BOUNDS, "cu_seq_lens_k", "max_length_q", "max_length_k")
"""What a model is given of a packed row beside its tokens."""


def pack(lengths: np.ndarray, capacity: int) -> list[np.ndarray]:
    """Pack documents into as few bins as best-fit decreasing finds, none of them cut.

    The longest document goes first, each into the fullest bin that still has room for it, or a new one. At most
    11/9 of the smallest possible number of bins are used, and one more (Johnson et al., 1974,
    doi:10.1137/0203025). Documents of one length are placed together, and so are bins with the same room left, which
    makes it fast where lengths repeat, and O(n log n) in any case.

    Args:
        lengths: Tokens of each document, shape [documents].
        capacity: Most tokens of a bin.

    Returns:
        The indices of each bin's documents, the longest first. Every document is in one bin.

    Raises:
        ValueError: If a document has no tokens, or more than the capacity.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if not len(lengths):
        return []
    if lengths.min() < 1 or lengths.max() > capacity:
        found = f"{lengths.min():,} to {lengths.max():,} tokens"
        raise ValueError(f"documents of 1 to {capacity:,} tokens can be packed; these have {found}")
    order = np.argsort(-lengths, kind="stable")
    sizes, starts = np.unique(-lengths[order], return_index=True)
    bins = _Bins(capacity, len(order))
    for size, start, stop in zip((-sizes).tolist(), starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        bins.add(size, start, stop)
    by_bin = np.argsort(bins.bin_of, kind="stable")
    ends = np.cumsum(np.bincount(bins.bin_of)).tolist()
    members = order[by_bin]
    return [members[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


class _Bins:
    """Open bins by the room that is left in them.

    Attributes:
        bin_of: The bin of each document, in the order in which they are added.
    """

    def __init__(self, capacity: int, documents: int) -> None:
        self.capacity = capacity
        self.bin_of = np.empty(documents, dtype=np.int64)
        self._count = 0
        self._rooms: list[int] = []  # sorted, those for which there are bins
        self._bins: dict[int, list[np.ndarray]] = {}

    def add(self, size: int, start: int, stop: int) -> None:
        """Place the documents from `start` to `stop`, all of one size; no later one may be longer.

        A bin that gets a document is the fullest with room for the next one, as long as it has room, so each takes as
        many as fit before another is looked at.
        """
        while start < stop:
            place = bisect_left(self._rooms, size)
            if place < len(self._rooms):
                room = self._rooms[place]
                bins = self._take(room, place)
            else:
                room = self.capacity
                needed = -(-(stop - start) // (room // size))
                bins = np.arange(self._count, self._count + needed)
                self._count += needed
            start = self._fill(bins, room, size, start, stop)

    def _fill(self, bins: np.ndarray, room: int, size: int, start: int, stop: int) -> int:
        """Fill bins with the same room one after another, and return the first document that has no place yet."""
        each = room // size
        full = min(len(bins), (stop - start) // each)
        end = start + full * each
        self.bin_of[start:end] = np.repeat(bins[:full], each)
        self._put(bins[:full], room - each * size)
        if full < len(bins) and end < stop:  # fewer documents are left than one more bin takes
            self.bin_of[end:stop] = bins[full]
            self._put(bins[full : full + 1], room - (stop - end) * size)
            full, end = full + 1, stop
        self._put(bins[full:], room)
        return end

    def _take(self, room: int, place: int) -> np.ndarray:
        parts = self._bins[room]
        bins = parts.pop()
        if not parts:
            del self._bins[room]
            del self._rooms[place]
        return bins

    def _put(self, bins: np.ndarray, room: int) -> None:
        if not len(bins) or not room:
            return
        if room not in self._bins:
            self._bins[room] = []
            insort(self._rooms, room)
        self._bins[room].append(bins)


def packing_problems(task: Task, groups: bool, multiple: int | None) -> Iterator[Problem]:
    """Find settings of the data that do not go with packing.

    Args:
        task: The task.
        groups: Whether rows of like length make a batch.
        multiple: Of what number of tokens batches are padded to a multiple.
    """
    if task.packing_collator() is None:
        what = f"{type(task).__name__} has no rows that can be packed."
        cure = "Leave it out; data.group_by_length, the default, saves padding too."
        yield Problem("data.packing", what, cure)
    if not groups:
        what = "false does not go with data.packing, which takes rows by their lengths."
        yield Problem("data.group_by_length", what, "Leave one of the two out.")
    if multiple is not None:
        what = "packed rows are not padded, so there is nothing to round up."
        yield Problem("data.pad_to_multiple_of", what, "Leave it out.")


class PackingCollator:
    """Lays the rows of a bin side by side in one row. A class, so that workers can be sent it.

    The batch has `input_ids`, `labels` and `position_ids` of shape [1, tokens], and for the attention, which keeps the
    documents apart, `cu_seq_lens_q`, `cu_seq_lens_k` of shape [documents + 1] and `max_length_q`, `max_length_k`: the
    arguments that `transformers` has for it. Positions start at 0 in each document, and its first token has no label.
    """

    def __init__(self) -> None:
        self._flatten = DataCollatorWithFlattening(return_flash_attn_kwargs=True)

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the rows as one; columns beside `input_ids` and `labels` are left out."""
        # a cache would keep transformers from seeing that there are several documents, and serves no purpose
        return {**self._flatten(rows), "use_cache": False}


class PairPackingCollator:
    """Lays pairs side by side in one row: the chosen sequences of all rows, and then the rejected ones.

    The batch is that of `PackingCollator`, but for `targets` in place of `labels`: the tokens of the completions, -100
    at all others. The other columns of the rows become tensors of shape [pairs].
    """

    def __init__(self) -> None:
        self._pack = PackingCollator()

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the pairs as one row."""
        chosen = [_completion(row["input_ids"][: row["chosen_length"]], row["prompt_length"]) for row in rows]
        rejected = [_completion(row["input_ids"][row["chosen_length"] :], row["prompt_length"]) for row in rows]
        batch = self._pack(chosen + rejected)
        batch[TARGETS] = batch.pop("labels")
        others = [name for name in rows[0] if name not in ("input_ids", "chosen_length")]
        return {**batch, **{name: torch.tensor([row[name] for row in rows]) for name in others}}


def _completion(tokens: Sequence[int], prompt_length: int) -> dict[str, list[int]]:
    return {"input_ids": list(tokens), "labels": [IGNORED] * prompt_length + list(tokens[prompt_length:])}


def document_sums(values: torch.Tensor, cu_seq_lens: torch.Tensor) -> torch.Tensor:
    """Sum the values of the tokens of each document.

    Args:
        values: One a token, shape [tokens].
        cu_seq_lens: Where the documents start, and where the last one ends, shape [documents + 1].

    Returns:
        The sums, shape [documents].
    """
    documents = len(cu_seq_lens) - 1
    of = torch.repeat_interleave(
        torch.arange(documents, device=values.device), cu_seq_lens.diff(), output_size=len(values)
    )
    return values.new_zeros(documents).index_add(0, of, values)
