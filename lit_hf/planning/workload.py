"""What a run will train on, as its plan needs it: a largest batch, and what an epoch has of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from lit_hf.data.order import BatchOrder
from lit_hf.data.packing import packing_problems
from lit_hf.data.sequences import count_trained
from lit_hf.errors import InputError, Problem, raise_problems
from lit_hf.hub import HubProblem, is_local
from lit_hf.models.flops import attended_pairs
from lit_hf.planning.planned_run import PlannedRun
from lit_hf.task import Batch, Task

log = logging.getLogger("lit_hf")

UNKNOWN_LENGTH = 1024
"""Tokens of a row where neither the config nor the model limits them."""


@dataclass(frozen=True)
class Workload:
    """What is trained on, on one device.

    Attributes:
        batch: Makes the largest batch of an epoch, or its first rows.
        rows: Rows of that batch; of packed ones, documents.
        length: Its tokens a row, padding included; of packed ones, all of them.
        longest_row: Tokens that the longest row takes of a batch, which none may be shorter than.
        tokens: Tokens of a mean batch, padding included; of an encoder-decoder the encoder's.
        padding: The share of them that is padding.
        decoder_tokens: Tokens of a mean batch that an encoder-decoder's decoder reads; 0 elsewhere.
        trained_tokens: Those at which the output head is computed; None: at all.
        attended: Pairs of tokens of a mean batch of which one attends to the other.
        batches: Batches of an epoch on one device; None where the rows are not known.
        rows_in_all: Rows of the training split; None where they are not known.
        batch_tokens: Tokens that a batch may have; None where it is made of rows.
        packed: Whether the rows of a batch are packed into one.
        notes: What had to be assumed.
    """

    batch: Callable[[int], Batch] = field(repr=False)
    rows: int
    length: int
    longest_row: int
    tokens: float
    padding: float
    decoder_tokens: float
    trained_tokens: float | None
    attended: float
    batches: int | None
    rows_in_all: int | None
    batch_tokens: int | None = None
    packed: bool = False
    notes: tuple[str, ...] = ()


def read_workload(run: PlannedRun, with_data: bool) -> Workload:
    """Load the data as fit does; where it is on the Hub and cannot be loaded, assume rows of the greatest length.

    Args:
        run: The run.
        with_data: Whether to load data at all.

    Raises:
        InputError: If there is something wrong with the config, the files or the rows.
    """
    run.data.longest_input = run.module.longest_input
    if not with_data:
        return _assumed(run, "the data is not read: --no-data")
    try:
        run.data.prepare("fit")
    except InputError as error:
        if not _is_remote(run, error):
            raise
        return _assumed(run, f"the data cannot be loaded ({error.problems[0].what.rstrip('.')})")
    return _counted(run)


def _is_remote(run: PlannedRun, error: InputError) -> bool:
    """Say whether all that is wrong is that something on the Hub cannot be loaded."""
    sources = run.data.source if isinstance(run.data.source, list) else [run.data.source]
    is_hub = any(source.path is not None and not is_local(source.path) for source in sources)
    return is_hub and all(isinstance(problem, HubProblem) for problem in error.problems)


def is_causal(task: Task) -> bool:
    """Say whether tokens attend only to those before them."""
    return task.auto_class == "AutoModelForCausalLM"


def _make_batch(run: PlannedRun, rows: list[dict[str, Any]], is_packed: bool) -> Batch:
    """Return a batch as training has it, with what a reference model adds to the rows before."""
    if is_packed:
        collate = run.task.packing_collator()
        assert collate is not None  # else packing is refused
    else:
        collate = run.task.collator(training=True, pad_to_multiple_of=run.data.batches.multiple)
    batch = dict(collate(rows))
    if run.module.adapter is None:
        batch |= {name: torch.zeros(len(rows)) for name in run.task.reference_columns}
    return batch


def _batch_tokens(run: PlannedRun, longest: int) -> int | None:
    """Return the tokens that a batch may have; None where it is made of rows."""
    batches = run.data.batches
    return batches.size * longest if batches.packing and batches.tokens is None else batches.tokens


# with the data


def _counted(run: PlannedRun) -> Workload:
    data = run.data
    data.num_workers = 0
    encoded, is_whole = data.encoded["train"], data.stream is None
    order = data.training_order(encoded)
    is_packed = order.arrangement == "packed"
    largest = _largest(order, is_packed)

    def batch(rows: int) -> Batch:
        return _make_batch(run, [encoded[index] for index in largest[:rows]], is_packed)

    count, real = len(order), float(np.asarray(order.lengths).sum())
    padded = real / (1 - order.padding_share)
    trained = count_trained(encoded, run.task)
    return Workload(
        batch=batch,
        rows=len(largest),
        length=batch(len(largest))["input_ids"].shape[-1],
        longest_row=int(order.lengths.max()),
        tokens=padded / count,
        padding=order.padding_share,
        decoder_tokens=_decoder_tokens(run.task, encoded) / count,
        trained_tokens=trained[0] / count if trained else None,
        attended=attended_pairs(order.lengths, is_causal(run.task)) / (1 - order.padding_share) / count,
        batches=count if is_whole else None,
        rows_in_all=len(data.splits["train"].rows) if is_whole else None,
        batch_tokens=_batch_tokens(run, int(order.lengths.max())),
        packed=is_packed,
    )


def _largest(order: BatchOrder, is_packed: bool) -> list[int]:
    """Return the rows of the batch with the most tokens, padding included, the longest of them first."""

    def tokens(rows: Iterable[int]) -> int:
        lengths = order.lengths[list(rows)]
        return int(lengths.sum() if is_packed else len(lengths) * lengths.max())

    return sorted(max(order, key=tokens), key=lambda row: -order.lengths[row])


def _decoder_tokens(task: Task, encoded: Any) -> float:
    if task.auto_class != "AutoModelForSeq2SeqLM":
        return 0.0
    import pyarrow.compute as pc

    return float(pc.sum(pc.list_value_length(encoded.with_format("arrow")[:]["labels"])).as_py())


# without it


def _assumed(run: PlannedRun, cause: str) -> Workload:
    """Return batches of full rows."""
    data, task, is_packed = run.data, run.task, run.data.batches.packing
    if is_packed:
        raise_problems(packing_problems(task, data.batches.group_by_length, data.batches.multiple))
    length = data.max_length or getattr(task, "block_length", None) or run.module.longest_input or UNKNOWN_LENGTH
    notes = [f"{cause}: every row is taken to have {length:,} tokens, with as many of them trained as can be"]
    _bind(run, length)
    if task.model_kwargs().get("num_labels") is not None and task.labels == STAND_IN_LABELS:
        notes.append("labels are not known: 2 are assumed")
    row = _full_row(task, length, cause)
    for note in notes:
        log.warning(note)
    texts = max(1, _make_batch(run, [row], is_packed)["input_ids"].numel() // length)
    budget = _batch_tokens(run, texts * length)
    size = data.batches.size if budget is None else max(1, budget // (texts * length))
    return Workload(
        batch=lambda rows: _make_batch(run, [row] * rows, is_packed),
        rows=size,
        length=texts * size * length if is_packed else length,
        longest_row=texts * length,
        tokens=float(texts * size * length),
        padding=0.0,
        decoder_tokens=float(size * length) if task.auto_class == "AutoModelForSeq2SeqLM" else 0.0,
        trained_tokens=None,
        attended=attended_pairs([length] * texts * size, is_causal(task)),
        batches=None,
        rows_in_all=None,
        batch_tokens=budget,
        packed=is_packed,
        notes=tuple(notes),
    )


def _full_row(task: Task, length: int, cause: str) -> dict[str, Any]:
    """Return a row of the greatest length, encoded.

    Raises:
        InputError: If the task does not say what its rows are.
    """
    row = task.full_row(length)
    if row is None:
        what = f"{cause}, and {type(task).__name__} does not say what a row of it would be."
        raise InputError(Problem("task", what, "Plan with the data, or define the task's full_row."))
    return row


STAND_IN_LABELS = ["0", "1"]


def _bind(run: PlannedRun, length: int) -> None:
    """Bind the task to a tokenizer of words that mean nothing: only how many there are counts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    config = run.module.base.pretrained_config.get_text_config()
    words = Tokenizer(WordLevel({str(number): number for number in range(config.vocab_size)}, unk_token="0"))
    special = {name: str(number) for number, name in enumerate(("pad_token", "bos_token", "eos_token", "mask_token"))}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **special)
    # not its own `bind`, which may look for a chat template or an end token
    Task.bind(run.task, tokenizer, run.task.labels or STAND_IN_LABELS)
