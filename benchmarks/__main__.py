"""The benchmark: lit-hf and its peers on the same work, in turn. `make bench` and `make bench-quick` run it.

Examples:
    python -m benchmarks --data DATA
    python -m benchmarks --data DATA --quick
    python -m benchmarks --data DATA --only chat start rows sequence --peers trl_grouped loop --rounds 3
    python -m benchmarks --gpu
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, plot, report, results, resume
from benchmarks.catalog import CURVES, ON_CPU, ON_GPU, find
from benchmarks.interleaving import environment, run_all
from benchmarks.preparing import Prepared
from benchmarks.report import number
from benchmarks.startup import WORKLOAD as START_WORKLOAD
from benchmarks.startup import measure

HERE = Path(__file__).parent

START, RESUME = "start", "resume"

QUICK = ("text_classification", "chat", "packed_lm")
QUICK_PEERS = ("hf_trainer", "hf_trainer_grouped", "trl_grouped", "litgpt", "loop")


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        names: Workloads, points of curves, `start` and `resume`.
        peers: Only these; None takes all that a workload has.
        rounds: How often each runs.
        quick: Whether on few rows.
        rows: Training rows of every workload; None takes each one's own.
        limit: Seconds that a run's training may take.
        threads: Threads of each run; several ranks share them.
        data: Folder of the datasets.
        cache: Folder of what the peers start from.
    """

    names: Sequence[str]
    peers: Sequence[str] | None
    rounds: int
    quick: bool
    rows: int | None
    limit: float
    threads: int
    data: Path
    cache: Path


def main() -> None:
    """Run the benchmark, and write the results after each workload."""
    options = _options()
    if options.gpu and not _has_gpu():
        sys.exit("The GPU suite needs a GPU, and this machine has none that PyTorch can use.")
    groups = {name: [point for point in CURVES if point.startswith(f"{name}_")] for name in _curve_names()}
    names = [point for name in _names(options) for point in groups.get(name, [name])]
    plan = Plan(
        names,
        options.peers or (QUICK_PEERS if options.quick else None),
        options.rounds or (1 if options.quick else 3),
        options.quick,
        options.rows,
        options.limit or (60.0 if options.quick else 200.0),
        options.threads,
        options.data,
        options.cache / ("quick" if options.quick else "full"),
    )
    kind = "gpu" if options.gpu else "quick" if options.quick else "cpu"
    path = options.output / f"{kind}.json"
    for name in plan.names:
        runs = list(_runs(name, plan))
        collected = results.merge(results.read(path), runs, machine.describe(plan.threads), adds=options.add)
        results.write(path, collected)
        report.write(path.with_suffix(".md"), collected, plot.draw(path.with_suffix(".png"), collected))
    print(f"results: {path}, {path.with_suffix('.md')}")


def _runs(name: str, plan: Plan) -> Iterator[dict[str, Any]]:
    """Run a workload, or the starts, and say what came of each run."""
    if name == RESUME:
        env = environment(plan.cache, plan.threads)
        for run in resume.measure(plan.cache / RESUME, plan.rounds, env, plan.peers):
            print(_line(run), flush=True)
            yield run
        return
    workload = find(START_WORKLOAD if name == START else name)
    env = environment(plan.cache, max(1, plan.threads // workload.ranks))
    folder = plan.cache / workload.name
    command = [sys.executable, "-m", "benchmarks.preparing", workload.name]
    rows = plan.rows or workload.rows[1 if plan.quick else 0]
    command += ["--data", str(plan.data), "--folder", str(folder), "--rows", str(rows)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"{name} cannot be prepared:\n{done.stderr[-3000:]}")
    if name == START:
        runs = measure(Prepared(folder), plan.rounds, env)
    else:
        peers = [peer for peer in workload.peers if plan.peers is None or peer in plan.peers]
        runs = run_all(workload, Prepared(folder), peers, plan.rounds, env, plan.limit)
    curve, _, value = name.rpartition("_")
    for run in runs:
        print(_line(run), flush=True)
        yield {**run, "curve": curve, "value": int(value)} if name in CURVES else run


def _line(run: dict[str, Any]) -> str:
    what = f"{run['workload']:<22} {run['peer']:<20}"
    if run["error"]:
        return f"{what} failed: {run['error'].strip().splitlines()[-1][:150]}"
    if run["workload"] == START:
        return f"{what} {number(run['start_seconds'], ' s')}"
    if run["workload"] == RESUME:
        return f"{what} {run['kind']}, after {run['steps_done']:,} steps: {number(run['resume_seconds'], ' s')}"
    speed, memory = number(run["tokens_per_second"], " tokens/s", 0), number((run["memory"] or 0) / 1e6, " MB", 0)
    return f"{what} {speed:>18} {memory:>10}  loss {number(run['loss'], digits=4)}"


def _curve_names() -> list[str]:
    return list(dict.fromkeys(name.rpartition("_")[0] for name in CURVES))


def _names(options: argparse.Namespace) -> Sequence[str]:
    everything = list(ON_GPU) if options.gpu else [*ON_CPU, START, RESUME, *_curve_names()]
    known = [*ON_CPU, *ON_GPU, *CURVES, START, RESUME, *_curve_names()]
    if unknown := [name for name in options.only or () if name not in known]:
        sys.exit(f"unknown: {', '.join(unknown)}. There are: {', '.join(everything)}.")
    return options.only or (QUICK if options.quick else everything)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    data = os.environ.get("LIT_HF_DATA", "data")
    parser.add_argument("--data", type=Path, default=Path(data), help="folder of the datasets; default: $LIT_HF_DATA")
    parser.add_argument("--quick", action="store_true", help="three workloads on few rows, one round: five minutes")
    parser.add_argument("--gpu", action="store_true", help="the suite for one GPU")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="workloads, curves, points of curves, `start`, `resume`"
    )
    parser.add_argument("--peers", nargs="+", metavar="PEER", help="only these peers")
    parser.add_argument("--add", action="store_true", help="keep the earlier rounds of the workloads, too")
    parser.add_argument("--rounds", type=int, help="how often each runs; default: 3, quick 1")
    parser.add_argument("--rows", type=int, help="training rows of every workload; default: each one's own")
    parser.add_argument("--limit", type=float, help="seconds that training may take; default: 200, quick 60")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of a run; default: all cores")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", help="folder of weights and encoded rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
