import pytest
from peft import LoraConfig

from lit_hf.planning.plan import make_plan
from tests.planning.conftest import machine


def test_a_plan_is_of_the_run_s_own_layout_and_shows_the_others(planner):
    plain = planner(machine(devices=2))
    plan = make_plan(plain, with_changes=False)
    count = 2 * 300 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64
    assert plan.parameters == (count, count)
    assert plan.dtypes == {"float32": count}
    assert plan.peaks == plain.peaks(plain.case)
    assert [way.name for way in plan.layouts] == plain.strategies
    assert plan.time.sending == pytest.approx(plan.layouts[0].sent_a_step / 1e9)
    assert plan.changes == []


def test_changes_are_combined_only_where_none_of_them_fits(planner):
    settings = {"strategy": "fsdp2", "model": {"adapter": LoraConfig()}, "data": {"batch_size": 1}}
    large, small = (make_plan(planner(machine(memory, devices=2), **settings)) for memory in (80e9, 1))
    assert [change.names for change in large.changes] == [
        ("gradient checkpointing",),
        ("bf16-mixed",),
    ]
    assert [change.names for change in small.changes[2:]] == [("bf16-mixed", "gradient checkpointing")]


def test_checkpointing_computes_again(planner):
    once = make_plan(planner(), with_changes=False).time
    again = make_plan(planner(model={"gradient_checkpointing": True}), with_changes=False).time
    assert again.computing == pytest.approx(4 / 3 * once.computing)


def test_the_dtypes_are_those_that_the_run_keeps(planner):
    plan = make_plan(planner(model={"dtype": "bfloat16"}), with_changes=False)
    assert list(plan.dtypes) == ["bfloat16"]
