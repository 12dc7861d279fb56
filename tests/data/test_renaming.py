from __future__ import annotations

import pytest
from datasets import Dataset

from lit_hf.data.renaming import rename_columns
from lit_hf.errors import InputError

ROWS = Dataset.from_dict(
    {
        "review": ["good", "bad"],
        "stars": [5, 1],
        "text": ["kept", "nowhere"],
        "translation": [{"en": "dog", "more": {"de": "Hund"}}, {"en": "cat", "more": {"de": "Katze"}}],
    }
)


def renamed(columns: dict[str, str]) -> dict[str, list]:
    return rename_columns(ROWS, columns, "data.source.columns", "a.jsonl:1")[:]


def test_a_column_is_renamed_and_the_others_stay() -> None:
    assert renamed({"label": "stars"}) == {
        "review": ["good", "bad"],
        "text": ["kept", "nowhere"],
        "translation": ROWS["translation"][:],
        "label": [5, 1],
    }


def test_a_new_name_that_is_taken_is_taken_over() -> None:
    columns = renamed({"text": "review"})

    assert columns["text"] == ["good", "bad"]
    assert "review" not in columns


def test_names_may_be_swapped() -> None:
    columns = renamed({"text": "review", "review": "text"})

    assert (columns["text"], columns["review"]) == (["good", "bad"], ["kept", "nowhere"])


def test_a_column_may_have_two_names() -> None:
    columns = renamed({"premise": "review", "hypothesis": "review"})

    assert columns["premise"] == columns["hypothesis"] == ["good", "bad"]


def test_a_column_may_keep_its_name_beside_another() -> None:
    columns = renamed({"review": "review", "copy": "review"})

    assert columns["review"] == columns["copy"] == ["good", "bad"]


def test_a_dot_leads_into_a_column() -> None:
    columns = renamed({"source": "translation.en", "target": "translation.more.de", "more": "translation.more"})

    assert columns["source"] == ["dog", "cat"]
    assert columns["target"] == ["Hund", "Katze"]
    assert columns["more"] == [{"de": "Hund"}, {"de": "Katze"}]
    assert columns["translation"] == ROWS["translation"][:]


def test_all_columns_that_are_not_there_are_told() -> None:
    with pytest.raises(InputError) as caught:
        renamed({"text": "revew", "label": "translation.fr"})

    one, two = caught.value.problems
    assert one.where == "data.source.columns.text"
    assert one.what == "there is no column 'revew' (a.jsonl:1)."
    assert one.cure.startswith("Did you mean 'review'?")
    assert two.where == "data.source.columns.label"


def test_the_same_map_gives_the_same_fingerprint_and_another_gives_another() -> None:
    one, two, other = (
        rename_columns(ROWS, columns, "", "")._fingerprint
        for columns in ({"a": "review", "b": "text"}, {"a": "review", "b": "text"}, {"b": "review", "a": "text"})
    )

    assert one == two != other
