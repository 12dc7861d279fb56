from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from lit_hf.data.files import find_files
from lit_hf.errors import InputError

ROWS = {"text": ["a", "b"], "label": [0, 1]}
CONTENTS = {
    "rows.jsonl": b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n',
    "rows.JSONL": b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n',
    "rows.json": b'[{"text": "a", "label": 0},\n {"text": "b", "label": 1}]',
    "rows.csv": b"text,label\na,0\nb,1\n",
    "with_bom.csv": b"\xef\xbb\xbftext,label\r\na,0\r\nb,1\r\n",
    "rows.tsv": b"text\tlabel\na\t0\nb\t1\n",
    "brackets[1].csv": b"text,label\na,0\nb,1\n",
}
PLACES = {
    "rows.jsonl": ":2",
    "rows.JSONL": ":2",
    "rows.json": " row 1",
    "rows.csv": ":3",
    "with_bom.csv": ":3",
    "rows.tsv": ":3",
    "brackets[1].csv": ":3",
}


def problem(*patterns: str) -> str:
    with pytest.raises(InputError) as caught:
        find_files(list(patterns), "data.source.train").read()
    return str(caught.value)


@pytest.mark.parametrize("name", CONTENTS)
def test_every_text_format_gives_the_same_rows_and_their_places(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(CONTENTS[name])

    files = find_files(str(path), "data.source.train")

    assert files.read()[:] == ROWS
    assert files.place(1) == f"{path}{PLACES[name]}"


def test_parquet_and_arrow_give_the_same_rows_and_their_places(tmp_path: Path) -> None:
    Dataset.from_dict(ROWS).to_parquet(tmp_path / "rows.parquet")
    table = pa.table(ROWS)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)

    for name in ("rows.parquet", "stream.arrow", "file.arrow"):
        files = find_files(str(tmp_path / name), "data.source.train")
        assert files.read()[:] == ROWS
        assert files.place(1) == f"{tmp_path / name} row 1"


def test_a_text_file_gives_its_lines(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("one\n\ntwo\n", encoding="utf-8")

    files = find_files(str(tmp_path / "poem.txt"), "data.source.train")

    assert files.read()["text"][:] == ["one", "", "two"]
    assert files.place(2) == f"{tmp_path / 'poem.txt'}:3"


def test_a_row_of_a_text_file_can_be_a_paragraph_or_the_whole_document(tmp_path):
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    paths[0].write_text("one\nmore\n\ntwo\n", encoding="utf-8")
    paths[1].write_text("three\n\n\n\nfour", encoding="utf-8")

    paragraphs = find_files(str(tmp_path / "*.txt"), "data.source.train", "paragraph")
    documents = find_files(str(tmp_path / "*.txt"), "data.source.train", "document")

    assert paragraphs.read()["text"][:] == ["one\nmore", "two\n", "three", "four"]
    assert [paragraphs.place(row) for row in range(4)] == [
        f"{paths[0]}:1",
        f"{paths[0]}:4",
        f"{paths[1]}:1",
        f"{paths[1]}:5",
    ]
    assert documents.read()["text"][:] == [path.read_text() for path in paths]
    assert [documents.place(row) for row in range(2)] == list(map(str, paths))


def test_a_pattern_names_many_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        (tmp_path / f"part-{number}.jsonl").write_text(f'{{"text": "{number}"}}\n\n{{"text": "{number}b"}}\n')

    files = find_files(str(tmp_path / "part-*.jsonl"), "data.source.train")

    assert files.read()["text"][:] == ["0", "0b", "1", "1b", "2", "2b"]
    assert files.place(3) == f"{tmp_path / 'part-1.jsonl'}:3"


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(CONTENTS["rows.jsonl"])

    assert len(find_files([str(path), str(tmp_path / "*.jsonl")], "data.source.train").read()) == 2


def test_a_path_is_relative_to_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_bytes(CONTENTS["rows.jsonl"])
    monkeypatch.chdir(tmp_path)

    files = find_files("rows.jsonl", "data.source.train")

    assert files.read()[:] == ROWS
    assert files.place(0) == "rows.jsonl:1"


def test_na_and_null_stay_text_in_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\nNA,0\nnull,1\n"",0\n,1\nNaN,0\nNone,1\n', encoding="utf-8")

    rows = find_files(str(path), "data.source.train").read()

    assert rows["text"][:] == ["NA", "null", "", "", "NaN", "None"]
    assert rows["label"][:] == [0, 1, 0, 1, 0, 1]


def test_a_quoted_field_may_run_over_lines_and_the_places_follow(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,label\n"one\ntwo",0\n\nthree,1\n', encoding="utf-8")

    files = find_files(str(path), "data.source.train")

    assert files.read()["text"][:] == ["one\ntwo", "three"]
    assert [files.place(0), files.place(1)] == [f"{path}:2", f"{path}:5"]


def test_a_file_that_is_not_there_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()

    assert problem(str(tmp_path / "tran.jsonl")).endswith(f"Did you mean {tmp_path / 'train.jsonl'}?")


def test_what_names_no_file_is_told(tmp_path: Path) -> None:
    text = problem(str(tmp_path / "*.jsonl"), str(tmp_path), str(tmp_path / "no" / "rows.jsonl"))

    assert "3 problems" in text
    assert f"no file matches '{tmp_path}/*.jsonl'" in text
    assert f"{tmp_path} is a folder" in text
    assert f"there is no file {tmp_path}/no/rows.jsonl, nor its folder" in text


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv"):
        (tmp_path / name).write_bytes(CONTENTS[name])

    assert "several formats" in problem(str(tmp_path / "rows.*"))


def test_an_unknown_extension_is_told_with_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").touch()

    assert "Known are .json, .jsonl" in problem(str(tmp_path / "rows.xlsx"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl", b"", "rows.jsonl: the file is empty."),
        ("rows.csv", b"", "rows.csv: the file is empty."),
        ("rows.parquet", b"", "rows.parquet: the file is empty."),
        ("rows.csv", b"text,label\n", "rows.csv: the file has a header and no rows."),
        ("rows.jsonl", b" \n\n", "rows.jsonl: the file has no rows."),
        ("rows.json", b"[]", "rows.json: the file has no rows."),
    ],
)
def test_a_file_without_rows_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    assert message in problem(str(tmp_path / name))


def test_a_parquet_file_without_rows_is_told(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")

    assert "rows.parquet: the file has no rows." in problem(str(tmp_path / "rows.parquet"))
