from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from lit_hf.data.alignment import align
from lit_hf.data.sources import Split


def parts(*columns: tuple[list, object]) -> list[Split]:
    """Make a part of each list of values and its feature."""
    made = []
    for index, (values, feature) in enumerate(columns):
        features = Features({"id": Value("int64"), "label": feature})
        rows = Dataset.from_dict({"id": list(range(len(values))), "label": values}, features)
        made.append(Split(rows, lambda row, file=index: f"{file}.jsonl:{row + 1}", f"data.source[{index}].train"))
    return made


def aligned(*columns: tuple[list, object]) -> tuple[list[list], object]:
    made = parts(*columns)
    assert list(align(made, "label")) == []
    features = [part.rows.features["label"] for part in made]
    assert all(feature == features[0] for feature in features)
    assert all(part.rows.column_names == ["id", "label"] for part in made)
    return [part.rows["label"][:] for part in made], features[0]


def problem(*columns: tuple[list, object]) -> str:
    (found,) = align(parts(*columns), "label")
    return f"{found.where}: {found.what}"


AB, BA = ClassLabel(names=["a", "b"]), ClassLabel(names=["b", "a"])


def test_numbers_of_several_widths_become_the_wider_ones() -> None:
    assert aligned(([1], Value("int32")), ([2], Value("int64"))) == ([[1], [2]], Value("int64"))
    assert aligned(([1], Value("int64")), ([0.5], Value("float32"))) == ([[1.0], [0.5]], Value("float64"))


def test_a_column_without_values_becomes_that_of_the_others() -> None:
    assert aligned(([None], Value("null")), (["a"], Value("string"))) == ([[None], ["a"]], Value("string"))


def test_objects_get_the_keys_of_all() -> None:
    one, two = {"role": Value("string")}, {"role": Value("string"), "name": Value("string")}

    values, _ = aligned(([[{"role": "u"}]], List(one)), ([[{"role": "u", "name": "x"}]], List(two)))

    assert values == [[[{"role": "u", "name": None}]], [[{"role": "u", "name": "x"}]]]


def test_labels_in_another_order_are_numbered_as_in_the_first_part() -> None:
    assert aligned(([0, 1], AB), ([0, 1, None, -1], BA)) == ([[0, 1], [1, 0, None, -1]], AB)


def test_whole_numbers_beside_named_labels_are_ids() -> None:
    assert aligned(([1, -1], Value("int32")), ([0, 1], AB)) == ([[1, -1], [0, 1]], AB)
    assert aligned(([[1]], List(Value("int64"))), ([[0]], List(AB))) == ([[[1]], [[0]]], List(AB))


def test_a_number_that_is_no_id_is_told_with_its_line() -> None:
    assert problem(([0, 1], AB), ([0, 2], Value("int64"))) == (
        "1.jsonl:2: column 'label': 2 is no id of the 2 labels of data.source[0].train: a, b."
    )


def test_labels_with_other_names_are_told_with_both_sources() -> None:
    assert problem(([0], AB), ([0], ClassLabel(names=["a", "c"]))) == (
        "data.source[1].train: column 'label' has the labels a, c, but in data.source[0].train a, b."
    )


def test_lists_of_labels_in_another_order_are_told() -> None:
    assert "has the labels b, a, but" in problem(([[0]], List(AB)), ([[0]], List(BA)))


@pytest.mark.parametrize("first", [Value("int64"), AB])
def test_text_beside_numbers_is_told_with_values_and_lines_of_both(first: object) -> None:
    assert problem(([0], first), ([None, "good"], Value("string"))) == (
        "data.source[1].train: column 'label' holds text (1.jsonl:2: 'good'), "
        "but in data.source[0].train numbers (0.jsonl:1: 0)."
    )


def test_every_part_that_does_not_fit_is_told() -> None:
    made = parts(([0], Value("int64")), (["a"], Value("string")), ([[1]], List(Value("int64"))))

    assert [found.where for found in align(made, "label")] == ["data.source[1].train", "data.source[2].train"]
