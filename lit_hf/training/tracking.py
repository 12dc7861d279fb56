"""Where logged values go: always to `metrics.csv`, and to TensorBoard or Weights & Biases where it is asked for."""

from __future__ import annotations

import csv
import http.client
import io
import logging
import os
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_hf.errors import InputError, Problem
from lit_hf.run import RunFolder
from lit_hf.training.wandb_files import STEP, logged_steps
from lit_hf.writing import write_atomically

_log = logging.getLogger("lit_hf")

_SECONDS_TO_ANSWER = 3.0
_SECONDS_TO_START = 15.0


class MetricsFile(Logger):
    """Writes `metrics.csv`: a row for each step that something was logged at; only rank zero writes.

    The columns are `step` (as Lightning counts them: optimizer steps, from 0), `epoch`, and the metrics in the order in
    which they first came; what was not logged at a step stays empty. Numbers are written exactly. A row is on disk when
    `log_metrics` returns. A file that is there already is continued.

    Args:
        run: Whose metrics they are.
    """

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self._run = run
        self._columns = ["step", "epoch"]
        self._last: dict[str, str] = {}
        self._last_at = 0
        self._is_open = False

    @property
    def name(self) -> str:
        """Nothing: the run's folder has the name."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: the run's folder has the name."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self._run.path)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self._run.path)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `config.yaml` has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a row, or add to the last one if it is of the same step."""
        if not self._is_open:
            self._rewrite(self._read())
        row = {"step": self._last.get("step", "0") if step is None else str(step)}
        row |= {name: _exact(value) for name, value in metrics.items()}
        if self._last.get("step") == row["step"]:
            row = self._last | row
        else:
            self._last_at = self._run.metrics.stat().st_size
        self._last = row
        if new := [name for name in row if name not in self._columns]:
            self._columns += new
            self._rewrite([*self._read(self._last_at), row])
        else:
            self._write_last()

    def rows(self, steps: int) -> list[tuple[int, dict[str, float]]]:
        """Return what was logged in the first `steps` optimizer steps: each with its step."""
        return [
            (int(row["step"]), {name: _number(value) for name, value in row.items() if value and name != "step"})
            for row in self._read()
            if int(row["step"]) < steps
        ]

    @rank_zero_only
    def truncate(self, steps: int) -> None:
        """Keep the rows of the first `steps` optimizer steps, and drop those that were logged later."""
        if self._run.metrics.is_file():
            self._rewrite([row for row in self._read() if int(row["step"]) < steps])

    def _read(self, end: int | None = None) -> list[dict[str, str]]:
        """Return the rows up to a position in the file, without one that a crash cut short."""
        if not self._run.metrics.is_file():
            return []
        text = self._run.metrics.read_bytes()[:end].decode("utf-8")
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(whole, newline="")))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self._columns = list(dict.fromkeys([*self._columns, *(name for row in rows for name in row)]))
        head = self._text(dict(zip(self._columns, self._columns, strict=True)))
        body = [self._text(row) for row in rows]
        write_atomically(self._run.metrics, "".join([head, *body]))
        self._last = rows[-1] if rows else {}
        self._last_at = len("".join([head, *body[:-1]]).encode())
        self._is_open = True

    def _write_last(self) -> None:
        with self._run.metrics.open("r+b") as file:
            file.seek(self._last_at)
            file.write(self._text(self._last).encode())
            file.truncate()

    def _text(self, row: Mapping[str, str]) -> str:
        buffer = io.StringIO()
        csv.DictWriter(buffer, self._columns, restval="", lineterminator="\n").writerow(row)
        return buffer.getvalue()


def _number(text: str) -> float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _exact(value: float) -> str:
    return repr(int(value)) if isinstance(value, int) else repr(float(value))


def trackers(
    name: str, run: RunFolder, config: Mapping[str, Any], steps_done: int = 0, exact: bool = True
) -> list[Logger]:
    """Return the loggers of a run; the run's folder must be there.

    Args:
        name: `csv`, `tensorboard` or `wandb`; the CSV file is written beside each of them.
        run: Where everything is kept that a tracker writes.
        config: The resolved config, logged as hyper-parameters; there must be no secret in it.
        steps_done: Optimizer steps of the checkpoint that the run resumes from: what was logged after it is done again.
        exact: Whether it is done again with the same values.

    Raises:
        InputError: If a package is missing.
    """
    metrics = MetricsFile(run)
    loggers: list[Logger] = [metrics]
    if name == "tensorboard":
        loggers.append(_tensorboard(run, config, steps_done))
    elif name == "wandb":
        if steps_done == 0 or not exact:  # W&B takes nothing back: what it has is of another training
            run.update_record(wandb_id=None)
        loggers.append(_wandb(run, config, metrics.rows(steps_done)))
    return loggers


def _tensorboard(run: RunFolder, config: Mapping[str, Any], steps_done: int) -> TensorBoardLogger:
    try:
        # TensorBoard drops what an earlier start logged from that step on
        logger = TensorBoardLogger(save_dir=run.path, name="", version="tensorboard", purge_step=steps_done)
    except ModuleNotFoundError as error:
        raise InputError(
            Problem("tracker", "the package tensorboard is not installed.", "Install it: pip install tensorboard.")
        ) from error
    logger.log_hyperparams(dict(config))
    return logger


class _OnceWandb(WandbLogger):
    """Logs to W&B, where nothing can be taken back, each step once: whole, when the next one comes.

    Steps that W&B has already are not logged again: done again, they have the same values.
    """

    logged_to: int = -1
    _row: tuple[int, dict[str, float]] | None = None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            super().log_metrics(metrics)
        elif self._row is not None and self._row[0] == step:
            self._row[1].update(metrics)
        else:
            self._send()
            self._row = step, dict(metrics)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._send()
        super().finalize(status)

    def _send(self) -> None:
        if self._row is not None and self._row[0] > self.logged_to:
            self.logged_to, metrics = self._row
            super().log_metrics(metrics, self.logged_to)
        self._row = None


def _wandb(run: RunFolder, config: Mapping[str, Any], rows: Sequence[tuple[int, Mapping[str, float]]]) -> WandbLogger:
    """Start the tracker, and let it catch up on the rows before the step that the run goes on from."""
    # read when wandb is imported: nothing about a crash goes to its makers
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    project = os.environ.get("WANDB_PROJECT", "lit-hf")
    logger = _OnceWandb(project=project, save_dir=run.path, experiment=_start_wandb(run, config, project))
    last = _last_on_wandb(run, logger)
    logger.logged_to = -1 if last is None else last
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
    return logger


@rank_zero_only
def _last_on_wandb(run: RunFolder, logger: WandbLogger) -> int:
    """Return the last step that W&B has: by its server if that answers, and by its files on this machine; else -1."""
    told = logger.experiment.summary.get(STEP)
    on_server = int(told) if isinstance(told, int | float) else -1
    return max([on_server, *logged_steps(run.path, str(run.read_record()["wandb_id"]))])


@rank_zero_only
def _start_wandb(run: RunFolder, config: Mapping[str, Any], project: str) -> Any:
    """Start the run on W&B, or go on with it; offline where that cannot be done online."""
    import wandb

    # kept, so that the run goes on there when it resumes
    run_id = run.read_record().get("wandb_id") or secrets.token_hex(4)
    run.update_record(wandb_id=run_id)

    def start(mode: str) -> Any:
        return wandb.init(
            project=project,
            name=run.path.resolve().name,
            id=run_id,
            resume="allow",
            dir=run.path,
            config=dict(config),
            mode=cast(Any, mode),
            settings=wandb.Settings(console="off", silent=mode != "online", init_timeout=_SECONDS_TO_START),
        )

    mode = os.environ.get("WANDB_MODE", "online")
    if mode == "online":
        experiment, reason = _try(start)
        if reason:
            _log.warning(
                f"W&B is offline, as {reason}. To sync later: wandb sync {run.path}/wandb/offline-run-*-{run_id}"
            )
            experiment = start("offline")
    else:
        experiment = start(mode)
    experiment.define_metric(STEP)
    experiment.define_metric("*", step_metric=STEP, step_sync=True)
    return experiment


def _try(start: Callable[[str], Any]) -> tuple[Any, str]:
    """Start a run online, or return why that cannot be done; it neither asks nor waits for long."""
    import wandb

    host = wandb.setup().settings.base_url
    if not _answers(host):
        return None, f"{host} does not answer"
    try:
        if not wandb.login(prompt=False, verify=False):
            return None, "there is no API key (wandb login)"
        return start("online"), ""
    except wandb.Error as error:
        wandb.teardown()  # else the id counts as in use
        return None, str(error).splitlines()[0].rstrip(".")


def _answers(url: str) -> bool:
    """Say whether a server answers at all, through a proxy where one is set."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=_SECONDS_TO_ANSWER).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError, http.client.HTTPException):
            return
        answers.append(True)

    # a thread, since looking up a name knows no timeout
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_SECONDS_TO_ANSWER)
    return bool(answers)
