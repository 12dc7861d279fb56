"""A plan as people read it, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_hf.planning.changes import Change
from lit_hf.planning.layouts import ALONE, DDP, FSDP2, TENSOR_PARALLEL, Layout
from lit_hf.planning.machine import USABLE
from lit_hf.planning.plan import Plan
from lit_hf.planning.planner import Planner
from lit_hf.planning.timing import RECOMPUTED

WIDTH = 120
"""Columns of the tables."""

PARTS = ("weights", "gradients", "optimizer", "activations", "buffers")


def as_json(planner: Planner, plan: Plan) -> str:
    """Return the plan as JSON: bytes, seconds, operations, counts."""
    work = {key: value for key, value in vars(planner.work).items() if key != "batch"}
    values: dict[str, Any] = {
        "machine": {**asdict(planner.machine), "usable": planner.machine.usable},
        "parameters": {**plan.parameters._asdict(), "by_dtype": plan.dtypes},
        "data": work,
        "precision": planner.case.setting.precision,
        "memory": {
            "one_device": {**plan.peaks._asdict(), "activations": plan.peaks.activations, "total": plan.peaks.total},
            "layouts": [
                {**asdict(way), "total": way.total, "fits": planner.machine.fits(way.total)} for way in plan.layouts
            ],
            "changes": [asdict(change) for change in plan.changes],
        },
        "time": {**asdict(plan.time), "total": plan.time.total},
        "advice": advice(planner, plan),
        "notes": notes(planner),
    }
    return json.dumps(values, indent=2)


def advice(planner: Planner, plan: Plan) -> str:
    """Return in a few words whether the run fits, and which change makes it fit."""
    who = "each device needs" if planner.machine.world > 1 else "the run needs"
    needed = f"{who} {_size(plan.layouts[0].total)}, {_size(planner.machine.usable)} may be filled."
    if planner.machine.fits(plan.layouts[0].total):
        return f"It fits: {needed}"
    short = f"It does not fit: {needed}"
    if not plan.changes:
        return short
    fitting = next((change for change in plan.changes if change.fits), None)
    if fitting is None:
        return f"{short} Nothing tried makes it fit: take shorter rows, larger devices, or a smaller model."
    what = f"{_listed(fitting.names)} ({_size(fitting.total or 0)})"
    if len(fitting.names) == 1:
        return f"{short} The smallest change that makes it fit: {what}. {_how(fitting)}"
    return f"{short} No single change makes it fit. The smallest combination that does: {what}. {_how(fitting)}"


def _how(change: Change) -> str:
    return f"Add to the command: {' '.join(change.options)}"


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def notes(planner: Planner) -> list[str]:
    """Return what the plan leaves out."""
    if not planner.case.setting.switches.compile:
        return []
    return ["what torch.compile saves, of memory and of time, is not known before: planned is without it"]


def show(planner: Planner, plan: Plan) -> None:
    """Print the plan."""
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    for name, text in (*_head(planner, plan), *_data(planner, plan)):
        console.print(f"[bold]{name:<12}[/bold] {text}")
    console.print()
    console.print(_memory(planner, plan.layouts))
    console.print()
    for name, text in _time(planner, plan):
        console.print(f"[bold]{name:<12}[/bold] {text}")
    if plan.changes:
        console.print()
        console.print(_changes(plan.changes))
    console.print()
    colour = "green" if planner.machine.fits(plan.layouts[0].total) else "yellow"
    console.print(f"[{colour}]{escape(advice(planner, plan))}[/{colour}]")


def _head(planner: Planner, plan: Plan) -> Iterator[tuple[str, str]]:
    machine, setting = planner.machine, planner.case.setting
    count = f"{machine.world} x " if machine.world > 1 else ""
    where = f" ({machine.nodes} nodes of {machine.devices})" if machine.nodes > 1 else ""
    memory = f"{_size(machine.memory)}{' each' if machine.world > 1 else ''}"
    yield "machine", f"{count}{machine.name}{where}, {memory}, {USABLE:.0%} of it may be filled"
    kinds = ", ".join(f"{_count(number)} {dtype}" for dtype, number in plan.dtypes.items())
    kinds = next(iter(plan.dtypes)) if len(plan.dtypes) == 1 else kinds
    trainable, total = plan.parameters.trainable, plan.parameters.total
    train = "all train" if trainable == total else f"{_count(trainable)} train ({trainable / max(total, 1):.2%})"
    yield "parameters", f"{_count(total)} ({kinds}); {train}"
    kept = [setting.precision]
    if setting.quantization is not None:
        kept.append("4 bits" if getattr(setting.quantization, "load_in_4bit", False) else "8 bits")
    kept += ["gradient checkpointing"] if setting.switches.gradient_checkpointing else []
    kept += [name for name in planner.strategies[:1] if name != ALONE]
    yield "training", ", ".join(kept)
    for note in notes(planner):
        yield "", note


def _data(planner: Planner, plan: Plan) -> Iterator[tuple[str, str]]:
    work, time = planner.work, plan.time
    count = f"{work.rows:,} row{'s' * (work.rows > 1)}"
    batch = f"{count} packed into one of {work.length:,}" if work.packed else f"{count} of up to {work.length:,}"
    yield "batch", f"{batch} tokens{' a device' if planner.machine.world > 1 else ''}"
    if work.batches is None or work.rows_in_all is None:
        yield "epoch", "its rows are not counted"
        return
    tokens = work.tokens * work.batches
    trained = f", {work.trained_tokens / work.tokens:.0%} of them trained" if work.trained_tokens is not None else ""
    of_tokens = f"{_count(tokens)} tokens ({work.padding:.1%} padding{trained})"
    yield "epoch", f"{work.rows_in_all:,} rows, {of_tokens}, {time.steps:,} step{'s' * (time.steps != 1)}"


def _memory(planner: Planner, ways: list[Layout]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="memory of each device", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for part in (*PARTS, "total"):
        table.add_column(part, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for index, way in enumerate(ways):
        fits = planner.machine.fits(way.total)
        cells = [_size(getattr(way, part)) for part in (*PARTS, "total")]
        table.add_row(way.name, *cells, _verdict(fits), style="" if index == 0 else "dim")
    if any(way.name == TENSOR_PARALLEL for way in ways):
        table.caption = f"{TENSOR_PARALLEL} is shown to compare: lit-hf trains with {DDP} and {FSDP2}"
        table.caption_justify = "left"
    return table


def _time(planner: Planner, plan: Plan) -> Iterator[tuple[str, str]]:
    time, machine, way = plan.time, planner.machine, plan.layouts[0]
    everyone = ", all devices together" if machine.world > 1 else ""
    again = f"; checkpointing computes {RECOMPUTED - 1:.0%} of it again"
    again = again if planner.case.setting.switches.gradient_checkpointing else ""
    yield "operations", f"{_scaled(time.flops, 'FLOP')} a step{everyone}{again}"
    rate = f"{machine.efficiency:.0%} of {_scaled(machine.flops, 'FLOP/s')} ({machine.source})"
    yield "computing", f"{_duration(time.computing)} a step, at {rate}"
    if machine.world > 1:
        link = machine.bandwidth(way.within_machine)
        kind = "on top of computing" if not way.overlaps else "while computing goes on"
        if way.overlaps and time.sending > time.computing:
            kind = "longer than computing, which waits for it"
        yield "sending", f"{_duration(time.sending)} a step over {_scaled(link, 'B/s')}, {kind}"
    total = "" if time.total is None else f", {_duration(time.total)} for {time.total_steps:,} steps"
    yield "time", f"{_duration(time.step)} a step{total}; validation and loading come on top"


def _changes(changes: list[Change]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title="memory with changes, each by itself", title_justify="left", title_style="bold"
    )
    table.add_column("", no_wrap=True)
    table.add_column("total", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("how", overflow="fold")
    for change in changes:
        size = _size(change.total) if change.total is not None else "-"
        verdict = _verdict(change.fits) if change.total is not None else "not possible"
        names = "\n".join(f"{'+ ' if index else ''}{name}" for index, name in enumerate(change.names))
        table.add_row(names, size, verdict, escape(change.why or "\n".join(change.options)))
    return table


def _verdict(fits: bool) -> str:
    return "[green]fits[/green]" if fits else "[red]too large[/red]"


def _size(count: float) -> str:
    """Return bytes in powers of 1024, as GPUs are measured by."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1024
    raise AssertionError


def _count(number: float) -> str:
    return _scaled(number, "").strip()


def _scaled(number: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000 or prefix == "E":
            break
        number /= 1000
    if not unit:
        prefix = {"G": "B"}.get(prefix, prefix)
        return f"{number:.3g}{prefix}"
    return f"{number:.3g} {prefix}{unit}"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"
