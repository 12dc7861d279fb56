"""What a run may resume with: nothing by which it would end otherwise than if it had never stopped, unless asked to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from lit_hf.errors import Problem, raise_problems
from lit_hf.training.settings import limits

FLAG = "--allow-inexact-resume"

FREE_TO_CHANGE = {
    "checkpoint_every",
    "data.eval_batch_size",
    "data.num_proc",
    "data.num_workers",
    "data.pin_memory",
    "loss_spike",
    "merge",
    "model.gradient_checkpointing",
    "output_dir",
    "patience",
    "skip_nonfinite",
    "tracker",
}
"""Settings that a run may resume with other values of; so may those of `trainer` that are not in `HELD`."""

HELD = {
    "trainer.accelerator",
    "trainer.accumulate_grad_batches",
    "trainer.check_val_every_n_epoch",
    "trainer.devices",
    "trainer.fast_dev_run",
    "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val",
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.num_nodes",
    "trainer.overfit_batches",
    "trainer.plugins",
    "trainer.precision",
    "trainer.reload_dataloaders_every_n_epochs",
    "trainer.strategy",
    "trainer.sync_batchnorm",
    "trainer.val_check_interval",
}
"""Settings of `trainer` that say what is learnt from, in which batches and arithmetic, and when it is validated."""

PLACES = ("path", "train", "validation", "test")
"""Settings of a source that say where rows lie: they may be other ones, if the rows are the same."""

SETTINGS = re.compile(r".*\.init_args|model|data|trainer|model\.(rates|schedule)|data\.(tokenizer|source(\[\d+\])?)")
"""Blocks whose keys are settings of lit-hf or of a class, of which a later version may have more; others are maps."""

KEPT = re.compile(r"model\.adapter(_checkpoint)?(\..*)?|task\.init_args\.(labels|class_weights)(\..*)?")
"""Settings that a run takes from its checkpoint: another value would do nothing."""

CURE = f"Change it back to resume that run exactly, start another one (--name <name>), or go on: {FLAG}."
CURE_OF_KEPT = "Its checkpoints hold it: change it back, or start another one (--name <name>)."

ORIGINS = {
    "model": ("model.checkpoint", "the model it started from"),
    "tokenizer": ("data.tokenizer", "the tokenizer"),
}
"""Where a fingerprint's origin is set, and what it is; the others are of splits."""


class Resumption:
    """Collects what differs from the run's start, and refuses it or tells it once.

    Args:
        name: The run's name.
        inexact: Go on in spite of differences.
    """

    def __init__(self, name: str, inexact: bool) -> None:
        self._name = name
        self._inexact = inexact
        self._differences: list[Problem] = []
        self._moved: list[Problem] = []  # rows that are to be found elsewhere

    def compare_settings(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Compare the configs; whether rows that lie elsewhere are the same, `compare_origins` will tell.

        Raises:
            InputError: If they differ in what may not change.
        """
        changed = list(_changed(before, now, self._name))
        places = {key for config in (before, now) for key in _places(config)}
        self._moved = [problem for problem in changed if problem.where in places]
        self._meet(problem for problem in changed if problem.where not in places)

    def compare_origins(self, before: Mapping[str, str], now: Mapping[str, str]) -> None:
        """Compare the fingerprints of the data, the tokenizer and the model that was started from.

        Raises:
            InputError: If one differs.
        """
        self._meet(_other_origins(before, now, self._moved))

    def compare_machines(self, processes: int, precision: str | None, trainer: Trainer) -> None:
        """Compare what the config may leave to the machine.

        Args:
            processes: How many trained.
            precision: What it was trained in, if that is known.
            trainer: What is to train on.

        Raises:
            InputError: If it is not the same.
        """
        self._meet(_other_machine(processes, precision, trainer))

    def warning(self) -> str:
        """Return what is not exact, each in a line; empty if all is."""
        if not self._differences:
            return ""
        lines = [f"  {problem.where}: {problem.what}" for problem in self._differences]
        return "\n".join(["this resume is NOT exact: the run will not end as one that never stopped, as", *lines])

    def _meet(self, differences: Iterable[Problem]) -> None:
        found = list(differences)
        raise_problems(one for one in found if not self._inexact or KEPT.fullmatch(one.where))
        self._differences += found


def other_end(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what a schedule of learning rates that depends on the last step makes of another one; empty for the same.

    Args:
        before: The resolved config that the run was started, or last resumed, with.
        now: That of today.
    """
    old, new = limits(before), limits(now)
    changed = [name for name in ("max_epochs", "max_steps") if old[name] != new[name]]
    if not changed:
        return ""
    values = " and ".join(f"trainer.{name} was {old[name]} and is {new[name]}" for name in changed)
    return (
        f"{values}: from here on the learning rate goes as if it had been so from the start, which it was not; only "
        "with a constant schedule, its warmup in steps, is this the run that had been given as much at once"
    )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any], name: str) -> Iterator[Problem]:
    """Find settings that a resumed run may not change; one that is younger than the run has its default in both."""
    old, new = dict(_flat(before)), dict(_flat(now))
    for key in sorted(old.keys() | new.keys()):
        is_free = key in FREE_TO_CHANGE or (key.startswith("trainer.") and not _is_held(key))
        block = key.rpartition(".")[0]
        is_younger = (
            key not in old and SETTINGS.fullmatch(block) and any(other.startswith(f"{block}.") for other in old)
        )
        if is_free or is_younger or old.get(key) == new.get(key):
            continue
        cure = CURE_OF_KEPT if KEPT.fullmatch(key) else CURE
        yield Problem(key, f"the run {name!r} was started with {old.get(key)!r}, now it is {new.get(key)!r}.", cure)


def _is_held(key: str) -> bool:
    return ".".join(key.split(".")[:2]).partition("[")[0] in HELD


def _places(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that say where rows lie which are all read, and so compared, before a run resumes."""
    source = (config.get("data") or {}).get("source")
    named = {f"data.source[{number}]": one for number, one in enumerate(source)} if isinstance(source, list) else {}
    for key, one in (named or {"data.source": source or {}}).items():
        if not one.get("streaming"):
            yield from (f"{key}.{place}" for place in PLACES)


def _other_origins(before: Mapping[str, str], now: Mapping[str, str], moved: Sequence[Problem]) -> Iterator[Problem]:
    """Find what is not the same any more; of rows, by the setting that says where they lie, if that is another now."""
    if not before:
        yield from moved
    changed = [name for name in {**before, **now} if before and before.get(name) != now.get(name)]
    told: dict[Problem, None] = {}
    for name in changed:
        key, what = ORIGINS.get(name, (f"data.source.{name}", f"the rows of its {name} split"))
        elsewhere = [] if name in ORIGINS else [one for one in moved if one.where.endswith((f".{name}", ".path"))]
        cure = CURE.replace("Change it back", "Bring it back")
        told |= dict.fromkeys(elsewhere or [Problem(key, f"{what} changed since the run was started.", cure)])
    yield from told


def _other_machine(processes: int, precision: str | None, trainer: Trainer) -> Iterator[Problem]:
    if trainer.world_size != processes:
        what = f"it was trained by {processes} processes, now there are {trainer.world_size}: batches would be others."
        yield Problem("trainer.devices", what, CURE)
    if precision not in (None, str(trainer.precision)):
        what = f"the run was trained in {precision}, now it is {trainer.precision}, which this machine does best."
        yield Problem("trainer.precision", what, CURE)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif key == "source" and isinstance(value, list):
            yield from _flat({f"{key}[{number}]": one for number, one in enumerate(value)}, prefix)
        else:
            yield f"{prefix}{key}", value
