import logging

import pytest
import torch

from lit_hf.data.sources import Source
from lit_hf.errors import InputError
from lit_hf.planning.workload import is_causal, read_workload
from lit_hf.tasks import (
    CausalLM,
    Chat,
    Embedding,
    MaskedLM,
    MultipleChoice,
    Preference,
    QuestionAnswering,
    RewardModel,
    Seq2Seq,
    TextClassification,
    TokenClassification,
)
from tests.data.conftest import Sorting

ROWS, LENGTH = 3, 16


def test_a_batch_and_its_tokens_are_those_of_the_data(planned):
    run = planned()
    work = read_workload(run, with_data=True)
    lengths = [len(ids) for ids in run.data.encoded["train"]["input_ids"]]
    batches = -(-len(lengths) // 4)
    assert (work.batches, work.rows_in_all, work.notes) == (batches, 40, ())
    assert (work.rows, work.length) == (4, 32)
    assert work.tokens * batches * (1 - work.padding) == pytest.approx(sum(lengths))
    assert work.trained_tokens * batches == pytest.approx(sum(lengths) - len(lengths))  # nothing is before the first
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    assert work.attended * batches * (1 - work.padding) == pytest.approx(pairs)
    assert work.batch(2)["input_ids"].shape == (2, 32)


def test_the_largest_batch_of_an_epoch_is_the_one_that_is_planned(planned):
    run = planned(CausalLM("text"), data={"packing": True, "batch_tokens": 200})
    work = read_workload(run, with_data=True)
    assert work.packed and work.batch_tokens == 200
    assert work.longest_row == max(len(ids) for ids in run.data.encoded["train"]["input_ids"])
    assert work.batch(work.rows)["input_ids"].shape == (1, work.length)
    assert 180 < work.length <= 200


def test_without_data_every_row_is_full(planned, caplog):
    with caplog.at_level(logging.WARNING, "lit_hf"):
        work = read_workload(planned(), with_data=False)
    assert (work.rows, work.length, work.tokens, work.padding) == (4, 32, 4 * 32, 0)
    assert work.attended == 4 * 32 * 33 / 2
    assert (work.batches, work.rows_in_all, work.trained_tokens) == (None, None, None)
    assert work.notes == (
        "the data is not read: --no-data: every row is taken to have 32 tokens, with as many of them trained as can be",
    )
    assert caplog.messages == list(work.notes)


TASKS = {
    CausalLM: ({"text": "text"}, {"input_ids": (ROWS, LENGTH), "labels": (ROWS, LENGTH)}),
    Chat: ({"prompt": "p", "completion": "c"}, {"input_ids": (ROWS, LENGTH), "labels": (ROWS, LENGTH)}),
    MaskedLM: ({"text": "text"}, {"input_ids": (ROWS, LENGTH), "labels": (ROWS, LENGTH)}),
    Seq2Seq: ({"source": "a", "target": "b"}, {"input_ids": (ROWS, LENGTH), "labels": (ROWS, LENGTH)}),
    TextClassification: ({"text": "text"}, {"input_ids": (ROWS, LENGTH), "labels": (ROWS,)}),
    TokenClassification: ({}, {"input_ids": (ROWS, LENGTH), "labels": (ROWS, LENGTH)}),
    QuestionAnswering: ({}, {"input_ids": (ROWS, LENGTH), "start_positions": (ROWS,), "end_positions": (ROWS,)}),
    MultipleChoice: ({"choices": ["a", "b"]}, {"input_ids": (ROWS, 2, LENGTH), "labels": (ROWS,)}),
    Embedding: ({"negative": "n"}, {"input_ids": (3 * ROWS, LENGTH)}),
    Preference: ({}, {"input_ids": (2 * ROWS, LENGTH), "prompt_length": (ROWS,), "reference_chosen": (ROWS,)}),
    RewardModel: ({}, {"input_ids": (2 * ROWS, LENGTH)}),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_says_what_its_full_rows_are(planned, task):
    arguments, shapes = TASKS[task]
    work = read_workload(planned(task(**arguments), data={"max_length": LENGTH, "batch_size": ROWS}), with_data=False)
    batch = work.batch(ROWS)
    assert {name: tuple(batch[name].shape) for name in shapes} == shapes
    assert batch["attention_mask"].bool().all()
    assert work.tokens == batch["input_ids"].numel()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("single_label", torch.tensor([0, 0])),
        ("regression", torch.tensor([0.0, 0.0])),
        ("multi_label", torch.zeros(2, 3)),
    ],
)
def test_labels_of_full_rows_have_the_type_of_the_task_s(planned, kind, expected):
    labels = None if kind == "regression" else ["a", "b", "c"]
    work = read_workload(planned(TextClassification("text", kind=kind, labels=labels)), with_data=False)
    torch.testing.assert_close(work.batch(2)["labels"], expected)


def test_an_adapter_needs_no_columns_of_a_reference_model(planned):
    from peft import LoraConfig

    run = planned(Preference(), model={"adapter": LoraConfig()}, data={"max_length": LENGTH})
    assert "reference_chosen" not in read_workload(run, with_data=False).batch(1)


def test_a_task_that_does_not_say_is_planned_with_the_data_only(planned):
    with pytest.raises(InputError) as caught:
        read_workload(planned(Sorting()), with_data=False)
    (problem,) = caught.value.problems
    assert problem.what == "the data is not read: --no-data, and Sorting does not say what a row of it would be."
    assert problem.cure == "Plan with the data, or define the task's full_row."


@pytest.mark.parametrize(
    ("data", "rows", "length", "budget"),
    [
        ({"batch_tokens": 100}, 3, 32, 100),
        ({"batch_tokens": 10}, 1, 32, 10),
        ({"packing": True}, 4, 128, 128),
        ({"packing": True, "batch_tokens": 70}, 2, 64, 70),
    ],
)
def test_a_budget_of_tokens_makes_the_batch(planned, data, rows, length, budget):
    work = read_workload(planned(data=data), with_data=False)
    assert (work.rows, work.length, work.batch_tokens) == (rows, length, budget)


def test_a_fault_of_local_files_is_raised_and_one_of_the_hub_assumed_around(planned, hub):
    with pytest.raises(InputError, match="none"):
        read_workload(planned(data={"source": Source(train="none.jsonl")}), with_data=True)
    work = read_workload(planned(data={"source": Source(path="nobody/nothing")}), with_data=True)
    assert work.notes[0].startswith("the data cannot be loaded (nobody/nothing: there is no such dataset")


def test_decoders_attend_to_what_is_before():
    assert is_causal(CausalLM("text")) and is_causal(Preference())
    assert not is_causal(TextClassification("text"))
