"""The verb plan: what a run will need of memory and time, without weights."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from lit_hf.cli.options import Parser, positive

if TYPE_CHECKING:
    from lit_hf.cli.trainer import TrainerCLI
    from lit_hf.planning.planned_run import PlannedRun


def run(argv: Sequence[str]) -> None:
    """Plan a run and print the plan."""
    parser = Parser("plan", "Say what a run will need, without weights.", add_help=False)
    parser.add_argument("--devices", type=positive)
    parser.add_argument("--nodes", type=positive)
    parser.add_argument("--gpu")
    parser.add_argument("--efficiency", type=_share)
    parser.add_argument("--network", type=float, metavar="GBIT")
    parser.add_argument("--no-data", action="store_true")
    parser.add_argument("--no-changes", action="store_true")
    parser.add_argument("--json", action="store_true")
    options, rest = parser.parse_known_args(argv)
    if options.gpu is not None:
        from lit_hf.models.devices import find_gpu

        find_gpu(options.gpu)  # told before anything is loaded

    from lit_hf.cli.arguments import with_run_config
    from lit_hf.cli.trainer import TrainerCLI
    from lit_hf.planning.machine import find_machine
    from lit_hf.planning.page import as_json, show
    from lit_hf.planning.plan import make_plan
    from lit_hf.planning.planner import Planner
    from lit_hf.planning.workload import read_workload

    planned = planned_run(TrainerCLI(with_run_config(rest), "plan"))
    machine = find_machine(
        planned.trainer,
        gpu=options.gpu,
        devices=options.devices,
        nodes=options.nodes,
        efficiency=options.efficiency,
        network=options.network,
    )
    planner = Planner(planned, read_workload(planned, not options.no_data), machine)
    plan = make_plan(planner, not options.no_changes)
    if options.json:
        print(as_json(planner, plan))
    else:
        show(planner, plan)


def planned_run(cli: TrainerCLI) -> PlannedRun:
    """Return what is planned of a parsed config."""
    from lit_hf.planning.planned_run import PlannedRun, TrainerSettings

    settings = {field.name: cli.config.trainer[field.name] for field in fields(TrainerSettings)}
    return PlannedRun(cli.model, cli.datamodule, TrainerSettings(**settings))


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1.")
    return number
