"""A run is a folder: everything about one run, and the input of every later verb."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_hf.checkpoints import STATE, Damaged, newest_valid, read_manifest, verify
from lit_hf.errors import InputError, Problem
from lit_hf.writing import flush_one, lock, write_atomically

SECONDS_TO_LET_GO = 10.0
"""How long the processes that prepare batches may take to notice that the run they belong to was killed."""


class RunFolder:
    """The places in a run's folder, and its record `run.json`.

    Args:
        path: The folder; it is made by `create`, not here.

    Attributes:
        config: The resolved config, as YAML, with no secret in it.
        checkpoints: Folder of the checkpoints, one folder each.
        tokenizer: The tokenizer as it was used, saved by `save_pretrained`.
        metrics: Every logged value, as CSV.
        export: The plain Hugging Face folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self.metrics = self.path / "metrics.csv"
        self.export = self.path / "export"
        self._record = self.path / "run.json"

    def checkpoint(self, which: Literal["best", "last"]) -> Path | None:
        """Return the state of the newest valid checkpoint, or of the best one that it knows; None if there is none.

        Its files are read to verify them.
        """
        newest, _ = newest_valid(self.checkpoints)
        if newest is None or which == "last":
            return newest and newest / STATE
        best = newest.with_name(read_manifest(newest).best.name)
        try:
            if best != newest:  # which is verified already
                verify(best)
        except Damaged:
            return None
        return best / STATE

    def exists(self) -> bool:
        """Say whether a run was started here."""
        return self.config.is_file() and self._record.is_file()

    def create(self) -> None:
        """Make the folder.

        Raises:
            InputError: If it cannot be written to.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise InputError(
                Problem(
                    "output_dir",
                    f"the run's folder {self.path} cannot be written: {error.strerror}.",
                    "Give a folder that you may write to: --output_dir <folder>.",
                )
            ) from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the run for this process: two at once would write over each other's checkpoints and metrics.

        The system lets go of it when the process ends, however it does. Where it cannot be held (no such locks on the
        folder's file system), nothing is done. Folders that are made for it go again if they stay empty.

        Raises:
            InputError: If another process has it.
        """
        handle = None
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with suppress(OSError):  # a folder that cannot be made is told by `create`, with all else that is wrong
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        try:
            if handle is not None and not _lock(handle):
                what = f"another process is training the run {self.path}."
                cure = "Wait for it or end it, or start another run: --name <name>."
                raise InputError(Problem("name", what, cure))
            yield
        finally:
            if handle is not None:
                os.close(handle)
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()

    def flush_metrics(self) -> None:
        """Have the disk hold what was logged so far: no checkpoint may be ahead of it."""
        for path in (self.metrics, self.path):
            if path.exists():
                flush_one(path)

    def read_config(self) -> dict[str, Any]:
        """Return the config that the run was started with.

        Raises:
            InputError: If there is no run here.
        """
        if not self.config.is_file():
            raise InputError(
                Problem(str(self.path), "no run is here: it has no config.yaml.", "Start one: lit-hf fit.")
            )
        return yaml.safe_load(self.config.read_text(encoding="utf-8"))

    def write_config(self, config: dict[str, Any]) -> None:
        """Write `config.yaml`; a reader sees it whole or not at all."""
        write_atomically(self.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))

    def read_record(self) -> dict[str, Any]:
        """Return `run.json`, or an empty record where there is none."""
        if not self._record.is_file():
            return {}
        return json.loads(self._record.read_text(encoding="utf-8"))

    def update_record(self, **fields: Any) -> None:
        """Add fields to `run.json`, or replace them; the file is replaced whole."""
        write_atomically(self._record, json.dumps({**self.read_record(), **fields}, indent=2, default=str) + "\n")


def _lock(handle: int) -> bool:
    """Lock what a handle is of until it is closed, and say whether nobody else has; true where there are no locks."""
    until = time.monotonic() + SECONDS_TO_LET_GO
    while lock(handle) is False:
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def run_name(configs: Sequence[str | Path]) -> str:
    """Return the name of a run that has none, made of its config files' names: the same command is the same run."""
    stems = (re.sub(r"[^\w.-]+", "-", Path(config).stem) for config in configs)
    return "-".join(stems) or "run"


def check_name(name: str) -> str:
    """Return a run's name, if it is one: a folder of its own in the folder of all runs.

    Raises:
        InputError: If it is not, such as one that leads elsewhere.
    """
    if not re.fullmatch(r"[\w.-]*\w[\w.-]*", str(name)):
        raise InputError(Problem("name", f"{name!r} is no name.", "Use letters, digits, '.', '_' and '-' only."))
    return str(name)
