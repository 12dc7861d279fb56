"""Rows for prediction: read as a stream, checked before a model is loaded."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lit_hf.errors import InputError, Problem, nearest, raise_problems
from lit_hf.task import value_at

if TYPE_CHECKING:
    from lit_hf.task import Task

CHUNK = 10_000
DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ABSENT = object()
JSON_LINES = (".jsonl", ".ndjson", ".json")


class Line(NamedTuple):
    """A row, or what is wrong with it.

    Attributes:
        number: Number of the line in its file, from 1.
        row: The row by column.
        fault: What is wrong; None if nothing is.
    """

    number: int
    row: dict[str, Any]
    fault: str | None = None


def read(path: Path) -> Iterator[Line]:
    """Yield the rows of a file of JSON lines, CSV or TSV; blank lines are not rows.

    Raises:
        InputError: If the file cannot be read, is not UTF-8, or is of another format.
    """
    if path.suffix not in (*JSON_LINES, *DELIMITERS):
        known = ", ".join((*JSON_LINES, *DELIMITERS))
        raise InputError(Problem(str(path), f"{path.suffix or 'a file without ending'} is not read.", f"Give {known}."))
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line in _csv(file, DELIMITERS[path.suffix]) if path.suffix in DELIMITERS else _json_lines(file):
                number = line.number
                yield line
    except UnicodeDecodeError as error:
        cure = "Save it as UTF-8."
        raise InputError(
            Problem(str(path), f"the file is not UTF-8, after line {number}: {error.reason}.", cure)
        ) from error
    except csv.Error as error:
        raise InputError(Problem(f"{path}:{number + 1}", f"the line is not valid CSV: {error}.")) from error
    except OSError as error:
        raise InputError(Problem(str(path), f"the file cannot be read: {error.strerror}.")) from error


def check(lines: Iterable[Line], task: Task, name: str) -> set[str]:
    """Read all rows and find everything that is wrong with them.

    Args:
        lines: The rows.
        task: The task that is to predict them.
        name: Where they come from, for messages.

    Returns:
        The columns of all rows together.

    Raises:
        InputError: If there are no rows, or if rows lack a column or have no text in it; each kind of fault is told
            once, with the first lines that have it.
    """
    faults: dict[tuple[str, str], list[int]] = {}
    columns: set[str] = set()
    count = 0
    source = iter(lines)
    while chunk := list(islice(source, CHUNK)):
        count += len(chunk)
        columns = columns.union(*(line.row for line in chunk))
        for number, what, cure in _faults(chunk, task):
            faults.setdefault((what, cure), []).append(number)
    if not count:
        raise InputError(Problem(name, "there are no rows."))
    raise_problems(
        Problem(f"{name}:{min(numbers)}", f"{what}{_others(sorted(numbers))}", cure)
        for (what, cure), numbers in faults.items()
    )
    return columns


def _faults(chunk: list[Line], task: Task) -> Iterator[tuple[int, str, str]]:
    """Yield line number, fault and cure."""
    sound = []
    for line in chunk:
        if line.fault:
            yield line.number, line.fault, ""
        elif absent := [column for column in task.input_columns if value_at(line.row, column, _ABSENT) is _ABSENT]:
            for column in absent:
                yield line.number, f"the column {column!r} is missing.", nearest(column, line.row)
        elif torn := [column for column in task.input_columns if not _is_unicode(value_at(line.row, column))]:
            yield line.number, f"column {torn[0]!r}: the text is not valid Unicode (half of a surrogate pair).", ""
        else:
            sound.append(line)
    yield from _task_faults(sound, task)


def _task_faults(lines: list[Line], task: Task) -> Iterator[tuple[int, str, str]]:
    from datasets import Dataset
    from pyarrow.lib import ArrowException

    columns = [*task.input_columns, *task.optional_columns]
    # A column of several types is no column: the task is asked about the rows of each type by themselves.
    groups: dict[tuple[type, ...], list[Line]] = {}
    for line in lines:
        groups.setdefault(tuple(type(value_at(line.row, column)) for column in columns), []).append(line)
    for group in groups.values():
        try:
            rows = Dataset.from_dict({column: [value_at(line.row, column) for line in group] for column in columns})
        except (ArrowException, TypeError, OverflowError) as error:
            yield group[0].number, f"the values cannot be read as columns: {error}", ""
            continue
        for problem in task.check_inputs(rows):
            for index in problem.rows:
                yield group[index].number, f"column {problem.column!r}: {problem.what}", problem.cure


def _json_lines(file: Iterable[str]) -> Iterator[Line]:
    for number, text in enumerate(file, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield Line(number, {}, f"the line is not valid JSON ({getattr(error, 'msg', error)}).")
            continue
        fault = None if isinstance(row, dict) else f"the line is not a JSON object, but a {type(row).__name__}."
        yield Line(number, {} if fault else row, fault)


def _csv(file: Iterable[str], delimiter: str) -> Iterator[Line]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    header = next(reader, [])
    for fields in reader:
        if not fields:
            continue
        fault = None
        if len(fields) != len(header):
            fault = f"the line has {len(fields)} fields, the header has {len(header)}."
        yield Line(reader.line_num, {} if fault else dict(zip(header, fields, strict=True)), fault)


def _is_unicode(value: Any) -> bool:
    try:
        # not str(value): inside of a list that would hide half of a surrogate pair behind an escape
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _others(numbers: list[int]) -> str:
    """Say how many more lines have the same fault, and name two of them."""
    if len(numbers) == 1:
        return ""
    shown = ", ".join(map(str, numbers[1:3]))
    return f" ({len(numbers)} rows; next in line {shown}{' ...' if len(numbers) > 3 else ''})"
