"""What a run will train on, as its plan needs it: a largest batch, and what an epoch has of tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from lit_hf.cli.trainer import TrainerCLI
from lit_hf.data.order import BatchOrder
from lit_hf.data.packing import packing_problems
from lit_hf.data.sequences import count_trained
from lit_hf.errors import InputError, raise_problems
from lit_hf.hub import HubProblem, is_local
from lit_hf.models.flops import attended_pairs
from lit_hf.task import Batch, Collator, Task
from lit_hf.tasks.embedding import Embedding
from lit_hf.tasks.preference import REFERENCE, Preference
from lit_hf.tasks.reward_model import RewardModel

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


def read_workload(cli: TrainerCLI, with_data: bool) -> Workload:
    """Load the data as fit does; where it is on the Hub and cannot be loaded, assume rows of the greatest length.

    Args:
        cli: The parsed config.
        with_data: Whether to load data at all.

    Raises:
        InputError: If there is something wrong with the config, the files or the rows.
    """
    cli.datamodule.longest_input = cli.model.longest_input
    if not with_data:
        return _assumed(cli, "the data is not read: --no-data")
    try:
        cli.datamodule.prepare("fit")
    except InputError as error:
        if not _is_remote(cli, error):
            raise
        return _assumed(cli, f"the data cannot be loaded ({error.problems[0].what.rstrip('.')})")
    return _counted(cli)


def _is_remote(cli: TrainerCLI, error: InputError) -> bool:
    """Say whether all that is wrong is that something on the Hub cannot be loaded."""
    sources = cli.datamodule.source if isinstance(cli.datamodule.source, list) else [cli.datamodule.source]
    is_hub = any(source.path is not None and not is_local(source.path) for source in sources)
    return is_hub and all(isinstance(problem, HubProblem) for problem in error.problems)


def is_causal(task: Task) -> bool:
    """Say whether tokens attend only to those before them."""
    return task.auto_class == "AutoModelForCausalLM"


# with the data


def _counted(cli: TrainerCLI) -> Workload:
    data = cli.datamodule
    data.num_workers = 0
    encoded, is_whole = data.encoded["train"], data.stream is None
    order = data.training_order(encoded)
    is_packed = order.arrangement == "packed"
    collate = _collator(cli, is_packed)
    largest = _largest(order, is_packed)

    def batch(rows: int) -> Batch:
        return _with_reference(cli, dict(collate([encoded[index] for index in largest[:rows]])), rows)

    first = batch(len(largest))
    count, real = len(order), float(np.asarray(order.lengths).sum())
    padded = real / (1 - order.padding_share)
    trained = count_trained(encoded, cli.task)
    return Workload(
        batch=batch,
        rows=len(largest),
        length=first["input_ids"].shape[-1],
        tokens=padded / count,
        padding=order.padding_share,
        decoder_tokens=_decoder_tokens(cli.task, encoded) / count,
        trained_tokens=trained[0] / count if trained else None,
        attended=attended_pairs(order.lengths, is_causal(cli.task)) / (1 - order.padding_share) / count,
        batches=count if is_whole else None,
        rows_in_all=len(data.splits["train"].rows) if is_whole else None,
        batch_tokens=_batch_tokens(cli, int(order.lengths.max())),
        packed=is_packed,
    )


def _collator(cli: TrainerCLI, is_packed: bool) -> Collator:
    if is_packed:
        return _packing_collator(cli.task)
    return cli.task.collator(training=True, pad_to_multiple_of=cli.datamodule.batches.multiple)


def _batch_tokens(cli: TrainerCLI, longest: int) -> int | None:
    """Return the tokens that a batch may have; None where it is made of rows."""
    batches = cli.datamodule.batches
    return batches.size * longest if batches.packing and batches.tokens is None else batches.tokens


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


def _assumed(cli: TrainerCLI, cause: str) -> Workload:
    """Return batches of full rows."""
    data, task = cli.datamodule, cli.task
    if data.batches.packing:
        raise_problems(packing_problems(task, data.batches.group_by_length, data.batches.multiple))
    length = data.max_length or getattr(task, "block_length", None) or cli.model.longest_input or UNKNOWN_LENGTH
    notes = [f"{cause}: every row is taken to have {length:,} tokens, all trained"]
    _bind(cli, length)
    if task.model_kwargs().get("num_labels") is not None and task.labels == STAND_IN_LABELS:
        notes.append("labels are not known: 2 are assumed")
    for note in notes:
        log.warning(note)
    sides = _texts_a_row(task)
    budget = _batch_tokens(cli, sides * length)
    size = data.batches.size if budget is None else max(1, budget // (sides * length))
    pairs = attended_pairs([length] * sides * size, is_causal(task))
    make = _synthetic_packed if data.batches.packing else _synthetic
    return Workload(
        batch=lambda rows: _with_reference(cli, make(task, rows, length), rows),
        rows=size,
        length=sides * size * length if data.batches.packing else length,
        tokens=float(sides * size * length),
        padding=0.0,
        decoder_tokens=float(size * length) if task.auto_class == "AutoModelForSeq2SeqLM" else 0.0,
        trained_tokens=None,
        attended=pairs,
        batches=None,
        rows_in_all=None,
        batch_tokens=budget,
        packed=data.batches.packing,
        notes=tuple(notes),
    )


STAND_IN_LABELS = ["0", "1"]


def _bind(cli: TrainerCLI, length: int) -> None:
    """Bind the task to a tokenizer of words that mean nothing: only how many there are counts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    config = cli.model.base.pretrained_config.get_text_config()
    words = Tokenizer(WordLevel({str(number): number for number in range(config.vocab_size)}, unk_token="0"))
    special = {name: str(number) for number, name in enumerate(("pad_token", "bos_token", "eos_token", "mask_token"))}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=length, **special)
    # not its own `bind`, which may look for a chat template or an end token
    Task.bind(cli.task, tokenizer, cli.task.labels or STAND_IN_LABELS)


def _texts_a_row(task: Task) -> int:
    if isinstance(task, Preference | RewardModel):
        return 2
    return len(task.text_columns) if isinstance(task, Embedding) else 1


def _synthetic(task: Task, rows: int, length: int) -> Batch:
    """Return a batch of full rows, as the task's collator would make it."""
    texts = _texts_a_row(task) * rows
    shape = (texts, 2, length) if task.auto_class == "AutoModelForMultipleChoice" else (texts, length)
    ids = torch.ones(shape, dtype=torch.long)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    of_rows = torch.zeros(rows, dtype=torch.long)
    if task.auto_class == "AutoModelForQuestionAnswering":
        return {**batch, "start_positions": of_rows, "end_positions": of_rows}
    if task.auto_class in ("AutoModelForSequenceClassification", "AutoModelForMultipleChoice"):
        return batch if isinstance(task, RewardModel) else {**batch, "labels": of_rows}
    if task.auto_class == "AutoModelForTokenClassification":
        return {**batch, "labels": torch.zeros_like(ids)}
    if isinstance(task, Preference):
        return {**batch, "prompt_length": of_rows}
    return batch if task.auto_class == "AutoModel" else {**batch, "labels": ids.clone()}


def _synthetic_packed(task: Task, rows: int, length: int) -> Batch:
    """Return a batch of full rows that are packed into one."""
    ids = [1] * length
    row: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if isinstance(task, Preference):
        row = {"input_ids": 2 * ids, "chosen_length": length, "prompt_length": 0}
    return dict(_packing_collator(task)([row] * rows))


def _packing_collator(task: Task) -> Collator:
    collate = task.packing_collator()
    assert collate is not None  # else packing is refused
    return collate


def _with_reference(cli: TrainerCLI, batch: Batch, rows: int) -> Batch:
    """Add what a reference model would have added to the rows before training."""
    if cli.task.needs_reference and cli.model.adapter is None:
        batch |= {name: torch.zeros(rows) for name in REFERENCE}
    return batch
