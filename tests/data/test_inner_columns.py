from __future__ import annotations

from collections.abc import Callable

from datasets import Dataset

from lit_hf.data.inner_columns import select_column, with_inner_columns
from lit_hf.data.sources import Source, load_splits


def test_values_inside_of_objects_are_columns(write_jsonl: Callable[..., str]) -> None:
    rows = [{"translation": {"en": "a", "de": "b"}, "meta": {"n": 1}}, {"translation": None, "meta": {"n": 2}}]
    source = Source(train=write_jsonl("train.jsonl", rows), validation_share=0)
    read = load_splits(source, ("train",))["train"].rows.select([1, 0])

    inner = with_inner_columns(read, ["translation.en", "meta"])

    assert inner["translation.en"][:] == [None, "a"]
    assert inner["meta"][:] == [{"n": 2}, {"n": 1}]
    assert with_inner_columns(read, ["meta"]) is read
    assert with_inner_columns(read, ["translation.en"])._fingerprint != read._fingerprint


def test_a_column_with_a_dot_in_its_name_is_itself() -> None:
    rows = Dataset.from_dict({"a.b": [1], "a": [{"b": 2}]})

    assert with_inner_columns(rows, ["a.b"]) is rows


def test_objects_are_opened_no_deeper_than_is_wanted() -> None:
    rows = Dataset.from_dict({"a": [{"b": {"c": 1}, "d": 2}]})

    assert with_inner_columns(rows, ["a.d"])[0] == {"a.b": {"c": 1}, "a.d": 2}
    assert with_inner_columns(rows, ["a.b.c", "a.d"])[0] == {"a.b.c": 1, "a.d": 2}


def test_one_column_is_found_wherever_it_is() -> None:
    rows = Dataset.from_dict({"a": [{"b": {"c": 1}, "d": 2}], "x.y": [3]})

    for name, value in {"a": {"b": {"c": 1}, "d": 2}, "a.b": {"c": 1}, "a.b.c": 1, "a.d": 2, "x.y": 3}.items():
        assert select_column(rows, name)[0] == {name: value}  # type: ignore[index]
    for name in "b", "a.x", "x", "a.b.c.d":
        assert select_column(rows, name) is None
