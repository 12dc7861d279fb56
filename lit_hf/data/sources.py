"""Sources: where the rows come from, and where each row is to be found again."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, ReadInstruction, concatenate_datasets

from lit_hf.data.files import SampleBy, files_by_split, find_files, is_saved, read_saved
from lit_hf.data.hub import read_hub
from lit_hf.data.renaming import rename_columns
from lit_hf.errors import InputError, Problem, nearest, raise_problems
from lit_hf.hub import is_local

logger = logging.getLogger("lit_hf")

SPLITS = ("train", "validation", "test")

SAMPLING_SEED = 0
"""Which rows validation and `limit` take does not depend on the run's seed: runs with other seeds stay comparable."""


@dataclass
class Source:
    """Where the rows come from.

    Args:
        path: Dataset on the Hugging Face Hub (`nyu-mll/glue`), or a local folder: one that `save_to_disk` wrote, or one
            with files named train.*, validation.* and test.*. Leave it out to name the files themselves.
        name: Configuration of the dataset on the Hub (`sst2`).
        revision: Branch, tag or commit of the dataset on the Hub.
        train: Files to train on: a path, a pattern (`data/part-*.jsonl`) or a list; JSON, JSON lines, CSV, TSV,
            Parquet, Arrow or text by their extension, also compressed (`.jsonl.gz`). With `path`: the name of the
            split there, or a part of it (`train[:10%]`).
        validation: The same for validation.
        test: The same for testing.
        generator: Function that yields the training rows as dicts, by its import path (`my_package.rows`).
        validation_share: Share of the training rows that is held out where there is no validation split; the same rows
            in every run. 0 holds out none.
        limit: Use at most that many rows of each split, drawn at random but the same ones in every run; or of one, as
            in `{train: 1000}`.
        columns: What the columns are called here, by the name that the task reads: `{text: review, label: stars}`; a
            dot leads into a nested column (`translation.en`).
        weight: Share of the training rows that are drawn from here, where several sources are interleaved; relative to
            the weights of the others.
        sample_by: What is a row of a text file: a `line`, a `paragraph` (they are parted by empty lines) or the whole
            `document`.
        streaming: Read the training rows while training, in `data.window_rows` at a time, instead of loading all of
            them before. They come in the order in which they are stored, and are mixed within a window only. No
            validation rows are held out, `limit` takes the first rows, and `trainer.max_steps` says when to stop.
    """

    path: str | None = None
    name: str | None = None
    revision: str | None = None
    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    generator: Callable[[], Iterator[dict[str, Any]]] | None = None
    validation_share: float = 0.1
    limit: int | dict[str, int] | None = None
    columns: dict[str, str] | None = None
    weight: float = 1.0
    sample_by: SampleBy = "line"
    streaming: bool = False


@dataclass
class Split:
    """The rows of a split.

    Attributes:
        rows: The rows.
        origin: Says where a row of the source came from, by its index there.
        indices: Index in the source of each row; None where they are all of them in order.
        key: The config key that names the source.
    """

    rows: Dataset
    origin: Callable[[int], str]
    key: str
    indices: np.ndarray | None = None

    def place(self, row: int) -> str:
        """Return where a row is to be found: `data/train.jsonl:18`, or `nyu-mll/glue train row 17`."""
        return self.origin(int(row if self.indices is None else self.indices[row]))

    def take(self, chosen: np.ndarray) -> Split:
        """Return a split of some of the rows.

        Args:
            chosen: Indices of rows, shape [rows].
        """
        indices = chosen if self.indices is None else self.indices[chosen]
        return Split(self.rows.select(chosen), self.origin, self.key, indices)


def load_splits(source: Source, names: Sequence[str] = SPLITS, key: str = "data.source") -> dict[str, Split]:
    """Load splits of a source; validation is cut off the training rows where the source has none.

    Args:
        source: Where the rows come from.
        names: The splits that are wanted.
        key: The config key of the source.

    Returns:
        The splits by name, without those that the source does not have.

    Raises:
        InputError: If the source cannot be read; names the file and line where it can be told.
    """
    raise_problems(source_problems(source, key))
    available = _available(source, key)
    splits: dict[str, Split] = {}
    problems: list[Problem] = []

    def read(name: str) -> bool:
        try:
            split = _read(source, available, name, key)
        except InputError as error:
            problems.extend(error.problems)
            return True
        if split is not None:
            splits[name] = split
        return split is not None

    if "test" in names:
        read("test")
    if "train" in names or "validation" in names:
        needs_cut = not read("validation") and source.validation_share > 0
        if "train" in names or needs_cut:
            read("train")
        if needs_cut and "train" in splits and len(splits["train"].rows) > 1:
            splits["train"], splits["validation"] = _cut(splits["train"], source.validation_share)
            count = f"{len(splits['validation'].rows):,}"
            logger.info("validation: %s of the training rows%s are held out", count, _of(key))
    raise_problems(problems)
    return {name: _limit(splits[name], name, source.limit) for name in SPLITS if name in names and name in splits}


def concatenate(splits: Sequence[Split], key: str) -> Split:
    """Return the rows of several splits, one after the other, each with its own place.

    Args:
        splits: Splits whose columns have the same features.
        key: The config key that names them together.
    """
    ends = np.cumsum([len(split.rows) for split in splits])

    def origin(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        return splits[part].place(row - int(ends[part]) + len(splits[part].rows))

    return Split(concatenate_datasets([split.rows for split in splits]), origin, key)


def source_problems(source: Source, key: str) -> Iterator[Problem]:
    """Find settings of a source that contradict each other."""
    files = [name for name in SPLITS if getattr(source, name)]
    if source.path is None and source.generator is None and not files:
        yield Problem(
            key,
            "no data is named.",
            f"Name files ({key}.train: rows.jsonl), or a dataset on the Hub or a folder ({key}.path).",
        )
    if source.generator is not None:
        if not inspect.isgeneratorfunction(source.generator):
            name = getattr(source.generator, "__qualname__", repr(source.generator))
            yield Problem(f"{key}.generator", f"{name} is no generator function.", "It must yield rows, as dicts.")
        if source.path is not None or source.train:
            other = "path" if source.path is not None else "train"
            yield Problem(f"{key}.{other}", f"the training rows come from {key}.generator.", "Leave one out.")
    for name in ("name", "revision"):
        if getattr(source, name) is not None and (source.path is None or is_local(source.path)):
            yield Problem(f"{key}.{name}", "only a dataset on the Hub has one.", "Leave it out.")
    yield from _check_sizes(source, key)


def _check_sizes(source: Source, key: str) -> Iterator[Problem]:
    if not 0 <= source.validation_share < 1:
        yield Problem(
            f"{key}.validation_share", f"{source.validation_share} is no share.", "Give 0, or more and below 1."
        )
    if not (source.weight > 0 and np.isfinite(source.weight)):
        yield Problem(f"{key}.weight", f"{source.weight} is no weight.", "Give a number above 0.")
    limits = source.limit if isinstance(source.limit, dict) else {"": source.limit}
    for name, limit in limits.items():
        if name and name not in SPLITS:
            yield Problem(f"{key}.limit", f"there is no split {name!r}.", nearest(name, SPLITS))
        elif limit is not None and limit < 1:
            yield Problem(f"{key}.limit", f"{limit} rows are too few.", "Give at least 1, or leave it out.")


def _available(source: Source, key: str) -> Mapping[str, Callable[[], Split]]:
    """Return what reads each split of the source, by the split's name there."""
    if source.path is None:
        named = {name: getattr(source, name) for name in SPLITS if getattr(source, name)}
        readers = {
            name: partial(_from_files, files, f"{key}.{name}", source.sample_by) for name, files in named.items()
        }
        return readers | ({"train": partial(_from_generator, source.generator, key)} if source.generator else {})
    if not is_local(source.path):
        stored = read_hub(source.path, source.name, source.revision, key)
    else:
        folder = local_folder(source.path, key)
        if not is_saved(folder):
            files = files_by_split(folder, key)
            return {name: partial(_from_files, files[name], f"{key}.path", source.sample_by) for name in files}
        stored = read_saved(folder, key)
    return {name: partial(_from_stored, rows, f"{source.path} {name}", key) for name, rows in stored.items()}


def local_folder(path: str, key: str) -> str:
    """Return the folder that a config names.

    Raises:
        InputError: If it is none.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        raise InputError(Problem(f"{key}.path", f"{path} is a file.", f"Name it as {key}.train: {path}."))
    if not folder.is_dir():
        what = f"there is no folder {path} (from {Path.cwd()})."
        raise InputError(Problem(f"{key}.path", what, "Check the path."))
    return str(folder)


def _from_files(patterns: str | list[str], key: str, sample_by: SampleBy) -> Split:
    files = find_files(patterns, key, sample_by)
    return Split(files.read(), files.place, key)


def _from_stored(rows: Dataset, name: str, key: str) -> Split:
    return Split(rows, lambda row: f"{name} row {row}", f"{key}.path")


def _from_generator(generator: Callable[[], Iterator[dict[str, Any]]], key: str) -> Split:
    rows = list(generator())
    name = f"{generator.__module__}.{generator.__qualname__}"
    try:
        return Split(Dataset.from_list(rows), lambda row: f"{name} row {row}", f"{key}.generator")
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            Problem(
                f"{key}.generator",
                f"{name} yields rows that do not fit together: {error}.",
                "It must yield dicts of one shape.",
            )
        ) from error


def _read(source: Source, available: Mapping[str, Callable[[], Split]], name: str, key: str) -> Split | None:
    """Read a split of the source, None where it has none; an empty one is an error."""
    called = getattr(source, name) if source.path is not None else None
    if called is None and name not in available:
        return None
    if called is None or (isinstance(called, str) and called in available):
        split = available[called or name]()
    else:
        split = _slice(called, available, f"{key}.{name}", str(source.path))
    if not len(split.rows):
        raise InputError(
            Problem(split.key, f"the {name} split has no rows.", "Give one that has rows, or leave it out.")
        )
    if source.columns:
        split.rows = rename_columns(split.rows, source.columns, f"{key}.columns", split.place(0))
    return split


def _slice(called: str | list[str], available: Mapping[str, Callable[[], Split]], key: str, path: str) -> Split:
    """Read parts of splits in the syntax of `datasets`: `train[:10%]`, `train[100:]+validation`."""
    names = re.split(r"\[[^]]*\]|\+", called) if isinstance(called, str) else []
    if unknown := [part for part in map(str.strip, names or [str(called)]) if part and part not in available]:
        raise InputError(Problem(key, f"{path} has no split {unknown[0]!r}.", nearest(unknown[0], available)))
    splits = {name: available[name]() for name in dict.fromkeys(filter(None, map(str.strip, names)))}
    try:
        instruction = ReadInstruction.from_spec(called)
        parts = instruction.to_absolute({name: len(split.rows) for name, split in splits.items()})
    except (ValueError, AssertionError) as error:
        raise InputError(
            Problem(key, f"{called!r} is no part of a split: {error}", "Write train[:10%], e.g.")
        ) from error
    taken = [splits[part.splitname].take(np.arange(part.from_, part.to)) for part in parts]
    return taken[0] if len(taken) == 1 else concatenate(taken, key)


def _of(key: str) -> str:
    return f" of {key}" if key.endswith("]") else ""


def _cut(train: Split, share: float) -> tuple[Split, Split]:
    order = np.random.default_rng(SAMPLING_SEED).permutation(len(train.rows))
    held_out = max(1, round(share * len(order)))
    return train.take(np.sort(order[held_out:])), train.take(np.sort(order[:held_out]))


def _limit(split: Split, name: str, limit: int | dict[str, int] | None) -> Split:
    most = limit.get(name) if isinstance(limit, dict) else limit
    if most is None or most >= len(split.rows):
        return split
    return split.take(np.sort(np.random.default_rng(SAMPLING_SEED).permutation(len(split.rows))[:most]))
