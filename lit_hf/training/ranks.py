"""The processes that Lightning starts for the other ranks of a machine: none is lost in silence, none left behind."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_hf.errors import InputError, LitHFError, Problem, TrainingError

_log = logging.getLogger("lit_hf")

SECONDS_TO_LEAVE = 10.0
"""How long a rank may take to notice that another one is gone; where it cannot, it is ended."""

_LAUNCHER = "LIT_HF_LAUNCHER"
"""The variable by which a rank knows the process that started it."""

_PR_SET_PDEATHSIG = 1


def watch_ranks(trainer: Trainer) -> None:
    """Have the trainer start the other ranks by a launcher that says which was lost, and leaves none behind.

    Those that somebody else starts (torchrun, SLURM) are theirs to watch.

    Raises:
        InputError: If the ranks are to meet at a port that is in use.
    """
    if os.environ.get(_LAUNCHER) == str(os.getppid()):
        _end_with_parent()
        return
    strategy: Any = trainer.strategy
    old = strategy.launcher
    if type(old) is _SubprocessScriptLauncher and not old.cluster_environment.creates_processes_externally:
        _check_port(os.environ.get("MASTER_PORT"))
        strategy._launcher = RankLauncher(old.cluster_environment, old.num_processes, old.num_nodes)


def _check_port(port: str | None) -> None:
    if port is None:
        return  # Lightning finds a free one
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as meeting:
        meeting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            meeting.bind(("", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            what = f"the ranks cannot meet at port {port}: {getattr(error, 'strerror', None) or error}."
            cure = "Set the variable to another one, or unset it: on one machine a free one is found."
            raise InputError(Problem("MASTER_PORT", what, cure)) from error


class RankLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher, with an eye on what it started.

    Lightning's own observer kills all processes, the main one included, and says nothing that a user sees.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other ranks, and run the function.

        Raises:
            TrainingError: If another rank was lost.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        os.environ[_LAUNCHER] = str(os.getpid())
        self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        done = threading.Event()
        threading.Thread(target=self._watch, args=(done,), name="ranks", daemon=True).start()
        try:
            return function(*args, **kwargs)
        except (LitHFError, SIGTERMException, KeyboardInterrupt):
            raise
        except Exception as error:  # the first that is seen of a lost rank is a failed communication
            if (lost := self._find_lost(seconds=2)) is None:
                raise
            raise TrainingError(lost) from error
        finally:
            done.set()
            if sys.exc_info()[0] is not None:
                _end(self.procs)

    def _watch(self, done: threading.Event) -> None:
        """End this process where it does not notice that another one is gone: a GPU's communication waits for long."""
        while not done.wait(0.5):
            if (lost := self._find_lost()) is not None and not done.wait(SECONDS_TO_LEAVE):
                _log.error(str(lost))
                _end(self.procs, seconds=0)
                os._exit(TrainingError.exit_code)

    def _find_lost(self, seconds: float = 0) -> Problem | None:
        """Return what is known of a process that failed, if one does within that many seconds."""
        until = time.monotonic() + seconds
        while True:
            for local_rank, process in enumerate(self.procs, start=1):
                if process.poll():
                    rank = self.cluster_environment.node_rank() * self.num_processes + local_rank
                    return Problem(f"rank {rank}", f"{_how(process.returncode)}. All ranks were ended.")
            if time.monotonic() >= until:
                return None
            time.sleep(0.1)


def _how(code: int) -> str:
    if code >= 0:
        return f"the process ended with exit code {code}; what it said stands above"
    name = signal.Signals(-code).name
    memory = " (as the system does when memory runs out)" if name == "SIGKILL" else ""
    return f"the process was killed by {name}{memory}"


def _end(processes: Sequence[subprocess.Popen[Any]], seconds: float = 5) -> None:
    """Wait that long for the other ranks to end, then kill them: they would wait for this one."""
    until = time.monotonic() + seconds
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()


def _end_with_parent() -> None:
    """Have the system end this process with the one that started it, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
