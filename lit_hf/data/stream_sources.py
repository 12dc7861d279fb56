"""Sources that are streamed: opening them, and what cannot be done with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset, Features

from lit_hf.data.files import files_by_split, find_files, is_saved
from lit_hf.data.hub import read_hub
from lit_hf.data.inner_columns import with_inner_columns
from lit_hf.data.renaming import rename_columns
from lit_hf.data.sources import SPLITS, Source, Split, concatenate, load_splits, local_folder, source_problems
from lit_hf.data.streaming import Stream
from lit_hf.errors import InputError, Problem, nearest, raise_problems
from lit_hf.hub import is_local


def load_streamed(
    source: Source, names: Sequence[str], columns: Sequence[str], window_rows: int, key: str = "data.source"
) -> tuple[dict[str, Split], Stream | None]:
    """Open the training rows of a source, and load its other splits.

    Args:
        source: Where the rows come from.
        names: The splits that are wanted.
        columns: The task's columns; those inside of others become columns of their own.
        window_rows: Rows of a window.
        key: The config key of the source.

    Returns:
        The splits by name, of the training rows the first window, and the training rows; None where none are wanted.

    Raises:
        InputError: If the source cannot be read, or cannot be streamed.
    """
    raise_problems([*source_problems(source, key), *_problems(source, key)])
    is_remote = source.path is not None and not is_local(source.path)
    stored = read_hub(str(source.path), source.name, source.revision, key, streaming=True) if is_remote else None
    splits: dict[str, Split] = {}
    stream = None
    if "train" in names and (stream := _open(source, "train", stored, columns, window_rows, key)) is not None:
        first = next(stream.windows(), None)
        if first is None:
            raise InputError(Problem(stream.key, "the train split has no rows.", "Give one that has rows."))
        splits["train"] = first.split
    others = [name for name in names if name != "train"]
    if stored is None:
        loaded = load_splits(replace(source, streaming=False, validation_share=0.0), others, key)
        for split in loaded.values():
            split.rows = with_inner_columns(split.rows, columns)
        return splits | loaded, stream
    for name in others:  # the dataset is not downloaded, so these are read as they come, too
        opened = _open(source, name, stored, columns, window_rows, key)
        if opened is not None and (windows := [window.split for window in opened.windows()]):
            splits[name] = concatenate(windows, opened.key)
    return splits, stream


def _problems(source: Source, key: str) -> Iterator[Problem]:
    if source.generator is not None:
        what = "rows of a generator are not streamed: nobody can go on in the middle of one."
        yield Problem(f"{key}.streaming", what, "Leave it out, or write the rows to files.")
    if source.path is not None and is_local(source.path) and is_saved(source.path):
        what = f"what save_to_disk wrote ({source.path}) is read as it is needed anyway."
        yield Problem(f"{key}.streaming", what, "Leave it out.")
    for name in SPLITS:
        if source.path is not None and not (isinstance(called := getattr(source, name), str) or called is None):
            yield Problem(f"{key}.{name}", f"{called} is no split of {source.path}.", "Give its name.")


def _open(
    source: Source, name: str, stored: Mapping[str, Any] | None, columns: Sequence[str], window_rows: int, key: str
) -> Stream | None:
    """Open a split of the source, which is stored on the Hub or is local; None where it has none."""

    def shape(split: Split) -> Dataset:
        rows = split.rows
        if source.columns:
            rows = rename_columns(rows, source.columns, f"{key}.columns", split.place(0))
        return with_inner_columns(rows, columns)

    limit = source.limit.get(name) if isinstance(source.limit, dict) else source.limit
    if stored is not None:
        called = _called(source, name, stored, key)
        if called not in stored:
            return None
        rows = f"{source.path} {called} row"
        return Stream(stored[called], lambda row: f"{rows} {row}", f"{key}.path", window_rows, limit, shape)
    if source.path is None:
        patterns, place = getattr(source, name), f"{key}.{name}"
    else:
        named = files_by_split(local_folder(source.path, key), key)
        patterns, place = named.get(_called(source, name, named, key)), f"{key}.path"
    if not patterns:
        return None
    files = find_files(patterns, place, source.sample_by)
    return Stream(files.stream(), files.place, place, window_rows, limit, shape, files.faults)


def _called(source: Source, name: str, there: Mapping[str, Any], key: str) -> str:
    """Return the name that a split has in the source."""
    called = getattr(source, name)
    if called is None or called in there:
        return called or name
    if called.partition("[")[0].strip() in there or "+" in called:
        what = f"{called!r} is a part of a split, and a stream does not know how long it is."
        raise InputError(Problem(f"{key}.{name}", what, f"Name the split, and set {key}.limit."))
    raise InputError(Problem(f"{key}.{name}", f"{source.path} has no split {called!r}.", nearest(called, there)))


def streaming_problems(trains_tokenizer: bool, packing: bool, batch_tokens: int | None) -> Iterator[Problem]:
    """Find settings of the data that need all rows beforehand."""
    if trains_tokenizer:
        what = "a tokenizer is trained on all rows, and a stream is read only while training."
        yield Problem("data.tokenizer.train", what, "Train one on some of the rows before, and give its folder.")
    if packing and batch_tokens is None:
        what = "rows are packed to as many tokens as some of the longest have, which nobody knows of a stream."
        yield Problem("data.batch_tokens", what, "Give the tokens of a batch.")


class FeaturesAlone:
    """Stands for training rows that nobody has read: a task can learn labels from their features, not from values.

    Args:
        features: The features.
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.column_names = list(features)

    def __getitem__(self, key: Any) -> Any:
        raise self._refusal()

    def __getattr__(self, name: str) -> Any:
        raise self._refusal()

    def __iter__(self) -> Any:
        raise self._refusal()

    def _refusal(self) -> InputError:
        what = "what the task learns from all training rows beforehand is not known of a stream."
        return InputError(Problem("data.source.streaming", what, "Name the labels: task.labels."))
