"""What a run will need of memory and time, before it is paid for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lit_hf.models.accounting import Parameters, count_parameters
from lit_hf.planning.changes import Change, changes
from lit_hf.planning.layouts import Layout
from lit_hf.planning.planner import Planner
from lit_hf.planning.rehearsal import Peaks
from lit_hf.planning.timing import Time, estimate_time


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        parameters: Numbers of parameters.
        dtypes: Numbers of parameters by dtype, as the run keeps them.
        peaks: Bytes of a step on one device that has the whole model.
        layouts: The ways of sharing it among the devices, the run's own first.
        changes: What other ways to train would need, from the smallest change on; only if none of them fits are there
            combinations, up to the first that does.
        time: How long it takes.
    """

    parameters: Parameters
    dtypes: dict[str, int]
    peaks: Peaks
    layouts: list[Layout]
    changes: list[Change]
    time: Time


def make_plan(planner: Planner, with_changes: bool = True) -> Plan:
    """Plan a run.

    Args:
        planner: Knows the run, what it trains on, and where.
        with_changes: Whether to try changes, each of which takes as long as the plan itself.
    """
    case, machine = planner.case, planner.machine
    model, peaks = planner.skeleton(case.module), planner.peaks(case)
    ways = [planner.layout(name, case, peaks) for name in planner.strategies]
    tried = list(changes(planner, machine.fits(ways[0].total))) if with_changes else []
    recomputes = case.setting.switches.gradient_checkpointing
    time = estimate_time(model, ways[0], planner.work, machine, planner.run.trainer, recomputes)
    return Plan(count_parameters(model), _dtypes(model), peaks, ways, tried, time)


def _dtypes(model: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + parameter.numel()
    return found
