from dataclasses import replace

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from peft import AdaLoraConfig, LoraConfig
from transformers import BitsAndBytesConfig

from lit_hf.planning.changes import changes
from lit_hf.tasks import CausalLM
from tests.planning.conftest import machine

SINGLE = [
    "gradient checkpointing",
    "batches of 2 rows, 2 a step",
    "bf16-mixed",
    "8-bit AdamW",
    "LoRA",
    "LoRA on 8 bits",
    "LoRA on 4 bits (QLoRA)",
]


def test_what_can_be_changed_is_tried_from_the_smallest_change_on(planner):
    plain = planner()
    before = plain.layout("one device", plain.case, plain.peaks(plain.case)).total
    found = list(changes(plain, True))
    assert [change.names for change in found] == [(name,) for name in SINGLE]
    changed = dict(zip(SINGLE, found, strict=True))
    for name in "gradient checkpointing", "batches of 2 rows, 2 a step", "8-bit AdamW", "LoRA":
        assert changed[name].total < before
    assert changed["gradient checkpointing"].options == ("--model.gradient_checkpointing true",)
    assert changed["batches of 2 rows, 2 a step"].options == (
        "--data.batch_size 2 --trainer.accumulate_grad_batches 2",
    )
    assert changed["LoRA"].options == ("-c configs/methods/lora.yaml",)


def test_what_a_run_does_already_is_no_change(planner):
    model = {"gradient_checkpointing": True, "adapter": LoraConfig()}
    plain = planner(machine(precision="bf16-true"), model=model, data={"batch_size": 1})
    assert [change.names[0] for change in changes(plain, True)] == [
        "8-bit AdamW",
        "LoRA on 8 bits",
        "LoRA on 4 bits (QLoRA)",
    ]


def test_neither_packed_weights_nor_8_bit_optimizers_can_be_cut(planner):
    plain = planner(machine(devices=2), strategy="fsdp2")
    assert [change.names[0] for change in changes(plain, True)] == [*SINGLE[:3], "LoRA"]


def test_a_model_that_is_too_large_for_a_device_fits_cut_among_several(planner):
    plain = planner(machine(devices=8), task=CausalLM("text", block_length=8), data={"batch_size": 1})
    peaks = plain.peaks(plain.case)
    needed = plain.layout("FSDP2", plain.case, peaks).total
    assert needed < 0.6 * plain.layout("DDP", plain.case, peaks).total
    plain.machine = machine(memory=1.001 * needed / 0.9, devices=8)
    assert plain.strategies[0] == "DDP"
    first = next(change for change in changes(plain, False) if change.fits)
    assert (first.names, first.options, first.total) == (("FSDP2",), ("--trainer.strategy fsdp2",), needed)


def test_cutting_is_tried_with_what_goes_with_it_alone(planner):
    plain = planner(machine(memory=1, devices=2), data={"batch_size": 1})
    _, combined = _tried(plain)
    assert [change.names for change in combined] == [
        ("bf16-mixed", "gradient checkpointing"),
        ("bf16-mixed", "gradient checkpointing", "FSDP2"),
        ("bf16-mixed", "gradient checkpointing", "LoRA"),
        ("bf16-mixed", "gradient checkpointing", "FSDP2", "LoRA"),
        ("bf16-mixed", "gradient checkpointing", "LoRA on 4 bits (QLoRA)"),
    ]
    totals = [change.total for change in combined]
    assert totals[1] < totals[0] and totals[3] < min(totals[1:3])
    _, on_t4 = _tried(planner(machine(memory=1, devices=2, name="t4-16gb"), data={"batch_size": 1}))
    assert ("gradient checkpointing", "FSDP2") in [change.names for change in on_t4]
    assert not any({"16-mixed", "FSDP2"} <= set(change.names) for change in on_t4)


@pytest.mark.parametrize(
    ("where", "model"),
    [
        ({}, {}),  # one device
        ({"devices": 2, "precision": "16-mixed"}, {}),
        ({"devices": 2}, {"optimizer": AdamW8bit}),
        ({"devices": 2}, {"adapter": LoraConfig(), "quantization": BitsAndBytesConfig(load_in_8bit=True)}),
    ],
)
def test_what_fit_refuses_to_cut_is_not_cut(planner, where, model):
    plain = planner(machine(**where), model=model)
    assert "FSDP2" not in [name for change in changes(plain, False) for name in change.names]


def test_an_adapter_that_cannot_be_cut_is_told_as_such(planner):
    plain = planner(machine(devices=2), model={"adapter": AdaLoraConfig(total_step=10)})
    (change,) = [change for change in changes(plain, True) if change.names == ("FSDP2",)]
    assert (change.total, change.fits) == (None, False)
    assert "AdaLoraConfig computes on the whole of its factors between steps" in change.why


def test_a_gpu_without_bfloat16_takes_float16(planner):
    changed = {change.names[0]: change for change in changes(planner(machine(name="t4-16gb")), True)}
    assert changed["16-mixed"].options == ("--trainer.precision 16-mixed",)


def test_the_batch_is_halved_until_it_fits_and_the_step_stays_as_large(planner):
    plain = planner(data={"batch_size": 8}, accumulate_grad_batches=3)
    one_row = plain.peaks(replace(plain.case, rows=1)).total
    plain.machine = machine(memory=1.001 * one_row / 0.9)
    found = [change for change in changes(plain, True) if change.names[0].startswith("batches")]
    assert [(change.names, change.options, change.fits) for change in found] == [
        (
            ("batches of 1 row, 24 a step",),
            ("--data.batch_size 1 --trainer.accumulate_grad_batches 24",),
            True,
        )
    ]


def test_a_budget_of_tokens_is_halved_as_well(planner):
    plain = planner(data={"batch_tokens": 256})
    (option,) = [change.options[0] for change in changes(plain, True) if "tokens" in change.names[0]]
    assert option == "--data.batch_tokens 128 --trainer.accumulate_grad_batches 2"


def test_a_budget_of_tokens_keeps_room_for_the_longest_row(planner):
    plain = planner(machine(memory=1), data={"batch_tokens": 256})  # 8 rows of 32 tokens
    plain.work = replace(plain.work, longest_row=80)  # of which another batch has one
    tried = {option for change in changes(plain, False) for option in change.options if "batch_tokens" in option}
    assert tried == {
        "--data.batch_tokens 128 --trainer.accumulate_grad_batches 2",
        "--data.batch_tokens 85 --trainer.accumulate_grad_batches 3",
    }
    plain.work = replace(plain.work, longest_row=129)
    assert not any("batch_tokens" in option for change in changes(plain, False) for option in change.options)


def test_combinations_are_tried_only_where_nothing_fits_and_up_to_one_that_does(planner):
    plain = planner(machine(memory=1, devices=2), strategy="fsdp")
    single, combined = _tried(plain)
    assert [change.names for change in combined] == [
        ("bf16-mixed", "gradient checkpointing"),
        ("bf16-mixed", "gradient checkpointing", "batches of 1 row, 4 a step"),
        ("bf16-mixed", "gradient checkpointing", "LoRA"),
        ("bf16-mixed", "gradient checkpointing", "batches of 1 row, 4 a step", "LoRA"),
    ]
    assert combined[1].options == (
        "--trainer.precision bf16-mixed",
        "--model.gradient_checkpointing true",
        "--data.batch_size 1 --trainer.accumulate_grad_batches 4",
    )
    least = min(change.total for change in single)
    needed = combined[1].total
    assert needed < min(least, combined[0].total)

    plain.machine = machine(memory=1.001 * needed / 0.9, devices=2)
    _, combined = _tried(plain)
    assert [change.fits for change in combined] == [False, True]

    plain.machine = machine(memory=1.001 * least / 0.9, devices=2)
    assert _tried(plain)[1] == []


def _tried(planner):
    """Return the single changes, and the combinations."""
    tried = list(changes(planner, False))
    return [one for one in tried if len(one.names) == 1], [one for one in tried if len(one.names) > 1]


def test_a_way_that_a_model_has_not_is_told_as_such(planner):
    def failing(parameters):
        raise ValueError("no such optimizer here")

    plain = planner()
    plain.case.module.optimizer = lambda parameters: (
        torch.optim.SGD(parameters, lr=0.1) if len(list(parameters)) == 1 else failing(parameters)
    )
    change = next(iter(changes(plain, True)))
    assert (change.total, change.fits, change.why) == (None, False, "no such optimizer here")
