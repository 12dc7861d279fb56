import pytest
import torch
from datasets import Dataset

from lit_hf.data.chat_templates import TemplateError
from lit_hf.data.pairs import PairCollator, PairColumns, PairOutput, Text, split
from tests import preferences

COLUMNS = PairColumns("prompt", "chosen", "rejected")
CONVERSATION = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def tokenizer():
    return preferences.tokenizer()


def conversation(*turns):
    return [{"role": role, "content": content} for role, content in turns]


def test_texts_are_split_as_they_are_and_conversations_at_their_last_turn(tokenizer):
    assert split("say it", "yes", tokenizer) == Text("say it", "yes", False)
    expected = Text("<user> say it <end> <assistant> ", "yes <end> ", True)
    assert split(None, CONVERSATION, tokenizer) == expected
    assert split(CONVERSATION[:1], CONVERSATION[1:], tokenizer) == expected


def test_a_template_that_changes_the_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }} {% for m in messages %}{{ m.content }} {% endfor %}"
    with pytest.raises(TemplateError, match="renders the prompt otherwise"):
        split(None, CONVERSATION, tokenizer)
    rows = Dataset.from_dict({"chosen": [CONVERSATION], "rejected": [CONVERSATION]})
    assert {fault.column for fault in PairColumns(None, "chosen", "rejected").check(rows, tokenizer)} == {
        "chosen",
        "rejected",
    }


def test_one_batch_holds_all_chosen_and_then_all_rejected_sequences(tokenizer):
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "chosen_length": 3, "prompt_length": 1},
        {"input_ids": [5, 6, 7, 8], "chosen_length": 1, "prompt_length": 1},
    ]
    tokenizer.padding_side = "left"
    batch = PairCollator(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [5, 0, 0], [8, 9, 0], [6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert batch["prompt_length"].tolist() == [1, 1]


def test_prompts_alone_are_padded_on_the_side_that_is_asked_for(tokenizer):
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [5]}]
    assert PairCollator(tokenizer, single_side="left")(rows)["input_ids"].tolist() == [[5, 6, 7], [0, 0, 5]]
    assert PairCollator(tokenizer, 4)(rows)["input_ids"].tolist() == [[5, 6, 7, 0], [5, 0, 0, 0]]


def test_faults_name_column_and_rows(tokenizer):
    rows = Dataset.from_dict(
        {
            "prompt": ["say", None, "say", "say"],
            "chosen": ["yes", "yes", "", "yes"],
            "rejected": ["no", "no", "no", None],
        }
    )
    found = {(fault.column, tuple(fault.rows)) for fault in COLUMNS.check(rows, tokenizer)}
    assert found == {("prompt", (1,)), ("chosen", (2,)), ("rejected", (3,))}


@pytest.mark.parametrize(
    ("chosen", "what"),
    [
        (conversation(("user", "say"), ("user", "it")), "the last turn is of 'user', not of 'assistant'"),
        (conversation(("user", "say"), ("assistant", "")), "the assistant turn is empty"),
        (conversation(("user", "say"), ("poet", "yes")), "the role 'poet' is not known"),
        (conversation(("user", "do"), ("assistant", "yes")), "the conversations differ before their last turn"),
    ],
)
def test_faults_of_conversations_are_found(tokenizer, chosen, what):
    rejected = conversation(("user", "say"), ("assistant", "no"))
    rows = Dataset.from_dict({"chosen": [chosen], "rejected": [rejected]})
    faults = list(PairColumns(None, "chosen", "rejected").check(rows, tokenizer))
    assert any(what in fault.what for fault in faults)


def test_conversations_need_a_chat_template(tokenizer):
    tokenizer.chat_template = None
    rows = Dataset.from_dict({"chosen": [CONVERSATION], "rejected": [CONVERSATION]})
    faults = list(PairColumns(None, "chosen", "rejected").check(rows, tokenizer))
    assert all("no chat template" in fault.what for fault in faults) and len(faults) == 2


def test_prompt_and_completions_are_of_one_kind(tokenizer):
    rows = Dataset.from_dict({"prompt": ["say"], "chosen": [CONVERSATION[1:]], "rejected": [CONVERSATION[1:]]})
    (chosen, rejected) = COLUMNS.check(rows, tokenizer)
    assert "the prompt is a text" in chosen.what and "task.prompt: null" in rejected.cure


def test_pairs_that_are_the_same_twice_are_counted(tokenizer, caplog):
    rows = Dataset.from_dict({"prompt": ["say"] * 3, "chosen": ["yes", "no", "no"], "rejected": ["no", "no", "no"]})
    assert list(COLUMNS.check(rows, tokenizer)) == []
    assert "2 pairs of 3 are twice the same text" in caplog.text


def test_logs_are_means_over_the_batch():
    output = PairOutput(torch.tensor(0.0), torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    assert {name: value.item() for name, value in output.logs.items()} == {
        "accuracy": 0.5,
        "margin": -1.0,
        "reward_chosen": 1.0,
        "reward_rejected": 2.0,
    }
