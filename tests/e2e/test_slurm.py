"""A job of SLURM on two nodes trains, ends when it is told that its time is over, and the next one goes on exactly."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.killing import digest
from tests.slurm import Cluster, cluster, free_ports, is_missing
from tests.tiny_run import write

pytestmark = [pytest.mark.slow, pytest.mark.skipif(is_missing() is not None, reason=str(is_missing()))]

JOB = """\
#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=1 --output={folder}/%x.txt --chdir={folder} --job-name={name}
export MASTER_ADDR=127.0.0.1 MASTER_PORT={port} OMP_NUM_THREADS=1 PYTHONPATH={source}
srun --kill-on-bad-exit=0 {python} -m lit_hf fit -c tiny.yaml --name {run}
echo $? > {folder}/{name}.code
"""
"""Two nodes with a process each: MASTER_ADDR, as their names are those of no machine."""


class Jobs:
    """Submits trainings.

    Args:
        folder: Of the config and the rows.
        slurm: Where to.
    """

    def __init__(self, folder: Path, slurm: Cluster) -> None:
        self.folder = folder
        self.slurm = slurm

    def submit(self, name: str, run: str) -> str:
        """Submit a job of that name, which trains a run, and return its number."""
        script = self.folder / f"{name}.sh"
        (port,) = free_ports(1)
        settings = {"folder": self.folder, "name": name, "run": run, "python": sys.executable, "source": ROOT}
        script.write_text(JOB.format(**settings, port=port))
        return self.slurm.submit(script)

    def end(self, name: str, job: str) -> int:
        """Wait for a job, and return how what it started ended."""
        self.slurm.wait(job)
        code = self.folder / f"{name}.code"
        assert code.is_file(), self.told(name) + self.slurm.logs()
        return int(code.read_text())

    def told(self, name: str) -> str:
        """Return what a job has printed."""
        path = self.folder / f"{name}.txt"
        return path.read_text() if path.is_file() else ""


@pytest.fixture
def jobs(tmp_path: Path, tiny_text_model: Path):
    folder = tmp_path / "shared"
    folder.mkdir()
    trainer = {"num_nodes": 2, "devices": 1, "strategy": "ddp", "max_epochs": 30, "log_every_n_steps": 1}
    changes = {f"trainer__{key}": value for key, value in trainer.items()}
    write(folder, tiny_text_model, data__batch_size=4, checkpoint_every=2, **changes)
    with cluster(tmp_path / "slurm") as slurm:
        yield Jobs(folder, slurm)


def test_a_job_that_is_told_to_end_is_gone_on_with_by_the_next_one(jobs: Jobs) -> None:
    whole = jobs.submit("whole", "whole")
    assert jobs.end("whole", whole) == 0, jobs.told("whole")

    first = jobs.submit("first", "part")
    _wait_for_step(jobs.folder / "runs" / "part", 20)
    jobs.slurm.tell(first, "USR1")
    assert jobs.end("first", first) == 75, jobs.told("first")
    record = json.loads((jobs.folder / "runs" / "part" / "run.json").read_text())
    assert (record["state"], record["hardware"]["nodes"], record["hardware"]["world_size"]) == ("preempted", 2, 2)

    second = jobs.submit("second", "part")
    assert jobs.end("second", second) == 0, jobs.told("second")
    assert "resuming" in jobs.told("second")
    assert digest(jobs.folder / "runs" / "part") == digest(jobs.folder / "runs" / "whole")
    assert not list(jobs.folder.glob("**/hpc_ckpt*"))


def _wait_for_step(run: Path, step: int) -> None:
    until = time.monotonic() + 120
    while not any(int(folder.name[5:]) >= step for folder in run.glob("checkpoints/step-????????")):
        assert time.monotonic() < until, f"no checkpoint of step {step} in {run}"
        time.sleep(0.1)
