"""The data module: from the config's `data:` block to batches."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, cast

import datasets
import numpy as np
from datasets import Dataset
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator

from lit_hf.data.batching import BatchLoader, padded_lengths, row_lengths
from lit_hf.data.columns import check_columns, check_rows, with_inner_columns
from lit_hf.data.encoding import Lengths, encode
from lit_hf.data.mixing import Mixing, Stopping, load_mixed
from lit_hf.data.order import Arrangement, BatchOrder
from lit_hf.data.precomputed import Columns, with_columns
from lit_hf.data.sources import Source, Split, load_splits
from lit_hf.data.tokenization import TokenizerSettings, load_tokenizer
from lit_hf.errors import InputError, Problem, raise_problems
from lit_hf.task import Task

logger = logging.getLogger("lit_hf")

Stage = Literal["fit", "validate", "test"]

_NEEDED: dict[str, tuple[str, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
}


class LitDataModule(LightningDataModule):
    """The data.

    Args:
        task: The task; it says which columns are read and how they are encoded.
        source: Where the rows come from; a list of sources is mixed.
        mixing: How the training rows of several sources (a list as `source`) are mixed: they follow each other, or are
            drawn by the sources' weights.
        stopping: When drawing ends: with the first source that has no more rows, or, with rows of the smaller sources
            repeated, once all rows of all sources were drawn.
        tokenizer: Which tokenizer; the model's own by default.
        max_length: Longest input in tokens, longer ones are cut; the tokenizer's own limit where it is left out.
        batch_size: Rows of a training batch on one device.
        eval_batch_size: Rows of a validation or test batch on one device; where it is left out, twice `batch_size`, or
            as many as fit in `batch_tokens`.
        batch_tokens: Tokens of a batch on one device, padding included, in place of a number of rows: batches of short
            rows have many, all are as much work. `batch_size` is not used then.
        packing: Lay training rows side by side in one, none of them cut and none seen from another, as many as fit in
            `batch_tokens`, or where that is left out in as many tokens as `batch_size` of the longest rows have: there
            is no padding then. Evaluation is as ever.
        group_by_length: Make training batches of rows of like length, which saves padding.
        pad_to_multiple_of: Pad to a multiple of that many tokens; 8 suits GPUs at 16-bit precision.
        num_workers: Processes that prepare batches; by default none on CPU and some beside a GPU.
        pin_memory: Prepare batches in page-locked memory; by default where there is a GPU.
        num_proc: Processes that tokenize; by default one, and more for many rows.
        checkpoint: The model's checkpoint, for its tokenizer; follows `model.checkpoint`.
        revision: Its revision; follows `model.revision`.
        trust_remote_code: Whether the checkpoint's own code may be run; follows `model.trust_remote_code`.
        seed: Seed of the order of rows; follows `seed_everything`.

    Attributes:
        splits: The rows of each split that is prepared.
        encoded: The same as the model's inputs.
        lengths: Their lengths in tokens.
        tokenizer: The tokenizer, once prepared.
        labels: Label names by id, once prepared; None where the task has none.
        longest_input: The longest input that the model takes, set by whoever knows the model; None is no limit.
    """

    def __init__(
        self,
        task: Task,
        source: Source | list[Source] = Source(),  # noqa: B008
        mixing: Mixing = "concatenate",
        stopping: Stopping = "first_exhausted",
        tokenizer: TokenizerSettings = TokenizerSettings(),  # noqa: B008
        max_length: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        batch_tokens: int | None = None,
        packing: bool = False,
        group_by_length: bool = True,
        pad_to_multiple_of: int | None = None,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        num_proc: int | None = None,
        checkpoint: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.task = task
        self.source = source
        self.mixing: Mixing = mixing
        self.stopping: Stopping = stopping
        self.tokenizer_settings = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size if eval_batch_size is not None else 2 * batch_size
        self.eval_batch_tokens = batch_tokens if eval_batch_size is None else None
        self.batch_tokens = batch_tokens
        self.packing = packing
        self.group_by_length = group_by_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.num_proc = num_proc
        self.checkpoint = checkpoint
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.seed = seed
        self.tokenizer: Any = None
        self.labels: list[str] | None = None
        self.longest_input: int | None = None
        self.splits: dict[str, Split] = {}
        self.encoded: dict[str, Dataset] = {}
        self.lengths: dict[str, Lengths] = {}

    def prepare(self, stage: Stage) -> None:
        """Load, check and tokenize the splits of a stage, and bind the task; what is prepared already is kept.

        Raises:
            InputError: If something is wrong with the settings, the files or the rows; names all of it.
        """
        self.load(stage)
        with _bars_only_at_a_terminal():
            for name, split in self.splits.items():
                if name not in self.encoded:
                    self.encoded[name], self.lengths[name] = encode(split.rows, self.task, name, self.num_proc)
        raise_problems(self._budget_problems())

    def load(self, stage: Stage) -> None:
        """Load and check the splits of a stage and bind the task; tokenize nothing yet.

        Raises:
            InputError: If something is wrong with the settings, the files or the rows; names all of it.
        """
        needed = [name for name in _NEEDED[stage] if name not in self.splits]
        if not needed or (stage == "fit" and "train" in self.splits):
            return
        raise_problems(self._check_settings())
        with _bars_only_at_a_terminal():
            self._load_and_bind(stage, needed)

    def _load_and_bind(self, stage: Stage, needed: Sequence[str]) -> None:
        loaded = self._load(self._splits_to_load(stage))
        splits = {name: loaded[name] for name in needed if name in loaded}
        if (missing := _NEEDED[stage][0]) not in splits:
            key = f"data.source.{missing}" if isinstance(self.source, Source) else f"data.source[0].{missing}"
            raise InputError(Problem(key, f"there is no {missing} split.", f"Name its rows as {key}."))
        if stage == "fit" and "validation" not in splits:
            logger.warning("There is no validation split, so nothing tells which checkpoint is the best.")
        train_rows = loaded.get("train", splits[missing]).rows
        problems = list(check_columns(splits, self.task))
        if not problems or self.tokenizer_settings.train is None:
            problems += self._load_tokenizer(train_rows)
        raise_problems(problems)
        if self.max_length is None and self.longest_input is not None:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, self.longest_input)
        learns = stage == "fit" or self.task.labels is None
        self.labels = self.task.learn_labels(train_rows) if learns else self.task.labels
        if self.packing:
            self.task.keep_documents()
        self.task.bind(self.tokenizer, self.labels)
        raise_problems(check_rows(splits, self.task))
        self.splits |= splits

    def _load(self, names: Sequence[str]) -> dict[str, Split]:
        columns = [*self.task.input_columns, *self.task.target_columns]
        optional = self.task.optional_columns
        if not isinstance(self.source, Source):
            return load_mixed(self.source, names, columns, optional, self.mixing, self.stopping)
        loaded = load_splits(self.source, names)
        for split in loaded.values():
            split.rows = with_inner_columns(split.rows, [*columns, *optional])
        return loaded

    def _check_settings(self) -> Iterator[Problem]:
        for key in ("max_length", "batch_size", "eval_batch_size", "batch_tokens", "pad_to_multiple_of", "num_proc"):
            if (value := getattr(self, key)) is not None and value < 1:
                yield Problem(f"data.{key}", f"{value} is too small.", "Give 1 or more.")
        if self.num_workers is not None and self.num_workers < 0:
            yield Problem("data.num_workers", f"{self.num_workers} is no number of processes.", "Give 0 or more.")
        if self.batch_tokens is not None and not self.group_by_length and not self.packing:
            what = "false does not go with data.batch_tokens, whose batches are of like length."
            yield Problem("data.group_by_length", what, "Leave one of the two out.")
        if self.packing:
            yield from self._packing_problems()

    def _packing_problems(self) -> Iterator[Problem]:
        if self.task.packing_collator() is None:
            what = f"{type(self.task).__name__} has no rows that can be packed."
            cure = "Leave it out; data.group_by_length, the default, saves padding too."
            yield Problem("data.packing", what, cure)
        if not self.group_by_length:
            what = "false does not go with data.packing, which takes rows by their lengths."
            yield Problem("data.group_by_length", what, "Leave one of the two out.")
        if self.pad_to_multiple_of is not None:
            what = "packed rows are not padded, so there is nothing to round up."
            yield Problem("data.pad_to_multiple_of", what, "Leave it out.")

    def _budget_problems(self) -> Iterator[Problem]:
        """Find training rows that no batch has room for."""
        if self.batch_tokens is None or "train" not in self.encoded:
            return
        longest = int(self._lengths("train", in_tokens=True, packed=self.packing).max())
        if longest > self.batch_tokens:
            what = f"the longest training row takes {longest:,} tokens, a batch has {self.batch_tokens:,}."
            yield Problem("data.batch_tokens", what, f"Give {longest} or more, or lower data.max_length.")

    def _splits_to_load(self, stage: Stage) -> tuple[str, ...]:
        """Name the splits of a stage, and the training rows where tokenizer or labels come from them."""
        is_bound = self.tokenizer is not None  # to what a run has learnt
        learns = not is_bound and (self.task.labels is None or self.tokenizer_settings.train is not None)
        return ("train", *_NEEDED[stage]) if learns and stage != "fit" else _NEEDED[stage]

    def _load_tokenizer(self, train_rows: Dataset) -> Sequence[Problem]:
        """Load or train the tokenizer, unless that is done, and return what keeps it from being loaded."""
        if self.tokenizer is not None:
            self.tokenizer.model_max_length = self.max_length or self.tokenizer.model_max_length
            return ()
        try:
            self.tokenizer = load_tokenizer(
                self.tokenizer_settings,
                train_rows,
                self.task.text_columns,
                max_length=self.max_length,
                checkpoint=self.checkpoint,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
            )
        except InputError as error:
            return error.problems
        return ()

    def add_columns(self, compute: Columns, key: str) -> None:
        """Add to the encoded rows of each prepared split what is computed of their batches, or was before.

        Args:
            compute: Returns columns of the rows of all batches, in the order of the batches.
            key: Stands for everything that the columns depend on beside the encoded rows.
        """
        for name, split in self.splits.items():
            self.encoded[name] = with_columns(
                self.encoded[name], split.rows, self.task, name, self.eval_batch_size, compute, key
            )

    @property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the rows of each prepared split."""
        return {name: split.rows._fingerprint for name, split in self.splits.items()}

    def prepare_data(self) -> None:
        """Prepare on one process of each machine, so that the others find everything in the cache."""
        if self.trainer is not None:
            self.prepare(_stage(self.trainer.state.fn.value if self.trainer.state.fn else "fit"))

    def setup(self, stage: str) -> None:
        """Prepare the splits of a stage: `fit`, `validate` or `test`."""
        self.prepare(_stage(stage))

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches of this rank."""
        arrangement: Arrangement = "grouped" if self.group_by_length else "shuffled"
        tokens = self.batch_tokens
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            arrangement = "sorted"  # the same batches in every epoch
        elif self.packing:
            arrangement, tokens = "packed", tokens or self.batch_size * int(row_lengths(self.encoded["train"]).max())
        order = self._order("train", self.batch_size, tokens, arrangement)
        size = f"up to {tokens:,} tokens" if tokens else f"{self.batch_size} rows"
        logger.info("train: %s batches of %s, padding %.1f%%", f"{len(order):,}", size, 100 * order.padding_share)
        return self._loader("train", order)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Return the validation batches of this rank; none where there is no validation split."""
        return self._evaluation_loader("validation") if "validation" in self.encoded else []

    def test_dataloader(self) -> BatchLoader:
        """Return the test batches of this rank."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> BatchLoader:
        return self._loader(split, self._order(split, self.eval_batch_size, self.eval_batch_tokens, "sorted"))

    def _order(self, split: str, batch_size: int, batch_tokens: int | None, arrangement: Arrangement) -> BatchOrder:
        rank, world_size = self._shard()
        lengths = self._lengths(split, in_tokens=batch_tokens is not None, packed=arrangement == "packed")
        return BatchOrder(lengths, batch_size, arrangement, self.seed, rank, world_size, batch_tokens)

    def _lengths(self, split: str, in_tokens: bool, packed: bool = False) -> np.ndarray:
        """Return the lengths by which the rows of a split are grouped, or what each takes of a number of tokens."""
        if packed or not in_tokens:
            return row_lengths(self.encoded[split])
        step = self.pad_to_multiple_of or 1
        return -(-padded_lengths(self.encoded[split]) // step) * step

    def _loader(self, split: str, order: BatchOrder) -> BatchLoader:
        on_gpu = self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)
        steps = self.trainer if split == "train" else None
        collator = self.task.packing_collator() if order.arrangement == "packed" else None
        return BatchLoader(
            self.encoded[split],
            collator or self.task.collator(training=split == "train", pad_to_multiple_of=self.pad_to_multiple_of),
            order,
            accumulate=steps.accumulate_grad_batches if steps is not None else 1,
            num_workers=(_default_workers() if on_gpu else 0) if self.num_workers is None else self.num_workers,
            pin_memory=on_gpu if self.pin_memory is None else self.pin_memory,
            limit=steps.limit_train_batches if steps is not None else 1.0,
            is_trial=lambda: self.trainer is not None and self.trainer.sanity_checking,
        )

    def _shard(self) -> tuple[int, int]:
        """Return the rank and the number of ranks among those that read different rows."""
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (shard["rank"], shard["num_replicas"]) if shard else (0, 1)


def _default_workers() -> int:
    """Return as many workers as keep up with a GPU, and no more than this process's share of the cores."""
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(4, (os.cpu_count() or 1) // (2 * local_processes))


def _stage(name: str) -> Stage:
    """Return the stage of one of Lightning's trainer functions."""
    return cast(Stage, name if name in ("validate", "test") else "fit")


@contextmanager
def _bars_only_at_a_terminal() -> Iterator[None]:
    """Keep the progress bars of `datasets` out of a cluster's log."""
    if sys.stderr.isatty() or not datasets.is_progress_bar_enabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
