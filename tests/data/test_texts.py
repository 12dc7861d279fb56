from __future__ import annotations

import pytest

from lit_hf.data.texts import document_problems, is_blank, text_problems


def test_missing_and_blank_text_and_what_is_no_text_is_named_by_row():
    other, blank = text_problems(["good", "", None, " \n", 3], "text")
    assert (other.rows, other.what) == ([4], "this is no text: 3.")
    assert (blank.rows, blank.column) == ([1, 2, 3], "text")
    assert (blank.what, blank.cure) == ("the text is missing or empty.", "Fill it in or remove the row.")


def test_where_text_may_be_blank_only_a_missing_one_is_told():
    (missing,) = text_problems(["good", "", None], "text", may_be_blank=True)
    assert missing.rows == [2]


@pytest.mark.parametrize(("value", "blank"), [("", True), (" \n\t", True), ("a", False), (None, False), (0, False)])
def test_blank_is_text_of_white_space(value, blank):
    assert is_blank(value) is blank


def test_blank_documents_are_a_fault_only_where_there_is_nothing_else():
    assert list(document_problems(["good", "", " "], "text")) == []
    (missing,) = document_problems(["good", None, ""], "text")
    assert missing.rows == [1]
    (empty,) = document_problems(["", " "], "text")
    assert list(empty.rows) == [0, 1]
