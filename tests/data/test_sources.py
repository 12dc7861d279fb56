from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from lit_hf.data.sources import Source, load_splits
from lit_hf.errors import InputError


def write_rows(path: Path, count: int, first: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps({"text": f"row {row}", "label": row % 2}) for row in range(first, first + count))
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(source: Source, *names: str) -> dict[str, list[str]]:
    return {name: split.rows["text"][:] for name, split in load_splits(source, names or ("train",)).items()}


def problems(source: Source, *names: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_splits(source, *([names] if names else []))
    return [f"{problem.where}: {problem.what} {problem.cure}" for problem in caught.value.problems]


def rows_of_mine() -> Iterator[dict]:
    yield {"text": "one", "label": 1}
    yield {"text": "two", "label": 0}


def not_yielding() -> list[dict]:
    return [{"text": "one"}]


def uneven() -> Iterator[dict]:
    yield {"text": "one", "label": 1}
    yield {"text": "two", "label": "pos"}


@pytest.fixture
def ten(tmp_path: Path) -> str:
    return write_rows(tmp_path / "train.jsonl", 10)


def test_validation_is_cut_off_where_there_is_none(ten: str) -> None:
    splits = texts(Source(train=ten, validation_share=0.3), "train", "validation")

    assert len(splits["train"]) == 7
    assert len(splits["validation"]) == 3
    assert sorted(splits["train"] + splits["validation"]) == sorted(f"row {row}" for row in range(10))


def test_the_same_rows_are_held_out_whichever_splits_are_asked_for(ten: str) -> None:
    both = texts(Source(train=ten), "train", "validation")

    assert texts(Source(train=ten), "train") == {"train": both["train"]}
    assert texts(Source(train=ten), "validation") == {"validation": both["validation"]}


def test_nothing_is_held_out_where_the_share_is_zero(ten: str) -> None:
    assert {
        name: len(rows) for name, rows in texts(Source(train=ten, validation_share=0), "train", "validation").items()
    } == {"train": 10}


def test_a_validation_split_of_its_own_is_used_whole(ten: str, tmp_path: Path) -> None:
    source = Source(train=ten, validation=write_rows(tmp_path / "other.jsonl", 3, first=100))

    assert texts(source, "train", "validation") == {
        "train": [f"row {row}" for row in range(10)],
        "validation": ["row 100", "row 101", "row 102"],
    }


def test_places_are_right_after_cut_and_limit(ten: str) -> None:
    for split in load_splits(Source(train=ten, validation_share=0.4, limit=3)).values():
        assert len(split.rows) == 3
        for row, text in enumerate(split.rows["text"]):
            assert split.place(row) == f"{ten}:{int(text.removeprefix('row ')) + 1}"


def test_limit_takes_the_same_rows_each_time_and_not_just_the_first(tmp_path: Path) -> None:
    source = Source(train=write_rows(tmp_path / "many.jsonl", 100), limit={"train": 20}, validation_share=0)

    assert texts(source) == texts(source)
    assert texts(source)["train"] != [f"row {row}" for row in range(20)]


def test_limit_may_be_for_one_split(ten: str) -> None:
    sizes = texts(Source(train=ten, validation_share=0.5, limit={"validation": 2}), "train", "validation")

    assert {name: len(rows) for name, rows in sizes.items()} == {"train": 5, "validation": 2}


def test_a_folder_that_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["a", "b"]})
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows, "dev": rows.select([1])}).save_to_disk(tmp_path / "two")

    assert texts(Source(path=str(tmp_path / "one"), validation_share=0)) == {"train": ["a", "b"]}
    source = Source(path=str(tmp_path / "two"), validation="dev")
    assert texts(source, "train", "validation") == {"train": ["a", "b"], "validation": ["b"]}
    assert load_splits(source)["validation"].place(0) == f"{tmp_path / 'two'} dev row 0"


@pytest.mark.parametrize("name", ["validation", "valid", "val", "dev", "dev-00000-of-00001"])
def test_a_folder_of_files_named_after_splits_is_read(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "train.jsonl", 2)
    write_rows(tmp_path / f"{name}.jsonl", 1, first=5)
    write_rows(tmp_path / "trainers.jsonl", 1, first=9)

    assert texts(Source(path=str(tmp_path)), "train", "validation") == {
        "train": ["row 0", "row 1"],
        "validation": ["row 5"],
    }


def test_a_generator_makes_the_training_rows() -> None:
    splits = load_splits(Source(generator=rows_of_mine, validation_share=0))

    assert splits["train"].rows[:] == {"text": ["one", "two"], "label": [1, 0]}
    assert splits["train"].place(1) == f"{__name__}.rows_of_mine row 1"


def test_a_generator_that_yields_the_same_rows_gives_the_same_fingerprint() -> None:
    one, two = (load_splits(Source(generator=rows_of_mine))["train"].rows for _ in range(2))

    assert one._fingerprint == two._fingerprint


def test_the_fingerprint_follows_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", 4)
    before = load_splits(Source(train=path))["train"].rows._fingerprint
    assert load_splits(Source(train=path))["train"].rows._fingerprint == before

    write_rows(tmp_path / "train.jsonl", 5)

    assert load_splits(Source(train=path))["train"].rows._fingerprint != before


def test_a_plain_function_is_no_generator() -> None:
    (problem,) = problems(Source(generator=not_yielding))

    assert problem == "data.source.generator: not_yielding is no generator function. It must yield rows, as dicts."


def test_rows_of_a_generator_must_fit_together() -> None:
    (problem,) = problems(Source(generator=uneven))

    assert problem.startswith(f"data.source.generator: {__name__}.uneven yields rows that do not fit together:")
    assert "'pos'" in problem


@pytest.mark.parametrize(
    ("settings", "where", "cure"),
    [
        ({}, "data.source", "data.source.train"),
        ({"generator": rows_of_mine, "train": "rows.jsonl"}, "data.source.train", "Leave one out."),
        ({"train": "rows.jsonl", "name": "sst2"}, "data.source.name", "Leave it out."),
        ({"generator": rows_of_mine, "validation_share": 1.0}, "data.source.validation_share", "below 1"),
        ({"generator": rows_of_mine, "limit": 0}, "data.source.limit", "at least 1"),
        ({"generator": rows_of_mine, "limit": {"valid": 3}}, "data.source.limit", "Did you mean 'validation'?"),
    ],
)
def test_settings_that_do_not_fit_are_told_with_their_key(settings: dict, where: str, cure: str) -> None:
    (problem,) = problems(Source(**settings))

    assert problem.startswith(f"{where}: ")
    assert cure in problem


def test_all_settings_that_do_not_fit_are_told_at_once() -> None:
    assert len(problems(Source(validation_share=-1, limit=-1))) == 3


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_split_without_rows_is_an_error(tmp_path: Path, name: str) -> None:
    files = {split: write_rows(tmp_path / f"{split}.csv", 1) for split in ("train", "validation", "test")}
    for path in files.values():
        Path(path).write_text("text,label\na,1\n", encoding="utf-8")
    Path(files[name]).write_text("text,label\n", encoding="utf-8")

    (problem,) = problems(Source(**files))

    assert problem.startswith(f"{files[name]}: ")
    assert f"data.source.{name}" in problem


def test_faults_of_several_splits_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"\n', encoding="utf-8")
    (tmp_path / "test.csv").write_text("text,label\na,1\nb\n", encoding="utf-8")
    source = Source(train=str(tmp_path / "train.jsonl"), validation="missing.jsonl", test=str(tmp_path / "test.csv"))

    found = problems(source)

    assert [problem.split(": ")[0] for problem in found] == [
        f"{tmp_path / 'test.csv'}:3",
        "data.source.validation",
        f"{tmp_path / 'train.jsonl'}:2",
    ]


def test_a_split_that_the_source_does_not_have_is_told_with_the_nearest(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 2)
    write_rows(tmp_path / "dev.jsonl", 2)

    (problem,) = problems(Source(path=str(tmp_path), validation="validaton"), "validation")

    assert problem.startswith(f"data.source.validation: {tmp_path} has no split 'validaton'.")
    assert "Did you mean 'validation'?" in problem


def test_several_names_of_one_split_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", 2)

    (problem,) = problems(Source(path=str(tmp_path), train=["train", "dev"]))

    assert problem.startswith("data.source.train: ")


def test_a_file_is_no_folder(ten: str) -> None:
    assert problems(Source(path=ten)) == [f"data.source.path: {ten} is a file. Name it as data.source.train: {ten}."]


def test_a_folder_that_is_not_there_is_no_id(tmp_path: Path) -> None:
    (problem,) = problems(Source(path=str(tmp_path / "nowhere")))

    assert problem.startswith(f"data.source.path: there is no folder {tmp_path / 'nowhere'}")


@pytest.fixture
def saved(tmp_path: Path) -> str:
    splits = {"train": [f"t{row}" for row in range(20)], "dev": ["d0", "d1"]}
    DatasetDict({name: Dataset.from_dict({"text": texts}) for name, texts in splits.items()}).save_to_disk(
        tmp_path / "saved"
    )
    return str(tmp_path / "saved")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("train[:10%]", ["t0", "t1"]),
        ("train[-2:]", ["t18", "t19"]),
        ("train[3:5]+dev", ["t3", "t4", "d0", "d1"]),
        ("dev[1:] + train[:1]", ["d1", "t0"]),
    ],
)
def test_a_part_of_a_split_is_what_datasets_takes(saved: str, part: str, expected: list[str]) -> None:
    split = load_splits(Source(path=saved, train=part, validation_share=0), ["train"])["train"]

    assert split.rows["text"][:] == expected
    names = {"t": "train", "d": "dev"}
    assert [split.place(row) for row in range(len(expected))] == [
        f"{saved} {names[text[0]]} row {text[1:]}" for text in expected
    ]


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ("train[:10", "has no split 'train[:10'"),
        ("train[:10foo]", "'train[:10foo]' is no part of a split"),
        ("trian[:5]", "has no split 'trian'"),
        ("train+", "'train+' is no part of a split"),
        ("train[20:]", "the train split has no rows"),
    ],
)
def test_a_part_that_cannot_be_taken_is_told(saved: str, part: str, what: str) -> None:
    (problem,) = problems(Source(path=saved, train=part))

    assert problem.startswith("data.source.")
    assert what in problem


def test_columns_are_renamed_before_rows_are_cut_off_and_limited(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", 20)

    splits = load_splits(Source(train=path, columns={"sentence": "text"}, limit=3), ("train", "validation"))

    for split in splits.values():
        assert set(split.rows.column_names) == {"sentence", "label"}
        for row, text in enumerate(split.rows["sentence"]):
            assert split.place(row) == f"{path}:{int(text.removeprefix('row ')) + 1}"


def test_keys_of_problems_follow_the_key_of_the_source(tmp_path: Path) -> None:
    for source in (
        Source(),
        Source(path=str(tmp_path)),
        Source(path=str(tmp_path / "nowhere")),
        Source(train="nowhere.jsonl"),
        Source(train=str(tmp_path)),
        Source(generator=uneven),
        Source(generator=not_yielding, validation_share=2, limit=0, weight=0),
        Source(path="org/rows", name="x"),
    ):
        with pytest.raises(InputError) as caught:
            load_splits(source, key="data.source[3]")
        for problem in caught.value.problems:
            assert problem.where.startswith("data.source[3]")
            assert "data.source." not in str(problem)
