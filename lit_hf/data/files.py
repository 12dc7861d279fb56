"""Local files: which ones a config names, reading them with `datasets`, and where a row stands in them."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import Dataset, DatasetDict, IterableDataset

from lit_hf.data.compression import extension, is_compressed
from lit_hf.data.fingerprints import fingerprint_of
from lit_hf.data.reading import find_faults, find_ragged_rows, line_of
from lit_hf.data.silence import no_log
from lit_hf.errors import InputError, Problem, raise_problems

# `NA` and `null` in a CSV file are text like any other.
_CSV = {"na_filter": False}
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
    ".txt": ("text", {}),
}
"""By extension, the `datasets` builder that reads the file, and its settings."""

SampleBy = Literal["line", "paragraph", "document"]
"""What is a row of a text file."""

_SPLIT_STEMS = {"train": r"train(ing)?", "validation": r"validation|valid|val|dev", "test": r"test(ing)?"}


@dataclass
class Files:
    """The files of one split.

    Attributes:
        paths: The files, in the order in which their rows follow each other; all of one format.
        key: The config key that names them.
        sample_by: What is a row of a text file.
    """

    paths: list[Path]
    key: str
    sample_by: SampleBy = "line"

    def read(self) -> Dataset:
        """Read all rows; their fingerprint is that of what the files hold.

        Raises:
            InputError: If a file cannot be read; names the line where it can be told.
        """
        arguments = self._arguments
        if arguments["path"] == "csv":
            raise_problems(find_ragged_rows(self.paths, self.key))
        try:
            with no_log():
                rows = datasets.load_dataset(**arguments)
            if arguments["path"] == "json":
                rows.data.table.validate(full=True)  # the reader lets through what is not UTF-8
        except Exception as error:
            raise InputError(*self.faults(error)) from error
        if not len(rows):
            raise_problems(find_faults(self.paths, self.key))
        reading = {name: value for name, value in arguments.items() if name != "data_files"}
        rows._fingerprint = fingerprint_of(rows, self.paths, reading)
        return rows

    def stream(self) -> IterableDataset:
        """Open the files, to be read row by row.

        Raises:
            InputError: If the first file cannot be read; names the line where it can be told.
        """
        try:
            with no_log():
                return datasets.load_dataset(**self._arguments, streaming=True)
        except Exception as error:
            raise InputError(*self.faults(error)) from error

    @property
    def _arguments(self) -> dict[str, Any]:
        builder, settings = FORMATS[extension(self.paths[0])]
        if builder == "text":
            settings = {"sample_by": self.sample_by}
        names = [glob.escape(str(path)) for path in self.paths]
        return {"path": builder, "data_files": names, "split": "train", **settings}

    def faults(self, error: BaseException) -> list[Problem]:
        """Return what is wrong with the files, which failed to be read with an error."""
        return list(find_faults(self.paths, self.key)) or [self._unknown(error)]

    def place(self, row: int) -> str:
        """Return the file and line of a row, by its index."""
        return line_of(self.paths, row, self.sample_by)

    def _unknown(self, error: BaseException) -> Problem:
        while error.__cause__ is not None:
            error = error.__cause__
        names = ", ".join(map(str, self.paths[:3])) + (", ..." if len(self.paths) > 3 else "")
        return Problem(self.key, f"{names} cannot be read: {error}.", "Mend the file, or give another one.")


def find_files(patterns: str | Sequence[str], key: str, sample_by: SampleBy = "line") -> Files:
    """Return the files that paths and patterns name.

    Args:
        patterns: Paths and glob patterns, relative to the working directory.
        key: The config key that they come from.
        sample_by: What is a row of a text file.

    Raises:
        InputError: If one names no file, or the files have several formats or an unknown one.
    """
    patterns = [str(Path(pattern).expanduser()) for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
    problems: list[Problem] = []
    paths: list[Path] = []
    for pattern in patterns:
        found = [Path(pattern)] if Path(pattern).is_file() else _glob(pattern)
        if not found:
            problems.append(_not_found(pattern, key))
        paths.extend(path for path in found if path not in paths)
    problems.extend(_check_formats(paths, key))
    raise_problems(problems)
    return Files(paths, key, sample_by)


def _glob(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        return []
    # Path.glob takes no absolute patterns.
    found = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
    return sorted(path for path in found if path.is_file())


def _not_found(pattern: str, key: str) -> Problem:
    path = Path(pattern)
    if glob.has_magic(pattern):
        return Problem(key, f"no file matches {pattern!r} (from {Path.cwd()}).", "Mend the pattern.")
    if path.is_dir():
        cure = f"Name its files ({path / '*.jsonl'}), or give it as {key.rpartition('.')[0]}.path."
        return Problem(key, f"{pattern} is a folder.", cure)
    if not path.parent.is_dir():
        return Problem(key, f"there is no file {pattern}, nor its folder (from {Path.cwd()}).", "Mend the path.")
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
    cure = f"Did you mean {path.parent / near[0]}?" if near else "Mend the path."
    return Problem(key, f"there is no file {pattern} (from {Path.cwd()}).", cure)


def _check_formats(paths: Sequence[Path], key: str) -> Iterator[Problem]:
    unknown = [path for path in paths if not _is_known(path)]
    for path in unknown:
        yield Problem(key, f"{path}: the extension does not tell the format.", f"Known are {', '.join(FORMATS)}.")
    formats = {extension(path): path for path in paths if path not in unknown}
    if len({str(FORMATS[suffix]) for suffix in formats}) > 1:
        yield Problem(
            key,
            f"the files have several formats: {', '.join(map(str, formats.values()))}.",
            "Give files of one format.",
        )


def _is_known(path: Path) -> bool:
    known = extension(path) in FORMATS
    return known and not (is_compressed(path) and extension(path) in (".parquet", ".arrow"))


def files_by_split(folder: str, key: str = "data.source") -> dict[str, list[str]]:
    """Return the files of a folder by the split that they are named after (`train.csv`, `dev-00000-of-00002.parquet`).

    Args:
        folder: The folder.
        key: The config key of the source that names it.

    Raises:
        InputError: If no file is named after a split.
    """
    files: dict[str, list[str]] = {}
    candidates = [
        path for place in (Path(folder), Path(folder, "data")) if place.is_dir() for path in sorted(place.iterdir())
    ]
    for path in candidates:
        for split, stem in _SPLIT_STEMS.items():
            if _is_known(path) and re.match(rf"({stem})([-_.]|$)", path.stem):
                files.setdefault(split, []).append(glob.escape(str(path)))
    if not files:
        there = ", ".join(path.name for path in candidates[:10]) or "nothing"
        raise InputError(
            Problem(
                f"{key}.path",
                f"{folder} holds no train.*, validation.* or test.* file, only: {there}.",
                f"Name the files themselves ({key}.train).",
            )
        )
    return files


def is_saved(folder: str) -> bool:
    """Say whether `save_to_disk` wrote the folder."""
    return any(Path(folder, name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_saved(folder: str, key: str = "data.source") -> Mapping[str, Dataset]:
    """Read a folder that `save_to_disk` wrote; a single dataset is the train split.

    Args:
        folder: The folder.
        key: The config key of the source that names it.

    Raises:
        InputError: If its files are damaged.
    """
    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:
        raise InputError(
            Problem(f"{key}.path", f"{folder} cannot be loaded: {error}.", "Save it again with save_to_disk.")
        ) from error
    return saved if isinstance(saved, DatasetDict) else {"train": saved}
