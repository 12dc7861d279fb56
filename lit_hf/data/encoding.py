"""Encoding: rows become the model's inputs, once, and the result is kept on disk."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
import transformers
from datasets import Dataset, concatenate_datasets
from datasets.fingerprint import Hasher
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from lit_hf.data.batching import own_cores, row_lengths
from lit_hf.data.cache import cache_folder
from lit_hf.data.silence import no_bars
from lit_hf.task import Examples, Task
from lit_hf.writing import write_atomically

logger = logging.getLogger("lit_hf")

VERSION = 1
"""To be raised when the same rows are encoded, or kept, in another way than before."""

ROWS_PER_PROCESS = 50_000

NO_TRUNCATION = 10**9


class Lengths(NamedTuple):
    """The lengths of a split's encoded rows, in tokens.

    Attributes:
        rows: Number of rows.
        median: Half of the rows are no longer.
        percentile_95: 95 of 100 rows are no longer.
        longest: The longest row.
        cut: Rows that truncation has cut.
    """

    rows: int
    median: int
    percentile_95: int
    longest: int
    cut: int

    def __str__(self) -> str:
        """Return the lengths as one line."""
        text = f"median {self.median}, 95% up to {self.percentile_95}, longest {self.longest} tokens"
        share = f"{self.cut / self.rows:.1%}" if self.cut else ""
        return f"{text}; {self.cut:,} rows ({share}) are cut by truncation" if self.cut else f"{text}; none is cut"


def encode(rows: Dataset, task: Task, name: str, num_proc: int | None = None) -> tuple[Dataset, Lengths]:
    """Encode the rows of a split, or take them from the cache if these were encoded so before.

    Args:
        rows: Rows that have been checked.
        task: Encodes them; it is bound to its tokenizer.
        name: The split's name, for the log.
        num_proc: Processes that encode; by default one, and more for many rows.

    Returns:
        The encoded rows, which are read from disk as they are needed, and their lengths.
    """
    folder = cache_folder("encoded") / fingerprint(rows, task)
    record_file = folder / "record.json"
    with FileLock(f"{folder}.lock"):
        reused = record_file.is_file()
        if not reused:
            folder.mkdir(exist_ok=True)
            encoded = _encode(rows, task, folder / "rows.arrow", num_proc or _default_processes(len(rows)))
            files = [Path(file["filename"]).name for file in encoded.cache_files]
            record = {"files": files, "cut": count_cut(rows, encoded, task)}
            write_atomically(record_file, json.dumps(record))
        record = json.loads(record_file.read_text(encoding="utf-8"))
    encoded = concatenate_datasets([Dataset.from_file(str(folder / file)) for file in record["files"]])
    lengths = describe(row_lengths(encoded), record["cut"])
    logger.info("%s: %s rows %s", name, f"{len(encoded):,}", "reused from the cache" if reused else "tokenized")
    logger.info("%s: %s", name, lengths)
    return encoded, lengths


def encode_in_memory(rows: Dataset, task: Task) -> Dataset:
    """Encode rows that are read once, in this process and without the cache."""
    with no_bars():
        return rows.map(
            _Encoder(task),
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=f"encoded-{rows._fingerprint}",
        )


def fingerprint(rows: Dataset, task: Task) -> str:
    """Return what names the encoded rows in the cache: it changes with all that they depend on."""
    state = {name: value for name, value in vars(task).items() if name not in ("tokenizer", "labels")}
    parts = [
        VERSION,
        rows._fingerprint,
        _tokenizer_state(task.tokenizer),
        _source(type(task)),
        _helpers(),
        [transformers.__version__, tokenizers.__version__],
        Hasher.hash(state),
        task.labels,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what changes with everything that the tokenizer makes of a text."""
    return hashlib.sha256(json.dumps(_tokenizer_state(tokenizer)).encode()).hexdigest()[:32]


def _tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Left over from the last call, and set anew by the next.
        backend.no_truncation()
        backend.no_padding()
        # The whole of it; what it was made with differs between a tokenizer and its saved copy.
        content, settings = backend.to_str(), {}
    else:
        content = json.dumps(sorted(tokenizer.get_vocab().items()))
        settings = {name: str(value) for name, value in tokenizer.init_kwargs.items() if name != "name_or_path"}
    sides = [tokenizer.model_max_length, tokenizer.padding_side, tokenizer.truncation_side]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    names = tokenizer.model_input_names
    return [type(tokenizer).__qualname__, content, settings, sides, special, names, tokenizer.chat_template]


def _source(task_class: type[Task]) -> list[str]:
    """Return the source of the files that define a task, so that an edited `encode` encodes anew."""
    sources = []
    for base in task_class.__mro__[: task_class.__mro__.index(Task)]:
        sources.append(f"{base.__module__}.{base.__qualname__}")
        try:
            sources.append(inspect.getsource(sys.modules[base.__module__]))
        except (OSError, TypeError):
            sources.append(Hasher.hash(base))
    return sources


def _helpers() -> str:
    """Return a hash of lit-hf's own files that tasks encode and score rows with, so that a mended one does it anew."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for room in ("data", "evaluation", "losses", "tasks"):
        for file in sorted((package / room).glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _encode(rows: Dataset, task: Task, file: Path, num_proc: int) -> Dataset:
    return rows.map(
        _Encoder(task),
        batched=True,
        with_indices=True,
        num_proc=num_proc if num_proc > 1 else None,
        remove_columns=rows.column_names,
        cache_file_name=str(file),
        load_from_cache_file=False,
        new_fingerprint=file.parent.name,
        desc="tokenizing",
    )


class _Encoder:
    """Encodes a batch of rows, and numbers the parts of rows by their rows in the split. A class, to be pickled."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __call__(self, examples: Examples, indices: list[int]) -> Examples:
        encoded = self._task.encode(examples)
        if "row" in encoded:
            encoded["row"] = [indices[row] for row in encoded["row"]]
        return encoded


def _default_processes(rows: int) -> int:
    return max(1, min(rows // ROWS_PER_PROCESS, own_cores()))


def count_cut(rows: Dataset, encoded: Dataset, task: Task) -> int:
    """Count the rows that truncation has cut, by encoding those of full length once more without a limit.

    A task that makes several rows of a long one has cut none.
    """
    limit = task.tokenizer.model_max_length
    lengths = row_lengths(encoded)
    if len(encoded) != len(rows):
        return 0
    full = np.flatnonzero(lengths >= limit)
    cut = 0
    with _untruncated(task.tokenizer):
        for start in range(0, len(full), 1000):
            part = full[start : start + 1000]
            whole = task.encode(rows.select(part)[:])["input_ids"]
            if len(whole) != len(part):
                return 0
            cut += int((row_lengths(Dataset.from_dict({"input_ids": whole})) > lengths[part]).sum())
    return cut


@contextmanager
def _untruncated(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    limit = tokenizer.model_max_length
    tokenizer.model_max_length = NO_TRUNCATION
    try:
        yield
    finally:
        tokenizer.model_max_length = limit


def describe(lengths: np.ndarray, cut: int) -> Lengths:
    """Return what is told of rows' lengths in tokens, and of how many of them were cut."""
    median, percentile_95, longest = np.percentile(lengths, [50, 95, 100], method="higher").astype(int).tolist()
    return Lengths(len(lengths), median, percentile_95, longest, cut)
