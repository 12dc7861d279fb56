import math

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
from transformers import Trainer as HFTrainer

from lit_hf.errors import InputError
from lit_hf.training.optimizers import Schedule, parameter_groups


@pytest.fixture
def model():
    config = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    return BertForSequenceClassification(config)


def rates(schedule, total, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule.build(optimizer, total)
    values = []
    for _ in range(steps):
        values.append(round(optimizer.param_groups[0]["lr"], 6))
        optimizer.step()
        scheduler.step()
    return values


def test_the_groups_are_the_hugging_face_trainer_s(model, tmp_path):
    theirs = HFTrainer(model, TrainingArguments(tmp_path, weight_decay=0.1, report_to=[])).create_optimizer()
    ours = parameter_groups(model)
    assert [{id(p) for p in group["params"]} for group in ours] == [
        {id(p) for p in group["params"]} for group in theirs.param_groups
    ]
    assert ours[1]["weight_decay"] == 0.0
    assert "weight_decay" not in ours[0]


def test_frozen_parameters_are_in_no_group(model):
    model.bert.requires_grad_(False)
    sizes = [len(group["params"]) for group in parameter_groups(model)]
    assert sizes == [1, 1]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("linear", warmup=2), [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (Schedule("linear", warmup=0.2), [0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        (Schedule("constant", warmup=2), [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Schedule("constant", warmup=0), [1] * 10),
        (Schedule("cosine", warmup=2), [0, 0.5] + [round((1 + math.cos(math.pi * i / 8)) / 2, 6) for i in range(8)]),
    ],
)
def test_rates_go_as_the_schedule_says(schedule, expected):
    assert rates(schedule, 10, 10) == pytest.approx(expected, abs=1e-5)


def test_warmup_stable_decay_stays_and_falls_in_the_end():
    values = rates(Schedule("warmup_stable_decay", warmup=2, decay=4), 10, 11)
    assert values[:7] == [0, 0.5, 1, 1, 1, 1, 1]
    assert values[6] > values[7] > values[8] > values[9]
    assert values[10] == pytest.approx(0, abs=1e-6)


def test_a_schedule_without_an_end_is_refused_unless_it_needs_none():
    with pytest.raises(InputError, match="no end"):
        rates(Schedule("linear"), math.inf, 1)
    with pytest.raises(InputError, match="no end"):
        rates(Schedule("constant", warmup=0.1), math.inf, 1)
    assert rates(Schedule("constant", warmup=2), math.inf, 3) == [0, 0.5, 1]


def test_negative_warmup_is_a_problem():
    assert [problem.where for problem in Schedule(warmup=-1).problems()] == ["model.schedule.warmup"]
