"""A SLURM cluster of this machine alone: two nodes, each a daemon, that share its file system."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")

CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerParameters=sched_interval=1
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={first_port} CPUs=1 State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={second_port} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=one,two Default=YES State=UP
"""


def is_missing() -> str | None:
    """Return what keeps a cluster from being started here; None where nothing does."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"needs SLURM (Debian: slurm-wlm); there is no {', '.join(missing)}"
    return None if os.geteuid() == 0 else "starts SLURM's daemons, for which it must be root"


class Cluster:
    """A cluster that runs.

    Args:
        folder: Of its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def submit(self, script: Path) -> str:
        """Submit a job, and return its number."""
        return self._ask("sbatch", "--parsable", str(script)).strip()

    def tell(self, job: str, signal: str) -> None:
        """Send a signal to what a job has started."""
        self._ask("scancel", f"--signal={signal}", job)

    def wait(self, job: str, seconds: float = 240) -> None:
        """Wait until a job is over."""
        until = time.monotonic() + seconds
        while self._ask("squeue", "--noheader", "--jobs", job, check=False).strip():
            assert time.monotonic() < until, f"job {job} is not over after {seconds:.0f} s\n{self.logs()}"
            time.sleep(0.3)

    def logs(self) -> str:
        """Return the ends of the daemons' logs."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-1500:]}" for path in self.folder.glob("*.log"))

    def _ask(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}\n{self.logs()}"
        return done.stdout


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and stop it in the end."""
    for name in ("munge", "state", "spool-one", "spool-two"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    ports = dict(zip(("controller_port", "first_port", "second_port"), free_ports(3), strict=True))
    (folder / "slurm.conf").write_text(CONFIG.format(host=socket.gethostname(), folder=folder, **ports))
    version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
    # none is used; before 23 one must be named all the same
    plugin = "disabled" if int(version.partition(".")[0]) >= 23 else "cgroup/v1"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    munge = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed", "log-file": "log"}
    found, running = Cluster(folder), []
    commands = [
        ["munged", "--foreground", "--force", *(f"--{name}={folder}/munge/{file}" for name, file in munge.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "one"],
        ["slurmd", "-D", "-N", "two"],
    ]
    try:
        for command in commands:
            with (folder / f"{command[0]}-{command[-1]}.out".replace("/", "_")).open("w") as output:
                running.append(subprocess.Popen(command, env=found.environment, stdout=output, stderr=output))
            time.sleep(0.5)
        _wait_for_nodes(found)
        yield found
    finally:
        for job in found._ask("squeue", "--noheader", "--format=%i", check=False).split():
            found._ask("scancel", "--signal=KILL", "--full", job, check=False)
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(20)


def _wait_for_nodes(found: Cluster) -> None:
    until = time.monotonic() + 60
    while found._ask("sinfo", "--noheader", "--format=%t", check=False).split() != ["idle"]:
        assert time.monotonic() < until, found.logs()
        time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens at."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    return ports
