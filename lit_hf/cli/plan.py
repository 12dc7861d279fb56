"""The verb plan: what a run will need of memory and time, without weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_hf.cli.options import Parser

if TYPE_CHECKING:
    from lit_hf.cli.planning import Machine
    from lit_hf.cli.trainer import TrainerCLI

EFFICIENCY_OF_GPU = 0.4
"""Share of the peak rate that is planned with. Llama 3 was trained at 0.38 to 0.43 (Grattafiori et al., "The Llama 3
Herd of Models", 2024, table 4); small models and short rows reach less."""

EFFICIENCY_OF_CPU = 0.5
"""The same for a CPU, whose peak is measured by large products; a training step has smaller ones, and other work."""

GIGABIT = 10**9 / 8


def run(argv: Sequence[str]) -> None:
    """Plan a run and print the plan."""
    parser = Parser("plan", "Say what a run will need, without weights.", add_help=False)
    parser.add_argument("--devices", type=_positive)
    parser.add_argument("--nodes", type=_positive)
    parser.add_argument("--gpu")
    parser.add_argument("--efficiency", type=_share)
    parser.add_argument("--network", type=float, metavar="GBIT")
    parser.add_argument("--no-data", action="store_true")
    parser.add_argument("--no-changes", action="store_true")
    parser.add_argument("--json", action="store_true")
    options, rest = parser.parse_known_args(argv)
    if options.gpu is not None:
        from lit_hf.models.rates import find_gpu

        find_gpu(options.gpu)  # told before anything is loaded

    from lit_hf.cli.plan_page import as_json, show
    from lit_hf.cli.planning import Planner
    from lit_hf.cli.trainer import TrainerCLI, with_run_config
    from lit_hf.cli.workload import read_workload

    cli = TrainerCLI(with_run_config(rest), "plan")
    work = read_workload(cli, not options.no_data)
    planner = Planner(cli, work, _machine(cli, options))
    plan = planner.plan(not options.no_changes)
    if options.json:
        print(as_json(planner, plan))
    else:
        show(planner, plan)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0.")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1.")
    return number


def _machine(cli: TrainerCLI, options: argparse.Namespace) -> Machine:
    """Return where the run is planned for: the GPU that is named, else the one that is here, else the CPU."""
    import torch

    from lit_hf.cli.planning import Machine, compute_dtype, peak_of, precision_of
    from lit_hf.models.rates import GB, GPUS, find_gpu, gpu_name, peak_flops

    trainer = cli.config.trainer
    devices = options.devices or (trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1)
    nodes = options.nodes or trainer.num_nodes
    named = find_gpu(options.gpu)[0] if options.gpu else None
    precision = precision_of(trainer, named)
    dtype = compute_dtype(precision)
    here = torch.cuda.get_device_name() if named is None and torch.cuda.is_available() else None
    name = named or (gpu_name(here) if here else None)
    network = options.network * GIGABIT if options.network else None
    if name is not None:
        gpu = GPUS[name]
        rate, source = peak_of(gpu, dtype, name), gpu.source
        memory, link, other = gpu.memory, gpu.link, gpu.network
    else:
        device = "cuda" if here else "cpu"
        rate, source = peak_flops(device, dtype)
        memory = torch.cuda.mem_get_info()[1] if here else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        link, other = 16.0 * GB, 1.25 * GB
    is_gpu = name is not None or here is not None
    efficiency = options.efficiency or (EFFICIENCY_OF_GPU if is_gpu else EFFICIENCY_OF_CPU)
    # the processes of one machine share its CPU and its memory
    shared = 1 if is_gpu else devices
    return Machine(
        name or here or "this machine's CPU",
        is_gpu,
        memory / shared,
        rate / shared,
        source,
        efficiency,
        link,
        network or other,
        devices,
        nodes,
        precision,
    )
