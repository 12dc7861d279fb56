"""lit-hf, by its own command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.measuring import StepClock
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import Workload


def train(peer: str, workload: Workload, prepared: Prepared, clock: StepClock, folder: Path) -> None:
    """Run `lit-hf fit` and keep what it exports."""
    from lit_hf.cli.main import main

    output = folder.parent / "runs"
    if code := main(["fit", "-c", str(prepared.config), "--name", "run", "--output_dir", str(output), "--debug"]):
        sys.exit(code)
    shutil.move(output / "run" / "export", folder)
