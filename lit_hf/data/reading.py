"""Reading a local file once more, slowly and with care, to find the line of a fault or of a row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from lit_hf.data.compression import DAMAGE, extension, is_compressed, open_bytes, open_text, read_text
from lit_hf.errors import Problem

SHOWN_FAULTS = 5
"""Faults that are told of one file; the first ones are enough to see what is wrong."""

csv.field_size_limit(2**31 - 1)


def find_faults(paths: Sequence[Path], key: str) -> Iterator[Problem]:
    """Find what keeps files of one format from being read as one table.

    Args:
        paths: The files.
        key: The config key that names them, for the cures.

    Yields:
        What is wrong, with the file and line as its place.
    """
    sound = True
    for path in paths:
        for problem in islice(_faults(path, key), SHOWN_FAULTS) if path.stat().st_size else [_empty(path, key)]:
            sound = False
            yield problem
    if sound:
        yield from _differing_columns(paths, key)


def find_ragged_rows(paths: Sequence[Path], key: str) -> Iterator[Problem]:
    """Find the rows of CSV files that have more or fewer fields than the header; pandas fills short ones in silence."""
    for path in paths:
        # One that is damaged or not UTF-8 is left to the reader, whose failure finds the place.
        with suppress(UnicodeDecodeError, *DAMAGE):
            yield from islice(_ragged_rows(path, key), SHOWN_FAULTS)


def line_of(paths: Sequence[Path], row: int, sample_by: str = "line") -> str:
    """Return the place of a row: its file and line, or its file and its number there.

    Args:
        paths: The files, in the order of their rows.
        row: Index of the row in all files together.
        sample_by: What is a row of a text file: a `line`, a `paragraph` or the whole `document`.
    """
    for path in paths:
        places = _text_places(path, sample_by) if extension(path) == ".txt" else _places(path)
        for place in places:
            if row == 0:
                return place
            row -= 1
    return f"{paths[-1]} row {row}"


def mixed_kinds(values: Iterable[Any]) -> tuple[int, str, str] | None:
    """Find the first value that is of another kind than those before it.

    Returns:
        Its index, its kind and theirs; None where all are alike. Null is of no kind.
    """
    first = None
    for index, value in enumerate(values):
        kind = kind_of(value)
        if first is None:
            first = kind
        elif kind is not None and kind != first:
            return index, kind, first
    return None


def kind_of(value: Any) -> str | None:
    """Return what a JSON value is, in plain English; None for null."""
    if value is None:
        return None
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def _faults(path: Path, key: str) -> Iterator[Problem]:
    suffix = extension(path)
    binary = suffix in (".parquet", ".arrow")
    try:
        found = list(islice(_damage(path, key) if binary else _undecodable_lines(path), SHOWN_FAULTS))
    except DAMAGE as error:
        if not is_compressed(path):
            raise
        cure = f"Compress or download the file again. (It is {key}.)"
        yield Problem(str(path), f"the compressed file is damaged: {error}.", cure)
        return
    if not found and suffix in (".csv", ".tsv"):
        found = list(_ragged_rows(path, key))
    elif not found and not binary and suffix != ".txt":
        found = list(_json_faults(path, key))
    if not found and next(_places(path), None) is None:
        found = [_empty(path, key)]
    yield from found


def _empty(path: Path, key: str) -> Problem:
    what = "the file is empty."
    if path.stat().st_size:
        header = extension(path) in (".csv", ".tsv")
        what = "the file has a header and no rows." if header else "the file has no rows."
    return Problem(str(path), what, f"Give a file that has rows as {key}.")


def _undecodable_lines(path: Path) -> Iterator[Problem]:
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                yield Problem(
                    f"{path}:{number}",
                    f"this is not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1} of the line.",
                    f"Save the file as UTF-8, e.g. iconv -f latin1 -t utf-8 {path} > new{path.suffix}.",
                )


# CSV


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV or TSV file, header first, each with the line it begins on; blank lines are no rows."""
    with open_text(path, "utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t" if extension(path) == ".tsv" else ",", strict=True)
        line = 1
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1


def _ragged_rows(path: Path, key: str) -> Iterator[Problem]:
    line, header = 0, None
    try:
        for line, row in _csv_rows(path):
            if header is None:
                header = row
            elif len(row) != len(header):
                yield Problem(
                    f"{path}:{line}",
                    f"the row has {len(row)} fields, but the header has {len(header)}: {', '.join(header)}.",
                    f'A field that contains the separator must stand in "quotes". (The file is {key}.)',
                )
    except csv.Error as error:
        yield Problem(
            f"{path}:{line + 1}", f"from here on it is no CSV: {error}.", f"Is a quote left open? (The file is {key}.)"
        )


# JSON


def _json_faults(path: Path, key: str) -> Iterator[Problem]:
    text = read_text(path, "utf-8-sig")
    rows: list[tuple[str, Any]] = []
    if _is_one_document(text):
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            yield _bad_json(f"{path}:{error.lineno}", error, key)
            return
        if isinstance(document, list):
            rows = [(f"{path} row {index}", row) for index, row in enumerate(document)]
    else:
        for number, line in _filled_lines(text):
            try:
                rows.append((f"{path}:{number}", json.loads(line)))
            except json.JSONDecodeError as error:
                yield _bad_json(f"{path}:{number}", error, key)
    yield from _row_faults(rows, key)


def _filled_lines(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _is_one_document(text: str) -> bool:
    """Say whether a JSON file holds one value, over several lines perhaps, rather than one on each line."""
    lines = [line for _, line in islice(_filled_lines(text), 2)]
    if len(lines) < 2:
        return text.lstrip().startswith("[")
    return not any(_is_object(line) for line in lines)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _bad_json(place: str, error: json.JSONDecodeError, key: str) -> Problem:
    what = f"this is not valid JSON: {error.msg} (column {error.colno})."
    return Problem(place, what, f"Mend the line. (The file is {key}.)")


def _row_faults(rows: Sequence[tuple[str, Any]], key: str) -> Iterator[Problem]:
    """Find rows that are no objects, and columns whose values are of several kinds."""
    columns: dict[str, list[tuple[str, Any]]] = {}
    for place, row in rows:
        if not isinstance(row, dict):
            cure = f'Write {{"column": value, ...}}. (The file is {key}.)'
            yield Problem(place, f"a row must be an object, but this is {kind_of(row)}.", cure)
            continue
        for name, value in row.items():
            columns.setdefault(name, []).append((place, value))
    for name, cells in columns.items():
        if found := mixed_kinds(value for _, value in cells):
            yield mixed_problem(cells[found[0]][0], name, cells[found[0]][1], found[1], found[2])


def mixed_problem(place: str, column: str, value: Any, kind: str, others: str) -> Problem:
    """Return the problem that a column's values are of several kinds."""
    shown = f"{json.dumps(value, ensure_ascii=False):.60}"
    what = f"column {column!r} is {kind} here ({shown}), but {others} in the rows above."
    return Problem(place, what, "Write all of its values in one way.")


# Parquet and Arrow


def _damage(path: Path, key: str) -> Iterator[Problem]:
    format_name = path.suffix.lower().strip(".").capitalize()
    try:
        for _ in _tables(path):
            pass
    except (pa.ArrowException, OSError) as error:
        message = str(error).strip().partition("\n")[0]
        cure = f"Write or download the file again. (It is {key}.)"
        yield Problem(str(path), f"this is no {format_name} file, or a damaged one: {message}", cure)


def _tables(path: Path) -> Iterator[pa.RecordBatch]:
    if extension(path) == ".parquet":
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches()
        return
    with pa.memory_map(str(path)) as file:
        try:
            reader = pa.ipc.open_stream(file)
        except pa.ArrowInvalid:
            reader = pa.ipc.open_file(file)
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            yield from reader


# all formats


def _places(path: Path) -> Iterator[str]:
    """Yield the place of each row of a file."""
    suffix = extension(path)
    if suffix in (".csv", ".tsv"):
        yield from (f"{path}:{line}" for line, _ in islice(_csv_rows(path), 1, None))
    elif suffix == ".txt":
        yield from _text_places(path, "line")
    elif suffix in (".parquet", ".arrow"):
        rows = sum(batch.num_rows for batch in _tables(path))
        yield from (f"{path} row {index}" for index in range(rows))
    else:
        text = read_text(path, "utf-8-sig")
        if _is_one_document(text):
            document = json.loads(text)
            rows = len(document) if isinstance(document, list) else len(next(iter(document.values()), ()))
            yield from (f"{path} row {index}" for index in range(rows))
        else:
            yield from (f"{path}:{number}" for number, _ in _filled_lines(text))


def _text_places(path: Path, sample_by: str) -> Iterator[str]:
    if sample_by == "document":
        yield str(path)
        return
    with open_text(path) as file:
        if sample_by == "line":
            yield from (f"{path}:{number}" for number, _ in enumerate(file, start=1))
            return
        number = 1
        for paragraph in file.read().split("\n\n"):
            if paragraph:
                yield f"{path}:{number}"
            number += paragraph.count("\n") + 2


def _differing_columns(paths: Sequence[Path], key: str) -> Iterator[Problem]:
    """Find the first file, or row of JSON, that has a column which the first one has not."""
    first: set[str] | None = None
    for place, columns in (pair for path in paths for pair in _columns(path)):
        if first is None:
            first, first_place = columns, place
        elif new := sorted(columns - first):
            what = f"there is a column {', '.join(map(repr, new))} that {first_place} does not have."
            yield Problem(place, what, f"All files of {key} must have the same columns: {', '.join(sorted(first))}.")
            return


def _columns(path: Path) -> Iterator[tuple[str, set[str]]]:
    """Yield where the columns of a file are named, and their names: once, or for each row of JSON lines."""
    suffix = extension(path)
    if suffix in (".csv", ".tsv"):
        yield from ((f"{path}:{line}", set(header)) for line, header in islice(_csv_rows(path), 1))
    elif suffix in (".parquet", ".arrow"):
        yield from ((str(path), set(batch.schema.names)) for batch in islice(_tables(path), 1))
    elif suffix != ".txt":
        text = read_text(path, "utf-8-sig")
        if not _is_one_document(text):
            yield from ((f"{path}:{number}", set(json.loads(line))) for number, line in _filled_lines(text))
