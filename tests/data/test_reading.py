from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from lit_hf.data.files import find_files
from lit_hf.data.reading import mixed_kinds
from lit_hf.errors import InputError, Problem

KEY = "data.source.train"


def faults(*paths: Path) -> list[Problem]:
    with pytest.raises(InputError) as caught:
        find_files([str(path) for path in paths], KEY).read()
    return list(caught.value.problems)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "line", "what"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b"\n{"text": "c"}\n', 2, "not valid JSON: Expecting ',' delimiter"),
        ("a.jsonl", '{"text": "a"\n{"text": "b"}\n{"text": "c"}\n', 1, "not valid JSON: Expecting ',' delimiter"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b', 3, "not valid JSON: Unterminated string"),
        ("a.jsonl", '{"text": "a"}\n["b"]\n', 2, "a row must be an object, but this is a list"),
        ("a.json", '[{"text": "a"},\n {"text": \n"b", c\n}]', 3, "not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9t\xe9"}\n', 2, "not UTF-8: byte 0xe9 at position 11"),
        ("a.csv", b"text,label\na,0\n\xe9t\xe9,1\n", 3, "not UTF-8: byte 0xe9 at position 1"),
        ("a.txt", b"a\nb\n\xff\n", 3, "not UTF-8: byte 0xff at position 1"),
        ("a.csv", "text,label\na,0\nb, but c,1\n", 3, "the row has 3 fields, but the header has 2: text, label."),
        ("a.csv", 'text,label\n"a\nb",0\nc\n', 4, "the row has 1 fields, but the header has 2: text, label."),
        ("a.csv", "text,label\na,0,x\nb,1,y\n", 2, "the row has 3 fields, but the header has 2: text, label."),
        ("a.tsv", "text\tlabel\na\t0\nb\n", 3, "the row has 1 fields, but the header has 2: text, label."),
        ("a.csv", 'text,label\na,0\n"b,1\nc,0\n', 3, "no CSV: unexpected end of data"),
    ],
)
def test_a_fault_in_a_line_is_told_with_file_line_and_key(
    tmp_path: Path, name: str, content: str | bytes, line: int, what: str
) -> None:
    path = write(tmp_path / name, content)

    problem = faults(path)[0]

    assert problem.where == f"{path}:{line}"
    assert what in problem.what
    assert KEY in problem.cure or "UTF-8" in problem.cure


def test_all_faults_are_told_at_once_but_not_endlessly(tmp_path: Path) -> None:
    two = write(tmp_path / "two.jsonl", '{"text": 1}\n{"text": \n{"text": 2}\n{text: 1}\n')
    many = write(tmp_path / "many.jsonl", "{\n" * 1000)

    assert [problem.where for problem in faults(two)] == [f"{two}:2", f"{two}:4"]
    assert len(faults(many)) <= 5


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("damage", ["no such file at all", "cut"])
def test_a_damaged_binary_file_is_told(tmp_path: Path, name: str, damage: str) -> None:
    table = pa.table({"text": [f"some text {row}" for row in range(1000)]})
    path = tmp_path / name
    if name == "a.parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    write(path, damage if damage != "cut" else path.read_bytes()[:-2000])
    sound = write(tmp_path / "other.txt", "x")

    (problem,) = faults(path)

    assert problem.where == str(path)
    assert f"this is no {name[2:].capitalize()} file, or a damaged one" in problem.what
    assert sound.exists()


def test_the_damaged_file_of_many_is_named(tmp_path: Path) -> None:
    for number in range(3):
        parquet.write_table(pa.table({"text": ["a"]}), tmp_path / f"{number}.parquet")
    broken = write(tmp_path / "1.parquet", b"PAR1 and nothing else")

    (problem,) = faults(*sorted(tmp_path.glob("*.parquet")))

    assert problem.where == str(broken)


def test_files_with_other_columns_are_told(tmp_path: Path) -> None:
    first = write(tmp_path / "0.csv", "text,label\na,1\n")
    other = write(tmp_path / "1.csv", "text,lable\nb,0\n")

    (problem,) = faults(first, other)

    assert problem.where == f"{other}:1"
    assert problem.what == f"there is a column 'lable' that {first}:1 does not have."
    assert "label, text" in problem.cure


def test_a_key_that_appears_late_in_a_long_file_is_told(tmp_path: Path) -> None:
    rows = [{"text": "x" * 1000, ("label" if row < 15_000 else "lable"): 1} for row in range(15_010)]
    path = write(tmp_path / "long.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    (problem,) = faults(path)

    assert problem.where == f"{path}:15001"
    assert "'lable'" in problem.what


def test_labels_that_turn_to_text_late_in_a_long_file_are_told(tmp_path: Path) -> None:
    rows = [{"text": "x" * 1000, "label": 1 if row < 15_000 else "pos"} for row in range(15_010)]
    path = write(tmp_path / "long.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    (problem,) = faults(path)

    assert problem.where == f"{path}:15001"
    assert problem.what == "column 'label' is text here (\"pos\"), but a number in the rows above."


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([1, 2.5, None, 3], None),
        ([None, 0, "pos"], (2, "text", "a number")),
        (["a", None, True], (2, "true or false", "text")),
        ([["a"], "b"], (1, "text", "a list")),
        ([], None),
    ],
)
def test_values_of_several_kinds_are_found(values: list, found: tuple | None) -> None:
    assert mixed_kinds(values) == found
