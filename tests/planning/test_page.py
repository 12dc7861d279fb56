import json
from dataclasses import replace

import pytest

from lit_hf.planning.changes import Change
from lit_hf.planning.layouts import Layout
from lit_hf.planning.page import _count as count
from lit_hf.planning.page import _duration as duration
from lit_hf.planning.page import _scaled as scaled
from lit_hf.planning.page import _size as size
from lit_hf.planning.page import advice, as_json, show
from lit_hf.planning.plan import make_plan
from tests.planning.conftest import machine

MIB = 2**20


@pytest.fixture
def made(planner):
    """A planner and its plan, with what is given in place of what was found."""

    def make(total=100 * MIB, changes=(), devices=1, **settings):
        plain = planner(machine(memory=1000 * MIB, devices=devices), **settings)
        plan = make_plan(plain, with_changes=False)
        ways = [replace(plan.layouts[0], weights=total, gradients=0, optimizer=0, activations=0, buffers=0)]
        return plain, replace(plan, layouts=[*ways, *plan.layouts[1:]], changes=list(changes))

    return make


def change(*names, total=1.0, fits=False, why=""):
    return Change(names, tuple(f"--{name}" for name in names), total, fits, why)


@pytest.mark.parametrize(
    ("total", "changes", "expected"),
    [
        (100 * MIB, [], "It fits: the run needs 100 MiB, 900 MiB may be filled."),
        (950 * MIB, [], "It does not fit: the run needs 950 MiB, 900 MiB may be filled."),
        (
            950 * MIB,
            [change("a"), change("b", total=800 * MIB, fits=True), change("c", total=1, fits=True)],
            "It does not fit: the run needs 950 MiB, 900 MiB may be filled. The smallest change that makes it fit: b "
            "(800 MiB). Add to the command: --b",
        ),
        (
            950 * MIB,
            [change("a"), change("a", "b", "c", total=5 * MIB, fits=True)],
            "It does not fit: the run needs 950 MiB, 900 MiB may be filled. No single change makes it fit. "
            "The smallest combination that does: a, b and c (5.0 MiB). Add to the command: --a --b --c",
        ),
        (
            950 * MIB,
            [change("a"), change("b", total=None, why="it has none")],
            "It does not fit: the run needs 950 MiB, 900 MiB may be filled. Nothing tried makes it fit: take shorter "
            "rows, larger devices, or a smaller model.",
        ),
    ],
)
def test_the_advice_is_the_smallest_change_that_makes_it_fit(made, total, changes, expected):
    assert advice(*made(total, changes)) == expected


def test_of_several_devices_each_must_hold_its_part(made):
    assert advice(*made(devices=2)).startswith("It fits: each device needs 100 MiB")


def test_the_json_has_bytes_and_says_what_fits(made):
    planner, plan = made(950 * MIB, [change("a", total=7.0, fits=True)])
    values = json.loads(as_json(planner, plan))
    assert values["machine"]["usable"] == 900 * MIB
    assert values["parameters"]["by_dtype"] == plan.dtypes
    assert values["memory"]["one_device"]["total"] == plan.peaks.total
    (way,) = values["memory"]["layouts"]
    assert (way["total"], way["fits"]) == (950 * MIB, False)
    assert values["memory"]["changes"] == [{"names": ["a"], "options": ["--a"], "total": 7.0, "fits": True, "why": ""}]
    assert values["time"]["step"] == plan.time.step
    assert (values["data"]["rows"], "batch" in values["data"]) == (4, False)
    assert values["advice"] == advice(planner, plan)


def test_the_page_shows_all_of_it(made, capsys):
    impossible = change("quantized", total=None, why="it has [none]")
    planner, plan = made(950 * MIB, [change("small", total=7 * MIB, fits=True), impossible], devices=2)
    show(planner, plan)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "machine      2 x any, 1,000 MiB each, 90% of it may be filled"
    assert lines[1] == "parameters   100k (float32); all train"
    assert lines[2] == "training     32-true, DDP"
    assert lines[3] == "batch        4 rows of up to 32 tokens a device"
    shown = {line.strip().split("  ")[0]: line for line in lines}
    assert shown["DDP"].rstrip().endswith("too large")
    assert "7.0 MiB" in shown["small"] and "fits" in shown["small"] and shown["small"].rstrip().endswith("--small")
    assert "not possible" in shown["quantized"] and "it has [none]" in shown["quantized"]
    assert lines[-1] == advice(planner, plan)


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (size, 0, "0 B"),
        (size, 1023, "1,023 B"),
        (size, 1024, "1.0 KiB"),
        (size, 150 * 1024, "150 KiB"),
        (size, 2.5 * 2**30, "2.5 GiB"),
        (size, 5000 * 2**30, "5,000 GiB"),
        (count, 999, "999"),
        (count, 70_553_706_496, "70.6B"),
        (count, 1_100_000, "1.1M"),
        (lambda value: scaled(value, "FLOP/s"), 989.4e12, "989 TFLOP/s"),
        (lambda value: scaled(value, "B/s"), 50e9, "50 GB/s"),
        (duration, 0.0123, "12.3 ms"),
        (duration, 90, "90.0 s"),
        (duration, 600, "10 min"),
        (duration, 3 * 3600, "3.0 h"),
        (duration, 4 * 86400, "4.0 days"),
    ],
)
def test_numbers_have_units_that_people_read(write, value, expected):
    assert write(value) == expected


def test_only_layouts_that_are_shown_to_compare_are_said_to_be(made, capsys):
    show(*made())
    assert "to compare" not in capsys.readouterr().out
    planner, plan = made(devices=2)
    assert [way.name for way in plan.layouts] == ["DDP", "FSDP2", "tensor parallel"]
    assert isinstance(plan.layouts[0], Layout)
    show(planner, plan)
    assert "tensor parallel is shown to compare: lit-hf trains with DDP and FSDP2" in capsys.readouterr().out
