"""Who runs when: all peers of a workload in turn, again and again, each run in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.preparing import Prepared
from benchmarks.ratios import OURS
from benchmarks.workloads.base import Workload

START_LIMIT = 300.0
"""Seconds that a process may take beside its training: imports, the model, the first step, the evaluation."""


def rounds(peers: Sequence[str], count: int) -> Iterator[tuple[int, str]]:
    """Yield the number of a round and who runs: every second round goes backwards, so that a drift hits all alike."""
    everybody = [OURS, *peers]
    for number in range(count):
        for peer in everybody if number % 2 == 0 else reversed(everybody):
            yield number, peer


def environment(folder: Path, threads: int) -> dict[str, str]:
    """Return the environment that every run gets: its threads, no network, caches of the benchmark's own."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "WANDB_MODE": "disabled",
    }


def run_once(workload: Workload, peer: str, prepared: Prepared, env: dict[str, str], limit: float) -> dict[str, Any]:
    """Run a peer once.

    Args:
        workload: The work.
        peer: Who does it.
        prepared: What it starts from.
        env: The environment.
        limit: Seconds that training may take.

    Returns:
        Its figures; `error`, the end of what it printed, where it failed or had to be ended.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        output = Path(place) / "figures.json"
        options = {"prepared": prepared.folder, "limit": limit, "started": time.time(), "output": output}
        command = [sys.executable, "-m", "benchmarks.once", workload.name, peer]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        try:
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, errors="replace", timeout=limit + START_LIMIT
            )
        except subprocess.TimeoutExpired:
            return {"finished": False, "error": f"ended after {limit + START_LIMIT:.0f} s"}
        if not output.is_file():
            return {"finished": False, "error": (done.stderr or done.stdout).strip()[-2000:]}
        return {**json.loads(output.read_text()), "error": None}


def run_all(
    workload: Workload, prepared: Prepared, peers: Sequence[str], count: int, env: dict[str, str], limit: float
) -> Iterator[dict[str, Any]]:
    """Run lit-hf and the peers in turn, and yield each run as it ends; who could not do it once is not asked again."""
    failed: set[str] = set()
    for number, peer in rounds(peers, count):
        if peer in failed:
            continue
        result = run_once(workload, peer, prepared, env, limit)
        if result["error"]:
            failed.add(peer)
        yield {"workload": workload.name, "peer": peer, "round": number, **result}
