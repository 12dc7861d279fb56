import pytest

from lit_hf.planning.layouts import Layout
from lit_hf.planning.planned_run import TrainerSettings
from lit_hf.planning.timing import RECOMPUTED, estimate_time
from lit_hf.planning.workload import Workload
from tests.planning.conftest import machine

LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
"""Elements of a layer's matrices: queries and output, keys and values of half the heads, and the three of the MLP."""

TOKENS, TRAINED, ATTENDED = 100, 30, 2000


def work(**changes):
    values = {"rows": 4, "length": 32, "tokens": TOKENS, "padding": 0.0, "decoder_tokens": 0.0, "rows_in_all": 40}
    counted = {"longest_row": 32, "trained_tokens": TRAINED, "attended": ATTENDED, "batches": 10}
    return Workload(**{"batch": lambda rows: {}} | values | counted | changes)


def way(**changes):
    return Layout("any", 0, 0, 0, 0, **changes)


@pytest.fixture
def model(planner):
    plain = planner()
    return plain.skeleton(plain.case.module)


def estimate(model, where=None, layout=None, recomputes=False, of_work=None, **trainer):
    return estimate_time(
        model, layout or way(), of_work or work(), where or machine(), TrainerSettings(**trainer), recomputes
    )


def test_operations_are_those_of_matrices_attention_and_head(model):
    time = estimate(model)
    # two layers 64 wide: q @ k and weights @ v, forward and twice backward
    attention = 2 * 64 * 2 * 2 * 3 * ATTENDED
    assert time.flops == 6 * (2 * LAYER * TOKENS + 64 * 300 * TRAINED) + attention
    assert time.computing == pytest.approx(time.flops / (1e12 * 0.5))
    assert (time.sending, time.step) == (0, time.computing)


def test_checkpointing_takes_longer_for_the_same_operations(model):
    once, again = estimate(model), estimate(model, recomputes=True)
    assert again.flops == once.flops
    assert again.computing == pytest.approx(RECOMPUTED * once.computing)


def test_accumulated_batches_and_all_devices_add_up(model):
    one, four = estimate(model), estimate(model, machine(devices=2), accumulate_grad_batches=2)
    assert four.flops == 4 * one.flops
    assert four.computing == 2 * one.computing


@pytest.mark.parametrize(("overlaps", "step"), [(True, max), (False, lambda *parts: sum(parts))])
def test_what_is_sent_goes_on_top_where_nothing_is_computed_meanwhile(model, overlaps, step):
    layout = way(sent_a_batch=1e6, sent_a_step=3e6, overlaps=overlaps)
    time = estimate(model, machine(devices=2), layout, accumulate_grad_batches=2)
    assert time.sending == pytest.approx((2 * 1e6 + 3e6) / 1e9)
    assert time.step == pytest.approx(step(time.computing, time.sending))


@pytest.mark.parametrize(
    ("trainer", "steps", "total"),
    [
        ({}, 10, 30),
        ({"max_epochs": 2}, 10, 20),
        ({"max_steps": 7}, 10, 7),
        ({"max_steps": 70, "max_epochs": 2}, 10, 20),
        ({"max_epochs": -1}, 10, None),
        ({"accumulate_grad_batches": 4}, 3, 9),
        ({"limit_train_batches": 0.5}, 5, 15),
        ({"limit_train_batches": 4}, 4, 12),
    ],
)
def test_steps_are_counted_as_the_trainer_makes_them(model, trainer, steps, total):
    time = estimate(model, **trainer)
    assert (time.steps, time.total_steps) == (steps, total)
    assert time.total == (None if total is None else pytest.approx(total * time.step))


def test_devices_share_the_steps_of_an_epoch(model):
    assert estimate(model, machine(devices=2, nodes=2)).steps == 3


def test_of_rows_that_are_not_known_only_given_steps_are(model):
    assert estimate(model, of_work=work(batches=None)).total_steps is None
    assert estimate(model, of_work=work(batches=None), max_steps=50).total_steps == 50
