from dataclasses import replace

import pytest
from peft import LoraConfig

from lit_hf.errors import InputError
from lit_hf.planning.layouts import ALONE, DDP, FSDP2, TENSOR_PARALLEL
from tests.planning.conftest import machine

PARAMETERS = 2 * 300 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64


BUFFERS = 2 * 4 * 64 // 4 // 2
"""Bytes of the rotary frequencies, which are kept twice: one for two of a head's 16 dimensions."""


def test_the_case_of_the_config_is_what_it_says(planner):
    case = planner(machine(precision="bf16-mixed"), model={"gradient_checkpointing": True}).case
    assert (case.rows, case.setting.precision, case.setting.on_gpu) == (4, "bf16-mixed", True)
    assert case.setting.switches.gradient_checkpointing
    assert case.setting.quantization is None


def test_weights_gradients_and_states_have_the_bytes_of_their_parameters(planner):
    plain = planner()
    peaks = plain.peaks(plain.case)
    assert (peaks.weights, peaks.gradients) == (4 * PARAMETERS + BUFFERS, 4 * PARAMETERS)
    assert peaks.optimizer == pytest.approx(8 * PARAMETERS, rel=0.01)  # AdamW's two, and its steps


def test_the_parameters_of_an_adapter_alone_have_gradients(planner):
    adapted = planner(model={"adapter": LoraConfig(r=2, target_modules=["q_proj"])})
    peaks = adapted.peaks(adapted.case)
    of_adapter = 2 * (64 * 2 + 2 * 64)
    assert peaks.gradients == 4 * of_adapter
    assert peaks.weights == 4 * (PARAMETERS + of_adapter) + BUFFERS


def test_fewer_rows_need_less_and_the_same_weights(planner):
    plain = planner()
    whole = plain.peaks(plain.case)
    half = plain.peaks(replace(plain.case, rows=2))
    assert half.weights == whole.weights
    assert half.activations < whole.activations


@pytest.mark.parametrize(
    ("where", "strategy", "expected"),
    [
        (machine(), "auto", [ALONE]),
        (machine(), "fsdp", [ALONE]),
        (machine(devices=2), "auto", [DDP, FSDP2, TENSOR_PARALLEL]),
        (machine(devices=2), "ddp", [DDP, FSDP2, TENSOR_PARALLEL]),
        (machine(devices=2), "fsdp", [FSDP2, DDP, TENSOR_PARALLEL]),
        (machine(nodes=2), "auto", [DDP, FSDP2]),
    ],
)
def test_the_run_s_own_strategy_comes_first(planner, where, strategy, expected):
    assert planner(where, strategy=strategy).strategies == expected


def test_a_layout_shares_what_its_strategy_shares(planner):
    plain = planner(machine(devices=4))
    peaks = plain.peaks(plain.case)
    ddp, fsdp, tensors = (plain.layout(name, plain.case, peaks) for name in plain.strategies)
    assert (ddp.weights, ddp.optimizer, ddp.buffers) == (peaks.weights, peaks.optimizer, peaks.gradients)
    assert (fsdp.weights, fsdp.optimizer) == (peaks.weights / 4, peaks.optimizer / 4)
    share = (PARAMETERS - 2 * 300 * 64 - 64) / PARAMETERS  # of layers, without embeddings, head and last norm
    assert tensors.weights == pytest.approx(peaks.weights * (1 - share * 3 / 4))


def test_shared_weights_are_cast_once_so_that_autocast_copies_none(planner):
    plain = planner(machine(devices=2, precision="bf16-mixed"), model={"gradient_checkpointing": True})
    peaks = plain.peaks(plain.case)
    ddp, fsdp, _ = (plain.layout(name, plain.case, peaks) for name in plain.strategies)
    assert fsdp.activations < ddp.activations == peaks.activations
    kept = planner(machine(devices=2, precision="bf16-mixed"))  # copies stay for the backward pass
    peaks = kept.peaks(kept.case)
    assert kept.layout(FSDP2, kept.case, peaks).activations == peaks.activations


def test_a_model_without_weights_is_made_once(planner):
    plain = planner()
    skeleton = plain.skeleton(plain.case.module)
    assert plain.skeleton(plain.case.module) is skeleton
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}


def test_what_is_not_planned_for_is_told(planner):
    with pytest.raises(InputError, match=r"trainer\.precision: '64-true' is not planned for"):
        planner(machine(precision="64-true"))
