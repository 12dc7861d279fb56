"""One run, in a process of its own: `python -m benchmarks.once WORKLOAD PEER ...` writes its figures as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.catalog import find
from benchmarks.measuring import Memory, OutOfTime, StepClock, figures
from benchmarks.peers import IN_LIT_HF_S_ORDER, MODULES
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import Workload

LIBRARIES = {
    "lit_hf": ["lit_hf.cli.fit"],
    "hf_trainer": [],
    "trl": ["trl.trainer.sft_trainer", "trl.trainer.dpo_trainer"],
    "lightning": ["lightning"],
    "litgpt": ["litgpt.pretrain"],
    "accelerate": ["accelerate"],
    "loop": [],
}
"""What a peer imports; memory counts from there on."""

SHARED = ["torch", "datasets", "transformers.trainer", "transformers.integrations.peft", "peft"]


def run(workload: Workload, peer: str, prepared: Prepared, limit: float, started: float) -> dict[str, Any]:
    """Train once, and return the figures.

    Args:
        workload: The work.
        peer: Who does it.
        prepared: What it starts from.
        limit: Seconds that training may take.
        started: When the process was started.

    Returns:
        The figures of the steps; `start_seconds`, from the start of the process to the end of the first step;
        `finished`, and `loss` and `accuracy` on the validation rows where it has.
    """
    for module in [*SHARED, *LIBRARIES[MODULES[peer]]]:
        importlib.import_module(module)
    known = prepared.tokens_by_step if peer in IN_LIT_HF_S_ORDER else None
    clock = StepClock(Memory(workload.on_gpu), limit, known)
    clock.start()
    found: dict[str, float | None] = {"loss": None, "accuracy": None}
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        folder = Path(place) / "trained"
        try:
            importlib.import_module(f"benchmarks.peers.{MODULES[peer]}").train(peer, workload, prepared, clock, folder)
            finished = True
        except OutOfTime:
            finished = False
        result = figures(clock.marks)
        if finished and workload.validation_rows:
            from benchmarks.evaluating import quality

            found = quality(workload, prepared, folder)
    start = time.time() - started - (time.perf_counter() - clock.marks[0].seconds) if clock.marks else None
    return {**result, "start_seconds": start, "finished": finished, **found}


def main() -> None:
    """Run what the arguments say; only the first of several ranks writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("peer", choices=sorted(MODULES))
    parser.add_argument("--prepared", type=Path, required=True, help="folder of what the peers start from")
    parser.add_argument("--limit", type=float, required=True, help="seconds that training may take")
    parser.add_argument("--started", type=float, required=True, help="when the process was started")
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the figures")
    options = parser.parse_args()
    result = run(find(options.workload), options.peer, Prepared(options.prepared), options.limit, options.started)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        options.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
