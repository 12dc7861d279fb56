"""Checkpoints are written beside the training, which waits while the state is copied, and for the one before."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.apply_func import apply_to_collection
from torch import Tensor

from lit_hf.errors import Problem, TrainingError
from lit_hf.training.shards import read_whole
from lit_hf.writing import flush_one

SLACK = 16 * 2**20
"""Bytes that a disk must have beside the state: for the manifest, and what else is written meanwhile."""


class Writer:
    """Does what it is given one after the other, in a thread of its own.

    After an error it does nothing any more: a checkpoint whose state could not be written is not published.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._error: BaseException | None = None
        self._is_raised = False
        self._last: Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        """Whether something went wrong that was not raised yet."""
        return self._error is not None and not self._is_raised

    @property
    def is_busy(self) -> bool:
        """Whether something that was submitted is not done yet."""
        return self._last is not None and not self._last.done()

    def submit(self, work: Callable[[], object]) -> None:
        """Do this after what was submitted before, unless that goes wrong."""
        self._start(lambda: work() if self._error is None else None)

    def agree(self, all_are_well: Callable[[bool], bool]) -> None:
        """Fail, after what was submitted before, if that went wrong in another process.

        Args:
            all_are_well: Tells the others whether it went well here, and returns whether it did everywhere.
        """

        def ask() -> None:
            if not all_are_well(self._error is None) and self._error is None:
                raise TrainingError(Problem("checkpoints", "another process could not write the checkpoint."))

        self._start(ask)

    def check(self) -> None:
        """Raise what went wrong so far, once.

        Raises:
            TrainingError: If a checkpoint could not be written.
        """
        if self.has_failed:
            error, self._is_raised = self._error, True
            if isinstance(error, TrainingError):
                raise error
            assert error is not None
            raise TrainingError(_unwritten(error)) from error

    def wait(self, seconds: float | None = None) -> None:
        """Wait until all is done, or for so many seconds; what went wrong is not raised."""
        if self._last is not None:
            wait([self._last], seconds)

    def close(self) -> None:
        """Wait until all is done, and end the thread; what went wrong is not raised."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None

    def _start(self, work: Callable[[], object]) -> None:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._last = self._executor.submit(self._run, work)

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # raised in the training's own thread
            self._error = self._error or error


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints beside the training, and reads them as data: tensors and plain values.

    Args:
        writer: Writes them.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Copy the state to host memory now, and write it later; what goes wrong is the writer's to raise."""
        self.write(checkpoint, Path(path))

    def write(self, state: dict[str, Any], path: Path, ranks: int = 1) -> None:
        """Copy a state to host memory now, and write it later.

        Args:
            state: Nested tensors and plain values.
            path: Where to.
            ranks: How many write as much at the same time, to the same disk.
        """
        size, copied = _size(state) * ranks, on_host(state)

        def write() -> None:
            _check_space(path.parent, size)
            torch.save(copied, path)
            if ranks > 1:
                flush_one(path)  # another machine, which publishes it, cannot

        self.writer.submit(write)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a local checkpoint, put together if it is cut; nothing is unpickled, whatever is asked for."""
        if Path(path).is_dir():
            return read_whole(Path(path))
        return torch.load(path, map_location=map_location, weights_only=True)


def on_host(state: Any) -> Any:
    """Return a copy of a state with its tensors in host memory; tensors that are one stay one."""
    copies: dict[tuple[Any, ...], Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        key = (tensor.device, tensor.dtype, tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() == 0 or key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        return copies[key]

    return apply_to_collection(state, Tensor, copy)


def _size(state: Any) -> int:
    sizes: list[int] = []
    apply_to_collection(state, Tensor, lambda tensor: sizes.append(tensor.numel() * tensor.element_size()))
    return sum(sizes)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + SLACK:
        what = f"the checkpoint needs {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free on its disk."
        cure = "Make room; the same command then goes on from the last checkpoint."
        raise TrainingError(Problem(str(folder.parent), what, cure))


def _unwritten(error: BaseException) -> Problem:
    cure = "Mend that; the same command then goes on from the checkpoint before it."
    return Problem("checkpoints", f"the checkpoint could not be written: {error}.", cure)
