"""What a batch holds of each row: its tokens as text, and which of them are trained, seen or padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lit_hf.task import IGNORED, TARGET_PLACES, TARGETS, Batch, Task

State = Literal["trained", "seen", "padding"]

IDS, MASK, LABELS = "input_ids", "attention_mask", "labels"


class Piece(NamedTuple):
    """Neighbouring tokens of one state.

    Attributes:
        text: The tokens as text; of padding, one of them.
        state: What becomes of them in training.
        tag: What they are to be labelled with, where that is not themselves.
        tokens: Number of tokens.
    """

    text: str
    state: State
    tag: str
    tokens: int


class Row(NamedTuple):
    """What the model sees of a row.

    Attributes:
        sequences: Token sequences by name (`input_ids`, `labels`, `chosen_input_ids`, ...).
        values: Everything else, by name; labels by their names.
    """

    sequences: dict[str, list[Piece]]
    values: dict[str, Any]


def read_batch(batch: Batch, features: Sequence[Mapping[str, Any]], task: Task) -> Iterator[Row]:
    """Yield what a batch holds of each row.

    Args:
        batch: What the task's collator made of the rows.
        features: The encoded rows; shown as they are where the batch has another number of rows.
        task: The task, bound to its tokenizer and labels.
    """
    count, batch = len(features), {name: value for name, value in batch.items() if name != TARGET_PLACES}
    if "chosen_length" in features[0]:
        yield from (_read_row(pair, task) for pair in _pairs(batch, count))
        return
    regular = all(value.shape[:1] == (count,) for value in batch.values() if isinstance(value, Tensor))
    for index, feature in enumerate(features):
        yield _read_row({name: value[index] for name, value in batch.items()} if regular else feature, task)


def _pairs(batch: Batch, count: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch of pairs, whose chosen sequences stand before the rejected ones."""
    ids, mask = batch[IDS], batch[MASK]
    others = {name: value for name, value in batch.items() if name not in (IDS, MASK, TARGETS, "prompt_length")}
    for index in range(count):
        row: dict[str, Any] = {}
        for side, place in (("chosen", index), ("rejected", index + count)):
            row |= {f"{side}_{IDS}": ids[place], f"{side}_{MASK}": mask[place]}
            if TARGETS in batch:
                row[f"{side}_{LABELS}"] = batch[TARGETS][place]
        yield row | {name: value[index] for name, value in others.items()}


def count_trained(encoded: Dataset, task: Task) -> tuple[int, int] | None:
    """Return how many tokens of a split are trained, and how many there are; None where labels are not of tokens."""
    import pyarrow.compute as pc

    if not {IDS, LABELS} <= set(encoded.column_names) or _has_decoder_labels(task):
        return None
    columns = encoded.select_columns([IDS, LABELS]).with_format("arrow")[:]
    labels = columns[LABELS]
    if not str(labels.type).startswith(("list<", "large_list<")):
        return None
    if not pc.all(pc.equal(pc.list_value_length(labels), pc.list_value_length(columns[IDS]))).as_py():
        return None
    flat = pc.list_flatten(labels).to_numpy()
    return (int((flat != IGNORED).sum()), len(flat)) if np.issubdtype(flat.dtype, np.integer) else None


def _has_decoder_labels(task: Task) -> bool:
    """Say whether labels are a text of their own, for the decoder, and not labels of the input's tokens."""
    return task.auto_class == "AutoModelForSeq2SeqLM"


def _read_row(row: Mapping[str, Any], task: Task) -> Row:
    sequences: dict[str, list[Piece]] = {}
    values: dict[str, Any] = {}
    tensors = {name: _tensor(value) for name, value in row.items()}
    done = {name for name in row if name.endswith(MASK)}
    for name in (name for name in row if name.endswith(IDS)):
        prefix = name.removesuffix(IDS)
        ids, mask, labels = (tensors.get(f"{prefix}{suffix}") for suffix in (IDS, MASK, LABELS))
        aligned = _is_aligned(ids, labels) and not _has_decoder_labels(task)
        done |= {name, f"{prefix}{LABELS}"} if aligned else {name}
        for place, one in _single(name, ids):
            chosen = place if isinstance(place, int) else slice(None)
            key = f"{name}[{place}]" if isinstance(place, int) else name
            sequences[key] = _pieces(one, _at(mask, chosen), _at(labels, chosen) if aligned else None, task)
    for name in (name for name in row if name not in done):
        value = tensors[name]
        if name.endswith(LABELS) and _is_text(value) and _has_decoder_labels(task):
            sequences[name] = _pieces(value, value != IGNORED, value, task)
        else:
            values[name] = _named(value, task) if name == LABELS else _plain(row[name])
    return Row(sequences, values)


def _tensor(value: Any) -> Any:
    """Return numbers and lists of numbers as a tensor, and other values as they are."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def _is_text(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point()


def _is_aligned(ids: Any, labels: Any) -> bool:
    is_pair = isinstance(labels, Tensor) and isinstance(ids, Tensor)
    return is_pair and labels.shape == ids.shape and not labels.is_floating_point()


def _single(name: str, ids: Any) -> Iterator[tuple[int | None, Tensor]]:
    """Yield the sequences of a row that has one, or one for each choice."""
    if isinstance(ids, Tensor) and ids.ndim == 1:
        yield None, ids
    elif isinstance(ids, Tensor) and ids.ndim == 2:
        yield from enumerate(ids)
    elif isinstance(ids, list):  # choices of several lengths, not padded
        yield from ((place, torch.as_tensor(one)) for place, one in enumerate(ids))


def _at(value: Any, chosen: Any) -> Tensor | None:
    return None if value is None else torch.as_tensor(value[chosen])


def _pieces(ids: Tensor, mask: Tensor | None, labels: Tensor | None, task: Task) -> list[Piece]:
    """Cut a sequence of tokens, shape [tokens], where state or label change."""
    tokens, seen = ids.tolist(), [True] * len(ids) if mask is None else mask.bool().tolist()
    targets = [IGNORED] * len(ids) if labels is None else labels.tolist()
    marks = [_mark(*token, task) for token in zip(tokens, seen, targets, strict=True)]
    shown = [token if is_seen else task.tokenizer.pad_token_id for token, is_seen in zip(tokens, seen, strict=True)]
    # A tag belongs to its token alone.
    groups = groupby(range(len(tokens)), key=lambda index: (*marks[index], index if marks[index][1] else -1))
    pieces, before = [], ""
    for (state, tag, _), group in groups:
        places = list(group)
        before, text = _next_text(task.tokenizer, shown, before, places[0], places[-1] + 1)
        text = str(task.tokenizer.pad_token) if state == "padding" else text
        pieces.append(Piece(text, state, tag, len(places)))
    return pieces


def _mark(token: int, is_seen: bool, target: int, task: Task) -> tuple[State, str]:
    """Return a token's state, and what it is to be labelled with where that is not itself."""
    if target == IGNORED:
        return ("seen" if is_seen else "padding"), ""
    if task.labels:
        return "trained", task.labels[target]
    return "trained", "" if target == token else str(task.tokenizer.decode([target]))


def _next_text(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], before: str, start: int, end: int
) -> tuple[str, str]:
    """Return the text up to a token, and what the tokens from `start` on add to it: blanks depend on the neighbours."""
    through = str(tokenizer.decode(ids[:end], clean_up_tokenization_spaces=False))
    if through.startswith(before):
        return through, through[len(before) :]
    return through, str(tokenizer.decode(ids[start:end], clean_up_tokenization_spaces=False))


def _named(value: Any, task: Task) -> Any:
    """Return a row's label, or labels, by name."""
    plain, names = _plain(value), task.labels
    if not names:
        return plain
    if isinstance(plain, list):
        return ", ".join(name for name, hot in zip(names, plain, strict=False) if hot) or "none"
    return f"{names[plain]} ({plain})" if isinstance(plain, int) and 0 <= plain < len(names) else plain


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value
