"""The verb fit: train, keep the best checkpoint, export it, and say where everything is."""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from lit_hf.checkpoints import STATE, found, newest_valid, read_manifest, remove_leftovers
from lit_hf.cli import safety
from lit_hf.cli.checks import monitored
from lit_hf.cli.export import current_export
from lit_hf.cli.failures import explained
from lit_hf.cli.resuming import FLAG, Resumption, other_end
from lit_hf.cli.runs import build_model, load_weights, provenance, read_checkpoint, results_of
from lit_hf.cli.trainer import TrainerCLI
from lit_hf.errors import Preempted, Problem, TrainingError, raise_problems
from lit_hf.export.package import export
from lit_hf.models.quantization import name_of
from lit_hf.run import RunFolder
from lit_hf.training.settings import LIMITS, limits
from lit_hf.training.strategies import FullySharding

log = logging.getLogger(__name__)

RESUMES_FROM = "LIT_HF_RESUMES_FROM"
"""Variable by which the first process tells those that it starts which checkpoint it has verified; empty for none."""


def run(arguments: Sequence[str]) -> None:
    """Train a new run, or resume the run of that name.

    Args:
        arguments: The options after the verb.

    Raises:
        InputError: With everything that is wrong, before weights are loaded.
        TrainingError: If training had to stop.
        KeyboardInterrupt: If it was interrupted.
        Preempted: If the process was told to end.
    """
    cli = TrainerCLI([argument for argument in arguments if argument != FLAG])
    with _may_be_told_to_end(cli.run), cli.run.held() if _is_first() else nullcontext():
        _run(cli, inexact=FLAG in arguments, safe=safety.FLAG in arguments)


@contextmanager
def _may_be_told_to_end(run: RunFolder) -> Iterator[None]:
    """Have SIGTERM end what comes before and after the training as it ends that, which Lightning sees to by itself.

    SIGUSR1, by which SLURM tells (`--signal`) that a job's time is nearly over, does the same.
    """
    own = os.getpid()

    def pass_on(*_: object) -> None:
        if os.getpid() == own:  # not in the processes that prepare batches, which SLURM tells as well
            signal.raise_signal(signal.SIGTERM)

    def stop(*_: object) -> None:
        if signal.getsignal(signal.SIGTERM) is stop:  # else it is one of those that Lightning's own handler calls
            raise SIGTERMException

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if is_main else None
    takes_usr1 = is_main and hasattr(signal, "SIGUSR1") and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    if takes_usr1:
        signal.signal(signal.SIGUSR1, pass_on)
    try:
        yield
    except SIGTERMException as error:
        raise Preempted(Problem(str(run.path), "the process was told to end.", _kept(run))) from error
    finally:
        if before is not None:  # one that Python can set again
            signal.signal(signal.SIGTERM, before)
        if takes_usr1:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def _is_first() -> bool:
    """Say whether this is the process that starts a run's others: those share it."""
    nodes = (os.environ.get(name, "0") for name in ("NODE_RANK", "GROUP_RANK"))
    return getattr(rank_zero_only, "rank", 0) == 0 and all(node == "0" for node in nodes)


def _run(cli: TrainerCLI, inexact: bool, safe: bool) -> None:
    if _is_first():  # the run is held: nobody else writes there
        remove_leftovers(cli.run.checkpoints)
    record = cli.run.read_record() if cli.run.exists() else {}
    resumption = Resumption(cli.run.path.name, inexact)
    before = cli.run.read_config() if record else {}
    if record:
        if found(cli.run.checkpoints):  # a run that got to none starts anew, with whatever settings
            resumption.compare_settings(before, cli.resolved)
        if record.get("state") == "finished" and not _goes_on(limits(cli.resolved), record):
            _catch_up_export(cli, safe)
            _say_finished(cli, record)
            return
    checkpoint = _newest(cli.run) if record else None
    reached = _begun(cli, checkpoint) if checkpoint else 0
    cli.prepare("fit")
    if checkpoint:
        resumption.compare_origins(record.get("fingerprints", {}), cli.fingerprints)
    trainer = cli.make_trainer("fit")
    if checkpoint:
        precision = (record.get("hardware") or {}).get("precision")
        resumption.compare_machines(read_manifest(checkpoint.parent).world_size, precision, trainer)
        log.info("resuming %s from step %s", cli.run.path, reached)
        notes = [resumption.warning(), other_end(before, cli.resolved) if cli.model.schedule.needs_end else ""]
        for note in filter(None, notes):
            log.warning(note)
    if cli.config.merge and (quantization := cli.model.base.quantized) is not None:
        log.info("merge: the export has the base dequantized (%s): larger, and a little off", name_of(quantization))
    cli.start_trackers(reached, exact=not resumption.warning())
    cli.save_inputs()
    cli.add_reference()  # before the run's own weights are loaded
    with _told_to_others(checkpoint):
        _train(cli, trainer, checkpoint)
    if trainer.is_global_zero:
        _finish(cli)


def _newest(run: RunFolder) -> Path | None:
    """Return the newest valid checkpoint's state, and say which newer ones cannot be used.

    Raises:
        InputError: If there are checkpoints, and none is valid: starting anew would write over what was logged.
    """
    chosen = None if _is_first() else os.environ.get(RESUMES_FROM)
    if chosen is not None:  # it was read and verified there
        return run.checkpoints / chosen / STATE if chosen else None
    newest, skipped = newest_valid(run.checkpoints)
    if newest is None:
        cure = f"Bring one back; or remove {run.checkpoints} to start anew, or start another run: --name <name>."
        raise_problems(
            Problem(str(folder), f"the checkpoint cannot be used: {reason}.", cure) for folder, reason in skipped
        )
        return None
    for folder, reason in skipped:
        log.warning("the checkpoint %s is skipped: %s.", folder, reason)
    return newest / STATE


@contextmanager
def _told_to_others(checkpoint: Path | None) -> Iterator[None]:
    """Have the processes that the trainer starts take the same checkpoint, without each reading all of it."""
    if not _is_first():
        yield
        return
    os.environ[RESUMES_FROM] = checkpoint.parent.name if checkpoint else ""
    try:
        yield
    finally:
        del os.environ[RESUMES_FROM]


def _begun(cli: TrainerCLI, checkpoint: Path) -> int:
    """Take back a run's adapter, and return its steps so far; a damaged checkpoint is told before the model is built.

    Nothing of it is kept: its file stays mapped, and so on the disk, for as long as one of its tensors lives.
    """
    state = read_checkpoint(checkpoint, whole=False)
    cli.model.adaptation.load_state_dict(copy.deepcopy(state.get("adapter")))
    return int(state["global_step"])


def _train(cli: TrainerCLI, trainer: Trainer, checkpoint: Path | None) -> None:
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    except TrainingError as error:
        *others, last = error.problems
        raise TrainingError(*others, last._replace(cure=f"{last.cure} {_kept(cli.run)}".strip())) from error
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        if trainer.interrupted and not isinstance(error, SIGTERMException):
            raise KeyboardInterrupt from error
        raise
    except Exception as error:
        if (problem := explained(error, cli.in_hand, cli.resolved)) is None:
            raise
        if trainer.is_global_zero and cli.run.read_record().get("state") == "running":
            with suppress(OSError):  # the disk may be what failed
                cli.run.update_record(state="failed")  # torch tells of a lost worker once more while this is recorded
        raise TrainingError(problem._replace(cure=f"{problem.cure} {_kept(cli.run)}")) from error


def _kept(run: RunFolder) -> str:
    """Say what a run that ended too early has left to go on from; what was being written is written by now."""
    newest = newest_valid(run.checkpoints, contents=False).folder  # a process that is told to end has little time
    if newest is None:
        return "No checkpoint had been saved yet."
    return f"The last checkpoint is {newest}; the same command goes on from there."


def _goes_on(now: Mapping[str, float | None], record: Mapping[str, Any]) -> bool:
    """Say whether a limit goes beyond the one that the run was finished with, and none was reached that is kept."""
    before = record["limits"]
    return not _reached(now, record) and any(
        before[name] not in (None, -1) and (value is None or value > before[name])
        for name, value in now.items()
        if name in before
    )


def _reached(now: Mapping[str, float | None], record: Mapping[str, Any]) -> list[str]:
    """Return the limits that a run was at when it ended, of those that can be told by its record."""
    done = {"max_epochs": record["epochs"], "max_steps": record["steps"]}
    return [name for name, count in done.items() if (limit := now[name]) is not None and count >= limit]


@rank_zero_only
def _catch_up_export(cli: TrainerCLI, safe: bool) -> None:
    """Export a finished run whose export is missing or of another checkpoint, as where it was killed before that."""
    if found(cli.run.checkpoints):
        current_export(cli.run, cli.config.merge, safe)


def _say_finished(cli: TrainerCLI, record: Mapping[str, Any]) -> None:
    now = limits(cli.resolved)
    set_now = [name for name in ("max_time", "patience") if now[name] is not None]
    reached = _reached(now, record)
    more = " and ".join(LIMITS[name] for name in reached) or " or ".join(LIMITS[name] for name in set_now)
    log.warning(
        "the run %s is finished already; nothing was done. Start another one with --name <name>%s.",
        cli.run.path,
        more and f", or go on with more {more}",
    )


def _finish(cli: TrainerCLI) -> None:
    """Export the best checkpoint and print the summary."""
    path = cli.run.checkpoint("best")
    if path is None:
        log.warning(
            "no checkpoint was kept, so nothing is exported: was it turned off, or was the run never validated?"
        )
        return
    best = read_checkpoint(path)
    if (cli.run.read_record()["best"] or {}).get("value") is None and "validation" in cli.datamodule.splits:
        log.warning("the run was never validated, so its newest checkpoint is taken for its best")
    is_cut = isinstance(cli.trainer.strategy, FullySharding)
    if cli.model.base.quantized is None and not is_cut:
        cli.model.cpu()
    elif is_cut or cli.trainer.strategy.root_device.type != "cpu":
        # this process has its own rows only; or, as the trainer moved the model to the CPU at its end, packed weights
        # that do not survive that with all methods
        if is_cut:
            log.info("the best checkpoint's model is put together for the export")
        cli.model.model = None
        cli.model.adaptation.load_state_dict(best["adapter"])  # so that it does not start, or merge, once more
        build_model(cli.model)
    load_weights(cli.model, best)
    record = cli.resolved["task"]
    origin = provenance(cli.run, path, best)
    export(cli.model.model.eval(), cli.task, record, cli.run.export, merge=cli.config.merge, origin=origin)
    _summarize(cli, best)


def _summarize(cli: TrainerCLI, best: Mapping[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    monitor = monitored(cli.task, cli.config.monitor)
    results = results_of(best)
    console.print()
    if results:
        for part in cli.task.report(results):
            console.print(part)
        at = f"epoch {best['epoch'] + 1}, step {best['global_step']}"
        console.print(f"best {monitor:<10} {results[monitor]:.4f}  ({at})")
    console.print(f"run             {cli.run.path}")
    console.print(f"export          {cli.run.export}")
    console.print(f"next            lit-hf predict {cli.run.path} --text '...'")
    console.print(f"                lit-hf test {cli.run.path}")
