from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lit_hf.data.columns import check_columns, check_rows, place_problem
from lit_hf.data.sources import Source, Split, load_splits
from lit_hf.errors import Problem
from lit_hf.task import RowProblem
from tests.data.conftest import Sorting

Write = Callable[..., str]
GOOD = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def check(source: Source, task: Sorting | None = None, *names: str) -> list[Problem]:
    return list(check_columns(load_splits(source, names or ("train",)), task or Sorting()))


def test_rows_without_fault_pass(write_jsonl: Write) -> None:
    source = Source(train=write_jsonl("train.jsonl", GOOD), validation=write_jsonl("dev.jsonl", GOOD))

    assert check(source, None, "train", "validation") == []


def test_a_missing_column_is_told_with_the_nearest_first(write_jsonl: Write) -> None:
    path = write_jsonl("train.jsonl", [{"sentence": "a", "label": "x", "id": 1}])

    (problem,) = check(Source(train=path), Sorting(text="sentnce"))

    assert problem.where == "data.source.train"
    assert problem.what == f"the train split ({path}:1) has no column 'sentnce', which task.text names."
    assert problem.cure.startswith("Did you mean 'sentence'? There is: id, label, sentence.")


def test_all_missing_columns_of_all_splits_are_told(write_jsonl: Write) -> None:
    source = Source(train=write_jsonl("train.jsonl", [{"a": 1}]), validation=write_jsonl("dev.jsonl", [{"b": 1}]))

    assert len(check(source, None, "train", "validation")) == 4


def test_a_column_that_only_validation_lacks_is_told(write_jsonl: Write) -> None:
    other = [{"text": "a", "lable": "x"}]
    source = Source(train=write_jsonl("train.jsonl", GOOD), validation=write_jsonl("dev.jsonl", other))

    (problem,) = check(source, None, "train", "validation")

    assert problem.where == "data.source.validation"
    assert "has no column 'label', which task.label names; the train split has it." in problem.what
    assert "Did you mean 'lable'?" in problem.cure


def test_a_column_of_another_kind_in_validation_is_told(write_jsonl: Write) -> None:
    other = [{"text": "a", "label": 0}]
    source = Source(train=write_jsonl("train.jsonl", GOOD), validation=write_jsonl("dev.jsonl", other))

    (problem,) = check(source, None, "train", "validation")

    assert problem.where == f"{source.train}:1"
    what = "column 'label' holds numbers in the validation split, but text in the train split; here it is 'x'."
    assert problem.what == what


def test_the_same_numbers_as_text_in_validation_are_told(write_jsonl: Write) -> None:
    train, other = ([{"text": "a", "label": label}] for label in (0, "0"))
    source = Source(train=write_jsonl("train.jsonl", train), validation=write_jsonl("dev.jsonl", other))

    (problem,) = check(source, None, "train", "validation")

    assert problem.where == "data.source.validation"
    assert problem.what == "column 'label' holds text in the validation split, but numbers in the train split."


def test_an_empty_csv_field_that_makes_text_of_numbers_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\n")
    (tmp_path / "dev.csv").write_text("text,label\na,0\nb,1\nc,\n")
    source = Source(train=str(tmp_path / "train.csv"), validation=str(tmp_path / "dev.csv"))

    (problem,) = check(source, None, "train", "validation")

    assert problem.where == f"{tmp_path / 'dev.csv'}:4"
    assert problem.what.endswith("here it is ''.")


def test_ids_of_named_classes_are_like_plain_numbers() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    named = Dataset.from_dict({"text": ["a"], "label": [0]}, features=features)
    plain = Dataset.from_dict({"text": ["a"], "label": [0]})
    splits = {name: Split(rows, str, "key") for name, rows in {"train": named, "validation": plain}.items()}

    assert list(check_columns(splits, Sorting())) == []


def test_a_null_text_is_told_with_its_lines(write_jsonl: Write) -> None:
    rows = [{"text": None if row % 2 else "a", "label": "x"} for row in range(10)]
    path = write_jsonl("train.jsonl", rows)

    (problem,) = check(Source(train=path, validation_share=0))

    assert problem.where == f"{path}:2"
    also = f"Also {path}:4, {path}:6 and 2 more rows."
    assert problem.what == f"column 'text': the value is missing (null). {also}"


def test_a_null_label_is_told(write_jsonl: Write) -> None:
    path = write_jsonl("train.jsonl", [*GOOD, {"text": "c", "label": None}])

    (problem,) = check(Source(train=path, validation_share=0))

    assert problem.where == f"{path}:3"
    assert problem.what == "column 'label': the value is missing (null)."


def test_a_column_of_nulls_alone_is_told(write_jsonl: Write) -> None:
    path = write_jsonl("train.jsonl", [{"text": None, "label": "x"}] * 2)

    assert [problem.where for problem in check(Source(train=path, validation_share=0))] == [f"{path}:1"]


def test_a_null_inside_a_list_is_told(write_jsonl: Write) -> None:
    rows = [{"text": ["a", "b"], "label": "x"}, {"text": [], "label": "x"}, {"text": ["c", None], "label": "y"}]
    path = write_jsonl("train.jsonl", rows)

    assert [problem.where for problem in check(Source(train=path, validation_share=0))] == [f"{path}:3"]


@pytest.mark.parametrize(("chosen", "faults"), [([1, 0], 0), ([2, 0], 1)])
def test_a_null_in_a_row_that_is_not_chosen_does_not_matter(chosen: list[int], faults: int) -> None:
    rows = Dataset.from_dict({"text": ["a", "b", None], "label": ["x", "y", "x"]}).select(chosen)

    assert len(list(check_columns({"train": Split(rows, str, "key")}, Sorting()))) == faults


def test_a_misspelled_key_in_some_rows_is_told_with_the_key(write_jsonl: Write) -> None:
    rows = [*GOOD, {"txt": "c", "label": "x"}, {"text": None, "label": "x"}, {"text": "d", "labl": "y"}]
    path = write_jsonl("train.jsonl", rows)

    problems = check(Source(train=path, validation_share=0))

    assert [problem.where for problem in problems] == [f"{path}:3", f"{path}:4", f"{path}:5"]
    assert problems[0].what == "column 'text': the row has no such key, but 'txt': is it misspelled?"
    assert problems[1].what == "column 'text': the value is missing (null)."
    assert problems[2].what == "column 'label': the row has no such key, but 'labl': is it misspelled?"


def test_labels_that_are_numbers_here_and_text_there_are_told(write_jsonl: Write) -> None:
    path = write_jsonl("train.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": "pos"}])

    (problem,) = check(Source(train=path, validation_share=0))

    assert problem.where == f"{path}:2"
    assert problem.what == "column 'label' is text here (\"pos\"), but a number in the rows above."


def test_mixed_values_in_a_column_that_is_not_read_do_not_matter(write_jsonl: Write) -> None:
    rows = [{**row, "note": note} for row, note in zip(GOOD, (0, "n"), strict=True)]

    assert check(Source(train=write_jsonl("train.jsonl", rows), validation_share=0)) == []


def test_the_faults_that_a_task_finds_are_placed(write_jsonl: Write) -> None:
    path = write_jsonl("train.jsonl", [*GOOD, {"text": "", "label": "x"}])
    splits = load_splits(Source(train=path, validation_share=0), ["train"])

    (problem,) = check_rows(splits, Sorting())

    assert problem == Problem(f"{path}:3", "column 'text': the text is empty.", "Fill it in.")


@pytest.mark.parametrize(
    ("rows", "others"),
    [
        ([0], ""),
        ([0, 1], " Also row 1."),
        ([0, 1, 2], " Also row 1, row 2."),
        (range(9), " Also row 1, row 2 and 6 more rows."),
    ],
)
def test_the_first_places_and_the_number_of_rows_are_told(rows: list[int], others: str) -> None:
    split = Split(Dataset.from_dict({"text": ["a"] * 9}), lambda row: f"row {row}", "key")

    assert place_problem(split, RowProblem(rows, "text", "bad.")).what == f"column 'text': bad.{others}"


def test_a_missing_value_inside_of_an_object_is_told_with_those_there(write_jsonl: Write) -> None:
    path = write_jsonl("train.jsonl", [{"translation": {"en": "a", "de": "b"}, "label": "x"}])

    (problem,) = check(Source(train=path), Sorting(text="translation.fr"))

    assert "no column 'translation.fr'" in problem.what
    assert problem.cure.endswith("There is: label, translation, translation.de, translation.en.")
