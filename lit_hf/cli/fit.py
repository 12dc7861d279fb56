"""The verb fit: train, keep the best checkpoint, export it, and say where everything is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from lit_hf.checks import monitored
from lit_hf.cli.runs import load_weights, read_checkpoint
from lit_hf.cli.trainer import TrainerCLI
from lit_hf.errors import Problem, raise_problems
from lit_hf.export.package import export

log = logging.getLogger(__name__)

FREE_TO_CHANGE = {
    "data.eval_batch_size",
    "data.num_proc",
    "data.num_workers",
    "data.pin_memory",
    "merge",
    "output_dir",
    "patience",
    "tracker",
}
"""Settings that a run may resume with other values of; so may all of `trainer`."""


def fit(cli: TrainerCLI) -> int:
    """Train a new run, or resume the run of that name.

    Returns:
        The exit code: 0.

    Raises:
        InputError: With everything that is wrong, before weights are loaded.
        TrainingError: If training had to stop.
    """
    resumes = cli.run.exists()
    if resumes:
        raise_problems(_changed(cli.run.read_config(), cli.resolved, cli.run.path.name))
        if cli.run.read_record().get("state") == "finished" and not _has_more_to_do(cli):
            return _say_finished(cli)
    cli.prepare("fit")
    trainer = cli.make_trainer("fit")
    cli.save_inputs()
    checkpoint = cli.run.last if resumes and cli.run.last.is_file() else None
    if checkpoint:
        read_checkpoint(checkpoint)  # a damaged one is told now, not after the model is built
        log.info("resuming %s", cli.run.path)
    trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero and cli.run.best.is_file():
        _finish(cli)
    return 0


def _has_more_to_do(cli: TrainerCLI) -> bool:
    """Say whether the trainer's limits now go beyond those that the run was finished with."""
    before = cli.run.read_config()["trainer"]
    return any(before.get(key) != cli.resolved["trainer"][key] for key in ("max_epochs", "max_steps", "max_time"))


def _say_finished(cli: TrainerCLI) -> int:
    log.warning(
        "the run %s is finished already; nothing was done. Start another one with --name <name>, or go on with more "
        "--trainer.max_epochs.",
        cli.run.path,
    )
    return 0


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> Iterator[Problem]:
    """Find settings that a resumed run may not change."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        if key in FREE_TO_CHANGE or key.startswith("trainer.") or old.get(key) == new.get(key):
            continue
        yield Problem(
            key,
            f"the run {name!r} was started with {old.get(key)!r}, now it is {new.get(key)!r}.",
            "Change it back to resume that run, or start another one: --name <name>.",
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@rank_zero_only
def _finish(cli: TrainerCLI) -> None:
    """Export the best checkpoint and print the summary."""
    best = read_checkpoint(cli.run.best)
    load_weights(cli.model, best)
    record = cli.resolved["task"]
    export(cli.model.model.cpu().eval(), cli.task, record, cli.run.export, merge=cli.config.merge)
    _summarize(cli, best)


def _summarize(cli: TrainerCLI, best: Mapping[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    monitor = monitored(cli.task, cli.config.monitor)
    results = {name.removeprefix("val/"): value for name, value in best["results"].items()}
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
