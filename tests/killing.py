"""Runs `lit-hf fit` in processes that are killed at chosen moments, and takes digests of what is left of them.

A process forks from a server that has imported everything, so that a start costs little. A moment is the n-th call of a
function of lit-hf of one phase (a step, a validation, a save, the export): SIGKILL comes there, whatever the
machine's speed.
"""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lit_hf

PHASES = {
    "step": ("training/module.py", "training/callbacks/", "data/batching.py", "data/order.py"),
    "save": ("checkpoints.py", "training/saving.py", "training/callbacks.checkpoints.py"),
    "export": ("export/",),
    "data": ("data/",),
    "log": ("training/tracking.py", "run.py"),
}
"""Whose functions' calls are moments of a phase; those inside of a validation are moments of `validation`."""

POLLS = ("is_busy", "has_failed", "_ask", "_raise")
"""Functions that ask whether a checkpoint is written: how often depends on the disk, so no moment is counted there."""

SOURCES = str(Path(lit_hf.__file__).parent) + os.sep


class Moment(NamedTuple):
    """The n-th call of a phase, counted from 1, in one of the processes that train together."""

    phase: str
    call: int
    rank: int = 0


class Ending(NamedTuple):
    """How a process ended, and how many calls of each phase each rank made."""

    code: int
    calls: Sequence[Mapping[str, int]]


def run(
    arguments: Sequence[str],
    kill_at: Moment | None = None,
    sabotage: Callable[[], None] | None = None,
    ranks: int = 1,
) -> Ending:
    """Run `lit-hf` in a process of its own, or in several that train together.

    Args:
        arguments: What follows `lit-hf`.
        kill_at: When one is killed, and at once all others.
        sabotage: Breaks something in the processes before they start.
        ranks: How many train together.

    Returns:
        The ending of the one that was to be killed, or else of the first.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killing", "lit_hf.cli.fit", "transformers.models.bert.modeling_bert"])
    port, processes, receivers = _free_port(), [], []
    for rank in range(ranks):
        receiver, sender = context.Pipe(duplex=False)
        ranked = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
        moment = kill_at if kill_at is not None and kill_at.rank == rank else None
        arguments_of = (list(arguments), moment, sabotage, str(Path.cwd()), ranked if ranks > 1 else {}, sender)
        processes.append(context.Process(target=_work, args=arguments_of))
        processes[-1].start()
        sender.close()
        receivers.append(receiver)
    multiprocessing.connection.wait([process.sentinel for process in processes])
    if any(process.exitcode for process in processes):
        for process in processes:
            if kill_at is None:  # those that end of themselves are let
                process.join(30)
            process.kill()
    calls = [_received(receiver) for receiver in receivers]
    for process in processes:
        process.join()
    code = processes[0 if kill_at is None else kill_at.rank].exitcode
    assert code is not None
    return Ending(code, calls)


def _received(receiver: Any) -> Mapping[str, int]:
    try:
        return receiver.recv()
    except EOFError:
        return {}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _work(
    arguments: list[str], kill_at: Moment | None, sabotage: Any, folder: str, ranked: dict[str, str], sender: Any
) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from lit_hf.cli.main import main

    os.environ |= ranked
    rank_zero_only.rank = int(ranked.get("LOCAL_RANK", "0"))  # it was imported before
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if sabotage is not None:
        sabotage()
    counter = _Counter(kill_at)
    threading.setprofile(counter.see)  # checkpoints are written in a thread
    sys.setprofile(counter.see)
    code = main(arguments)
    sys.setprofile(None)
    sender.send(dict(counter.calls))
    sys.exit(code)


class _Counter:
    """Counts the calls of each phase, and kills the process at one of them."""

    def __init__(self, kill_at: Moment | None) -> None:
        self.calls: Counter[str] = Counter()
        self._kill_at = kill_at
        self._process = os.getpid()
        self._validates = False

    def see(self, frame: Any, event: str, argument: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(SOURCES):
            return
        if os.getpid() != self._process:  # a loader's worker
            return
        phase = self._phase(frame.f_code.co_filename.removeprefix(SOURCES), frame.f_code.co_name)
        if phase is None:
            return
        self.calls[phase] += 1
        if self._kill_at is not None and (phase, self.calls[phase]) == self._kill_at[:2]:
            os.kill(self._process, signal.SIGKILL)

    def _phase(self, path: str, function: str) -> str | None:
        if function in POLLS:
            return None
        if path == "training/module.py":
            self._validates = function in ("validation_step", "on_validation_epoch_end", "_log_metrics")
        phase = next((name for name, paths in PHASES.items() if path.startswith(paths)), None)
        return "validation" if phase == "step" and self._validates else phase


def digest(run_folder: Path) -> dict[str, str]:
    """Return what a finished run left: weights, optimizer state, what was logged, results; as digests or text."""
    from lit_hf.checkpoints import STATE, found
    from lit_hf.cli.runs import read_checkpoint

    newest, *_ = found(run_folder / "checkpoints")
    state = read_checkpoint(newest / STATE)
    record = json.loads((run_folder / "run.json").read_text())
    with (run_folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        "checkpoints": " ".join(folder.name for folder in found(run_folder / "checkpoints")),
        "weights": _hash(state["state_dict"]),
        "optimizer": _hash(state["optimizer_states"]),
        "schedule": _hash(state["lr_schedulers"]),
        "metrics.csv": json.dumps(rows),
        "results": json.dumps([record[key] for key in ("state", "steps", "epochs", "metrics", "best")]),
        "export": _hash({path.name: path.read_bytes() for path in (run_folder / "export").glob("*.safetensors")}),
    }


def _hash(value: Any) -> str:
    """Return a hash of nested values, their tensors by their bytes."""
    import torch

    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            for key in sorted(part, key=str):
                add(str(key))
                add(part[key])
        elif isinstance(part, list | tuple):
            for one in part:
                add(one)
        elif isinstance(part, torch.Tensor):
            sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
            sha.update(
                part.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes() if part.numel() else b""
            )
        else:
            sha.update(part if isinstance(part, bytes) else repr(part).encode())

    add(value)
    return sha.hexdigest()[:16]
