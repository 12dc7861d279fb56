"""The data module: from the config's `data:` block to batches."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, cast

from datasets import Dataset
from lightning.pytorch import LightningDataModule
from lightning.pytorch.accelerators import CUDAAccelerator

from lit_hf.data.batch_settings import BatchSettings
from lit_hf.data.batching import BatchLoader, default_workers, row_lengths
from lit_hf.data.columns import check_columns, check_rows
from lit_hf.data.encoding import Lengths, count_cut, describe, encode, encode_in_memory
from lit_hf.data.inner_columns import with_inner_columns
from lit_hf.data.mixing import WINDOW_ROWS, Mixing, Stopping, load_mixed, unused_settings
from lit_hf.data.order import BatchOrder
from lit_hf.data.precomputed import Columns, with_columns
from lit_hf.data.silence import bars_only_at_a_terminal
from lit_hf.data.sources import Source, Split, load_splits
from lit_hf.data.stream_mixing import load_mixed_streams
from lit_hf.data.stream_sources import FeaturesAlone, load_streamed, streaming_problems
from lit_hf.data.streaming import Places, StreamLoader, Window
from lit_hf.data.tokenization import TokenizerSettings, load_tokenizer
from lit_hf.errors import InputError, Problem, raise_problems
from lit_hf.task import Task

logger = logging.getLogger("lit_hf")

Stage = Literal["fit", "validate", "test"]

_NEEDED = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",)}


class LitDataModule(LightningDataModule):
    """The data.

    Args:
        task: The task; it says which columns are read and how they are encoded.
        source: Where the rows come from; a list of sources is mixed.
        mixing: How the training rows of several sources (a list as `source`) are mixed: they follow each other, or are
            drawn by the sources' weights.
        stopping: When drawing ends: with the first source that has no more rows, or, with rows of the smaller sources
            repeated, once all rows of all sources were drawn.
        window_rows: Rows of a streamed source that are read, tokenized and shuffled together.
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
        batches: How rows make batches.
        splits: The rows of each split that is prepared.
        encoded: The same as the model's inputs.
        lengths: Their lengths in tokens.
        tokenizer: The tokenizer, once prepared.
        labels: Label names by id, once prepared; None where the task has none.
        longest_input: The longest input that the model takes, set by whoever knows the model; None is no limit.
        stream: The training rows where they are streamed; the train split is the first window of them then.
    """

    def __init__(
        self,
        task: Task,
        source: Source | list[Source] = Source(),  # noqa: B008
        mixing: Mixing = "concatenate",
        stopping: Stopping = "first_exhausted",
        window_rows: int = WINDOW_ROWS,
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
        self.window_rows = window_rows
        self.tokenizer_settings = tokenizer
        self.max_length = max_length
        self.batches = BatchSettings(
            batch_size, eval_batch_size, batch_tokens, packing, group_by_length, pad_to_multiple_of, seed
        )
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.num_proc = num_proc
        self.checkpoint = checkpoint
        self.revision = revision
        self.trust_remote_code = trust_remote_code
        self.tokenizer: Any = None
        self.labels: list[str] | None = None
        self.longest_input: int | None = None
        self.stream: Places | None = None
        self.splits: dict[str, Split] = {}
        self.encoded: dict[str, Dataset] = {}
        self.lengths: dict[str, Lengths] = {}

    def prepare(self, stage: Stage) -> None:
        """Load, check and tokenize the splits of a stage, and bind the task; what is prepared already is kept.

        Raises:
            InputError: If something is wrong with the settings, the files or the rows; names all of it.
        """
        self.load(stage)
        with bars_only_at_a_terminal():
            for name, split in self.splits.items():
                if name not in self.encoded and name == "train" and self.stream is not None:
                    self._encode_first_window(split.rows)
                elif name not in self.encoded:
                    self.encoded[name], self.lengths[name] = encode(split.rows, self.task, name, self.num_proc)
        if "train" in self.encoded:
            raise_problems(self.batches.row_problems(self.encoded["train"]))

    def _encode_first_window(self, rows: Dataset) -> None:
        encoded = self.encoded["train"] = encode_in_memory(rows, self.task)
        lengths = self.lengths["train"] = describe(row_lengths(encoded), count_cut(rows, encoded, self.task))
        logger.info("train: streamed, %s rows at a time; the first of them: %s", f"{self.window_rows:,}", lengths)

    def load(self, stage: Stage) -> None:
        """Load and check the splits of a stage and bind the task; tokenize nothing yet.

        Raises:
            InputError: If something is wrong with the settings, the files or the rows; names all of it.
        """
        needed = [name for name in _NEEDED[stage] if name not in self.splits]
        if not needed or (stage == "fit" and "train" in self.splits):
            return
        raise_problems(self._check_settings())
        for setting in unused_settings(self.source, self.mixing, self.stopping, self.window_rows):
            logger.warning("not used: %s", setting)
        with bars_only_at_a_terminal():
            self._load_and_bind(stage, needed)

    def _load_and_bind(self, stage: Stage, needed: Sequence[str]) -> None:
        loaded = self._load(self._splits_to_load(stage))
        splits = {name: loaded[name] for name in needed if name in loaded}
        if (missing := _NEEDED[stage][0]) not in splits:
            key = f"data.source.{missing}" if isinstance(self.source, Source) else f"data.source[0].{missing}"
            raise InputError(Problem(key, f"there is no {missing} split.", f"Name its rows as {key}."))
        if stage == "fit" and "validation" not in splits:
            why = "; none is held out of a stream" if self.stream is not None else ""
            logger.warning("There is no validation split%s, so nothing tells which checkpoint is the best.", why)
        train_rows = loaded.get("train", splits[missing]).rows
        problems = list(check_columns(splits, self.task))
        if not problems or self.tokenizer_settings.train is None:
            problems += self._load_tokenizer(train_rows)
        raise_problems(problems)
        if self.max_length is None and self.longest_input is not None:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, self.longest_input)
        learns = stage == "fit" or self.task.labels is None
        known = train_rows if self.stream is None else cast(Dataset, FeaturesAlone(train_rows.features))
        self.labels = self.task.learn_labels(known) if learns else self.task.labels
        if self.batches.packing:
            self.task.keep_documents()
        self.task.bind(self.tokenizer, self.labels)
        raise_problems(check_rows(splits, self.task))
        self.splits |= splits

    def _load(self, names: Sequence[str]) -> dict[str, Split]:
        columns = [*self.task.input_columns, *self.task.target_columns]
        optional = self.task.optional_columns
        if not isinstance(self.source, Source) and self._is_streamed:
            loaded, self.stream = load_mixed_streams(
                self.source, names, columns, optional, self.mixing, self.stopping, self.window_rows
            )
            return loaded
        if not isinstance(self.source, Source):
            return load_mixed(self.source, names, columns, optional, self.mixing, self.stopping)
        if self.source.streaming:
            loaded, self.stream = load_streamed(self.source, names, [*columns, *optional], self.window_rows)
            return loaded
        loaded = load_splits(self.source, names)
        for split in loaded.values():
            split.rows = with_inner_columns(split.rows, [*columns, *optional])
        return loaded

    def _check_settings(self) -> Iterator[Problem]:
        batches = self.batches
        counts = {
            "max_length": self.max_length,
            "window_rows": self.window_rows,
            "batch_size": batches.size,
            "eval_batch_size": batches.eval_size,
            "batch_tokens": batches.tokens,
            "pad_to_multiple_of": batches.multiple,
            "num_proc": self.num_proc,
        }
        for key, value in counts.items():
            if value is not None and value < 1:
                yield Problem(f"data.{key}", f"{value} is too small.", "Give 1 or more.")
        if self.num_workers is not None and self.num_workers < 0:
            yield Problem("data.num_workers", f"{self.num_workers} is no number of processes.", "Give 0 or more.")
        yield from batches.problems(self.task)
        if self._is_streamed:
            yield from streaming_problems(self.tokenizer_settings.train is not None, batches.packing, batches.tokens)

    @property
    def _is_streamed(self) -> bool:
        sources = [self.source] if isinstance(self.source, Source) else self.source
        return bool(sources) and all(source.streaming for source in sources)

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
            encoded = self.encoded[name]
            order = self.batches.computing_order(encoded)
            self.encoded[name] = with_columns(encoded, split.rows, self.task, name, order, compute, key)

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

    def train_dataloader(self) -> BatchLoader | StreamLoader:
        """Return the training batches of this rank."""
        if self.stream is not None:
            return self._stream_loader(self.stream)
        encoded = self.encoded["train"]
        order, tokens = self.training_order(encoded), self.batches.training_tokens(encoded)
        size = f"up to {tokens:,} tokens" if tokens else f"{self.batches.size} rows"
        logger.info("train: %s batches of %s, padding %.1f%%", f"{len(order):,}", size, 100 * order.padding_share)
        accumulate, limit = self._steps
        settings = {"num_workers": self._workers, "accumulate": accumulate, "limit": limit}
        return self._loader(encoded, order, training=True, **settings)

    def _stream_loader(self, stream: Places) -> StreamLoader:
        if self.num_workers:
            logger.info("train: a stream is read and tokenized without workers; data.num_workers is not used")
        accumulate, limit = self._steps
        # A task of its own: a tokenizer cannot be set for truncation in one thread while another uses it.
        encode = partial(self._encode_window, copy.deepcopy(self.task))
        most = limit if isinstance(limit, int) else None
        return StreamLoader(stream, encode, self._window_loader, accumulate, most)

    def _encode_window(self, task: Task, window: Window) -> Dataset:
        """Check and encode the rows of a window; the first one is that already."""
        if window.place.window == 0:
            return self.encoded["train"]
        raise_problems(check_columns({"train": window.split}, task))
        raise_problems(check_rows({"train": window.split}, task))
        encoded = encode_in_memory(window.split.rows, task)
        raise_problems(self.batches.row_problems(encoded))
        return encoded

    def _window_loader(self, window: Window, encoded: Dataset) -> BatchLoader:
        return self._loader(encoded, self.training_order(encoded, window.place.window), training=True)

    def training_order(self, encoded: Dataset, window: int = 0) -> BatchOrder:
        """Return the order of batches of encoded training rows.

        Args:
            encoded: The rows, or those of a window of a stream.
            window: The window's number.
        """
        overfits = self.trainer is not None and bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]
        return self.batches.training_order(encoded, self._shard(), window, repeats=overfits)

    @property
    def _steps(self) -> tuple[int, int | float]:
        """Batches that make an optimizer step, and how much of an epoch is used: a number of batches, or a share."""
        return (self.trainer.accumulate_grad_batches, self.trainer.limit_train_batches) if self.trainer else (1, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Return where in the stream training is; the place in rows that are all there is the trainer's progress."""
        if self.stream is None or self.trainer is None:
            return {}
        return {"stream": self.stream.state_dict(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        if self.stream is not None and "stream" in state_dict:
            self.stream.load_state_dict(state_dict["stream"])

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Return the validation batches of this rank; none where there is no validation split."""
        return self._evaluation_loader("validation") if "validation" in self.encoded else []

    def test_dataloader(self) -> BatchLoader:
        """Return the test batches of this rank."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> BatchLoader:
        encoded = self.encoded[split]
        order = self.batches.evaluation_order(encoded, self._shard())
        return self._loader(encoded, order, num_workers=self._workers)

    def _loader(self, encoded: Dataset, order: BatchOrder, *, training: bool = False, **settings: Any) -> BatchLoader:
        collator = self.task.packing_collator() if order.arrangement == "packed" else None
        return BatchLoader(
            encoded,
            collator or self.task.collator(training=training, pad_to_multiple_of=self.batches.multiple),
            order,
            pin_memory=self._is_on_gpu if self.pin_memory is None else self.pin_memory,
            is_trial=lambda: self.trainer is not None and self.trainer.sanity_checking,
            **settings,
        )

    @property
    def _is_on_gpu(self) -> bool:
        return self.trainer is not None and isinstance(self.trainer.accelerator, CUDAAccelerator)

    @property
    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        return default_workers(self.trainer.num_devices) if self._is_on_gpu and self.trainer is not None else 0

    def _shard(self) -> tuple[int, int]:
        """Return the rank and the number of ranks among those that read different rows."""
        shard = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (shard["rank"], shard["num_replicas"]) if shard else (0, 1)


def _stage(name: str) -> Stage:
    """Return the stage of one of Lightning's trainer functions."""
    return cast(Stage, name if name in ("validate", "test") else "fit")
