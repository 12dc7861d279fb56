from __future__ import annotations

import json

import pytest

from lit_hf.errors import InputError
from lit_hf.inference.rows import check, read
from lit_hf.tasks import TextClassification, TokenClassification


def written(tmp_path, content: str | bytes, name: str = "rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def problems(path, task=None) -> list[tuple[str, str]]:
    with pytest.raises(InputError) as error:
        check(read(path), task or TextClassification(text="text"), path.name)
    return [(problem.where, problem.what) for problem in error.value.problems]


def test_json_lines_keep_their_values(tmp_path):
    rows = [{"text": "é한\u2028", "n": 12345678901234567890, "x": 0.1, "l": [None, True, {}]}, {"text": ""}]
    path = written(tmp_path, "\ufeff" + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [line.row for line in read(path)] == rows
    assert [line.number for line in read(path)] == [1, 3]


def test_csv_is_text_as_it_stands(tmp_path):
    path = written(tmp_path, 'text,id\n"two\nlines, ""quoted""",007\nNA,null\n', "rows.csv")
    assert [line.row for line in read(path)] == [
        {"text": 'two\nlines, "quoted"', "id": "007"},
        {"text": "NA", "id": "null"},
    ]
    assert [line.row for line in read(written(tmp_path, "a\tb\n1, 2\t3\n", "rows.tsv"))] == [{"a": "1, 2", "b": "3"}]


def test_check_returns_all_columns(tmp_path):
    path = written(tmp_path, '{"text": "a", "x": 1}\n{"y": 2, "text": "b"}\n')
    assert check(read(path), TextClassification(text="text"), "rows") == {"text", "x", "y"}


def test_all_faults_are_told_at_once_each_with_its_first_lines(tmp_path):
    lines = ['{"text": "fine"}', '{"text": ""}', '{"texts": "x"}', "{", '{"text": 5}', "[1]", '{"text": null}']
    path = written(tmp_path, "\n".join(lines + ['{"text": ""}'] * 3))
    found = dict(problems(path))
    assert found["rows.jsonl:2"] == "column 'text': the text is missing or empty. (5 rows; next in line 7, 8 ...)"
    assert found["rows.jsonl:3"] == "the column 'text' is missing."
    assert found["rows.jsonl:4"].startswith("the line is not valid JSON")
    assert found["rows.jsonl:5"] == "column 'text': this is no text: 5."
    assert found["rows.jsonl:6"] == "the line is not a JSON object, but a list."


def test_the_nearest_column_is_named(tmp_path):
    path = written(tmp_path, '{"sentense": "x", "id": 1}\n')
    with pytest.raises(InputError, match=r"Did you mean 'sentense'\? There is: id, sentense\."):
        check(read(path), TextClassification(text="sentence"), "rows")


def test_both_columns_of_a_pair_are_checked(tmp_path):
    path = written(tmp_path, '{"a": "x"}\n{"a": "x", "b": ""}\n{"a": "x", "b": "y"}\n')
    assert problems(path, TextClassification(text=["a", "b"])) == [
        ("rows.jsonl:1", "the column 'b' is missing."),
        ("rows.jsonl:2", "column 'b': the text is missing or empty."),
    ]


def test_labels_are_of_no_concern(tmp_path):
    path = written(tmp_path, '{"text": "x", "label": "unheard of"}\n')
    assert check(read(path), TextClassification(text="text", labels=["a", "b"]), "rows") == {"text", "label"}


def test_half_a_surrogate_pair_is_no_text(tmp_path):
    path = written(tmp_path, '{"text": "\\ud800"}\n')
    ((where, what),) = problems(path)
    assert where == "rows.jsonl:1"
    assert "surrogate" in what


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("rows.jsonl", "", "there are no rows"),
        ("rows.csv", "text,id\n", "there are no rows"),
        ("rows.csv", "text,id\na\n", "the line has 1 fields, the header has 2"),
        ("rows.csv", 'text\n"a', "not valid CSV"),
        ("rows.jsonl", '{"text": "a"}\n{"text": "\xff"}\n'.encode("latin-1"), "not UTF-8"),
        ("rows.parquet", "PAR1", ".parquet is not read"),
    ],
)
def test_files_that_cannot_be_used_are_told(tmp_path, name, content, message):
    path = written(tmp_path, content, name)
    with pytest.raises(InputError, match=message) as error:
        check(read(path), TextClassification(text="text"), str(path))
    assert name in str(error.value)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(read(tmp_path / "rows.jsonl"))


def test_half_a_surrogate_pair_is_found_in_a_list_too(tmp_path):
    path = written(tmp_path, '{"tokens": ["fine"]}\n{"tokens": ["fine", "\\ud800"]}\n')
    ((where, what),) = problems(path, TokenClassification(labels=["O"]))
    assert where == "rows.jsonl:2"
    assert "half of a surrogate pair" in what


def test_values_inside_of_objects_are_read(tmp_path):
    task = TextClassification(text="doc.text")
    rows = [{"doc": {"text": "good"}}, {"doc.text": "fine"}]
    path = written(tmp_path, "\n".join(map(json.dumps, rows)))
    assert check(read(path), task, path.name) == {"doc", "doc.text"}
    path = written(tmp_path, '{"doc": {"text": ""}}\n{"doc": {"txt": "a"}}\n{"doc": "a"}')
    assert [where for where, _ in problems(path, task)] == ["rows.jsonl:2", "rows.jsonl:1"]
