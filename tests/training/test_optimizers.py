import copy
import io
import math
from functools import partial

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments
from transformers import Trainer as HFTrainer

from lit_hf.errors import InputError
from lit_hf.training.optimizers import Rates, Schedule, base_rate, build_optimizer, parameter_groups


def bert(layers):
    sizes = {"hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForSequenceClassification(BertConfig(vocab_size=9, **sizes))


@pytest.fixture
def model():
    return bert(layers=1)


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


def rate_of(optimizer):
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_decay_is_of_one_schedule():
    assert Schedule("warmup_stable_decay", decay=0.5).problems() == []
    (problem,) = Schedule("cosine", decay=0.5).problems()
    assert problem.where == "model.schedule.decay" and "cosine has none" in problem.what


def test_a_warmup_that_is_longer_than_the_run_is_told(model, caplog):
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    Schedule(warmup=9).build(optimizer, 10)
    assert caplog.messages == []
    Schedule(warmup=10).build(optimizer, 10)
    assert caplog.messages == ["the warm-up of 10 steps is not over when the run ends, after 10"]


def test_lora_plus_rates_and_groups_are_those_of_peft(model):
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    settings = {"loraplus_lr_ratio": 16, "loraplus_weight_decay": 0.1, "loraplus_lr_embedding": 0.5}
    theirs = create_loraplus_optimizer(adapted, torch.optim.AdamW, lr=0.01, **settings)
    groups = parameter_groups(adapted, Rates(lora_b=16))
    ours = build_optimizer(lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), groups, is_scaled=True)
    assert rate_of(ours) == pytest.approx(rate_of(theirs))
    assert set(rate_of(ours).values()) == {0.01, 0.16}
    decay = {id(p): group["weight_decay"] for group in ours.param_groups for p in group["params"]}
    assert decay == {id(p): group["weight_decay"] for group in theirs.param_groups for p in group["params"]}
    assert base_rate(ours) == pytest.approx(0.01)


BERT_DISTANCES = {"bert.embeddings.": 3, "encoder.layer.0.": 2, "encoder.layer.1.": 1, "pooler": 0, "classifier": 0}


@pytest.mark.parametrize("adapter", [None, LoraConfig(task_type="SEQ_CLS", target_modules=["query"])])
def test_the_rate_falls_by_a_factor_with_each_layer_and_decay_stays_as_it_was(adapter):
    model = bert(layers=2)
    model = get_peft_model(model, adapter) if adapter else model
    groups = parameter_groups(model, Rates(layer_decay=0.5))
    optimizer = build_optimizer(lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.1), groups, is_scaled=True)
    rates = rate_of(optimizer)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (distance,) = {value for part, value in BERT_DISTANCES.items() if part in name}
            assert rates.pop(id(parameter)) == 0.5**distance, name
    assert not rates
    without = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    plain = parameter_groups(model)
    assert without == {id(p) for group in plain if "weight_decay" in group for p in group["params"]}


def test_the_rates_keep_their_ratio_over_the_schedule_and_the_base_rate_is_the_optimizer_s():
    groups = parameter_groups(bert(layers=2), Rates(layer_decay=0.5))
    optimizer = build_optimizer(lambda p: torch.optim.SGD(p, lr=1.0), groups, is_scaled=True)
    scheduler = Schedule("linear", warmup=2).build(optimizer, 10)
    for expected in (0, 0.5, 1, 0.875):
        assert base_rate(optimizer) == pytest.approx(expected)
        assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx(
            sorted({expected * factor for factor in (1, 0.5, 0.25, 0.125)})
        )
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    ("rates", "where", "what"),
    [
        (Rates(lora_b=0), "lora_b", "not above 0"),
        (Rates(lora_b=16), "lora_b", "no matrix B of LoRA trains"),
        (Rates(layer_decay=1.5), "layer_decay", "not between 0 and 1"),
    ],
)
def test_rates_that_make_no_sense_are_problems(model, rates, where, what):
    (problem,) = rates.problems(model)
    assert problem.where == f"model.rates.{where}"
    assert what in problem.what


def test_layer_decay_needs_layers():
    (problem,) = Rates(layer_decay=0.9).problems(nn.Linear(2, 2))
    assert "no list of layers" in problem.what


def trained(model, is_scaled):
    """Return the optimizer and the weights after five steps with gradients that are the same for all."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=0.01), parameter_groups(model), is_scaled)
    for _ in range(5):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer, list(model.parameters())


def test_fused_kernels_compute_what_the_others_do(model):
    fused, after = trained(model, is_scaled=False)
    plain, expected = trained(model, is_scaled=True)
    assert [group["fused"] for group in fused.param_groups] == [True, True]
    assert [group["fused"] for group in plain.param_groups] == [None, None]
    assert [(g["lr"], g["weight_decay"]) for g in fused.param_groups] == [(0.01, 0.01), (0.01, 0.0)]
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(after, expected, strict=True))


@pytest.mark.parametrize("chosen", [{"fused": False}, {"foreach": True}, {"capturable": True}])
def test_what_the_config_says_of_kernels_is_kept(model, chosen):
    create = partial(torch.optim.AdamW, lr=0.01, **chosen)
    optimizer = build_optimizer(create, parameter_groups(model), is_scaled=False)
    assert {name: optimizer.defaults[name] for name in chosen} == chosen
    assert optimizer.defaults["fused"] in (None, False)


def test_optimizers_without_fused_kernels_and_those_of_others_are_left_alone(model):
    class Own(torch.optim.AdamW):
        pass

    for kind in (torch.optim.RMSprop, Own, bitsandbytes.optim.AdamW8bit):
        optimizer = build_optimizer(partial(kind, lr=0.01), parameter_groups(model), is_scaled=False)
        assert type(optimizer) is kind
        assert optimizer.defaults.get("fused") is None


@pytest.mark.parametrize("name", ["AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit", "Lion8bit"])
def test_optimizers_of_bitsandbytes_train_and_resume_exactly(name):
    kind = getattr(bitsandbytes.optim, name)

    def step(layer, optimizer, seed):
        inputs = torch.randn(4, 128, generator=torch.Generator().manual_seed(seed))
        loss = (layer(inputs) - inputs).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    torch.manual_seed(0)
    layer = nn.Linear(128, 128)
    optimizer = build_optimizer(partial(kind, lr=1e-3), parameter_groups(layer), is_scaled=False)
    losses = [step(layer, optimizer, seed=0) for _ in range(10)]
    assert losses[-1] < losses[0] / 1.1
    file = io.BytesIO()
    torch.save({"layer": layer.state_dict(), "optimizer": optimizer.state_dict()}, file)
    expected = [step(layer, optimizer, seed) for seed in range(10, 15)]
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = nn.Linear(128, 128)
    resumed = build_optimizer(partial(kind, lr=1e-3), parameter_groups(other), is_scaled=False)
    other.load_state_dict(saved["layer"])
    resumed.load_state_dict(saved["optimizer"])
    assert [step(other, resumed, seed) for seed in range(10, 15)] == expected
    assert torch.equal(layer.weight, other.weight)
