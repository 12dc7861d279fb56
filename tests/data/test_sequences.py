from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from lit_hf.data.sequences import Piece, Row, count_trained, read_batch
from lit_hf.task import IGNORED
from lit_hf.tasks import Chat, Embedding, MultipleChoice, Preference, Seq2Seq, TextClassification, TokenClassification
from tests.preferences import tokenizer

# by id: 0 <pad>, 1 <unk>, 2 <s>, 3 </s>, 4 to 7 roles, 8 day, 9 night, 10 me, 11 you, 12 it, 13 say, 14 do


def bound(task, labels=None):
    task.tokenizer, task.labels = tokenizer(), labels
    return task


def rows_of(task, features):
    return list(read_batch(task.collator(training=True)(features), features, task))


def test_neighbours_of_one_state_are_one_piece() -> None:
    task = bound(Chat(prompt="prompt", completion="completion"))
    features = [
        {"input_ids": [8, 9, 10, 11], "labels": [IGNORED, IGNORED, 10, 11]},
        {"input_ids": [8, 9], "labels": [IGNORED, 9]},
    ]
    first, second = rows_of(task, features)
    assert first == Row({"input_ids": [Piece("day night", "seen", "", 2), Piece(" me you", "trained", "", 2)]}, {})
    assert second.sequences["input_ids"] == [
        Piece("day", "seen", "", 1),
        Piece(" night", "trained", "", 1),
        Piece("<pad>", "padding", "", 2),
    ]


def test_a_token_that_is_to_become_another_one_bears_it_as_its_tag() -> None:
    task = bound(Chat(prompt="prompt", completion="completion"))
    batch = {"input_ids": torch.tensor([[8, 1, 1]]), "labels": torch.tensor([[IGNORED, 9, 10]])}
    (row,) = read_batch(batch, [{"input_ids": [8, 1, 1]}], task)
    assert [(piece.state, piece.tag, piece.tokens) for piece in row.sequences["input_ids"]] == [
        ("seen", "", 1),
        ("trained", "night", 1),
        ("trained", "me", 1),
    ]


def test_tags_are_named_each_at_its_token() -> None:
    task = bound(TokenClassification("tokens", "tags"), ["O", "B-X"])
    row = {"input_ids": [8, 9, 10], "labels": [IGNORED, 1, 1], "word_starts": [IGNORED, 0, 1]}
    (found,) = rows_of(task, [row])
    assert [(piece.text, piece.tag) for piece in found.sequences["input_ids"]] == [
        ("day", ""),
        (" night", "B-X"),
        (" me", "B-X"),
    ]


@pytest.mark.parametrize(
    ("label", "shown"), [(1, "good (1)"), (7, 7), ([0.0, 1.0, 1.0], "good, fine"), ([0.0, 0.0, 0.0], "none")]
)
def test_labels_of_rows_are_values_by_their_names(label, shown) -> None:
    task = bound(TextClassification("text"), ["bad", "good", "fine"])
    (row,) = rows_of(task, [{"input_ids": [8, 9], "labels": label}])
    assert row.values == {"labels": shown}


def test_both_sides_of_a_pair_are_trained_after_the_prompt() -> None:
    task = bound(Preference())
    pair = {"input_ids": [8, 13, 12, 8, 14], "chosen_length": 3, "prompt_length": 1}
    (row,) = rows_of(task, [pair])
    assert row.sequences == {
        "chosen_input_ids": [Piece("day", "seen", "", 1), Piece(" say it", "trained", "", 2)],
        "rejected_input_ids": [
            Piece("day", "seen", "", 1),
            Piece(" do", "trained", "", 1),
            Piece("<pad>", "padding", "", 1),
        ],
    }


def test_choices_are_sequences_of_their_own() -> None:
    task = bound(MultipleChoice())
    row = {"input_ids": [[8, 9], [8, 10]], "attention_mask": [[1, 1], [1, 1]], "labels": 1}
    (found,) = rows_of(task, [row])
    assert {name: pieces[0].text for name, pieces in found.sequences.items()} == {
        "input_ids[0]": "day night",
        "input_ids[1]": "day me",
    }
    assert found.values == {"labels": 1}


def test_a_decoder_s_labels_are_a_text_of_their_own() -> None:
    task = bound(Seq2Seq("source", "target"))
    row = {"input_ids": [8, 9], "attention_mask": [1, 1], "labels": [10, 3]}
    (found,) = rows_of(task, [row])
    assert found.sequences["input_ids"] == [Piece("day night", "seen", "", 2)]
    assert [(piece.state, piece.tokens) for piece in found.sequences["labels"]] == [("trained", 2)]


def test_rows_are_shown_as_they_are_where_a_batch_has_others() -> None:
    task = bound(Embedding())
    row = {"input_ids": [8, 9], "positive_input_ids": [10]}
    (found,) = rows_of(task, [{**row, "attention_mask": [1, 1], "positive_attention_mask": [1]}])
    assert {name: pieces[0].text for name, pieces in found.sequences.items()} == {
        "input_ids": "day night",
        "positive_input_ids": "me",
    }


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"input_ids": [[8, 9], [10]], "labels": [[IGNORED, 9], [10]]}, (2, 3)),
        ({"input_ids": [[8, 9], [10]], "labels": [0, 1]}, None),
        ({"input_ids": [[8, 9], [10]], "labels": [[0.0, 1.0], [1.0]]}, None),
        ({"input_ids": [[8, 9], [10]], "labels": [[0], [1]]}, None),
        ({"input_ids": [[8, 9], [10]]}, None),
    ],
)
def test_trained_tokens_are_counted_where_labels_are_of_tokens(columns, expected) -> None:
    assert count_trained(Dataset.from_dict(columns), bound(Chat(prompt="p", completion="c"))) == expected


def test_a_decoder_s_labels_are_not_those_of_the_input() -> None:
    rows = Dataset.from_dict({"input_ids": [[8, 9]], "labels": [[9, 3]]})
    assert count_trained(rows, bound(Seq2Seq("source", "target"))) is None
