"""What later verbs take from a run: its checkpoint, and its model with the weights in it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from transformers import AutoTokenizer

from lit_hf.cli.arguments import with_run_config
from lit_hf.cli.safety import FLAG
from lit_hf.cli.trainer import TrainerCLI
from lit_hf.errors import InputError, Problem
from lit_hf.export.model_card import Provenance
from lit_hf.run import RunFolder
from lit_hf.task import Task
from lit_hf.training import shards
from lit_hf.training.module import LitModule


class LoadedRun(NamedTuple):
    """A run's model, ready to evaluate.

    Attributes:
        model: The `transformers` or PEFT model with the checkpoint's weights, in evaluation mode.
        task: The task, bound to the run's tokenizer and labels.
        record: The task's `class_path` and `init_args`.
        origin: Where the weights come from.
    """

    model: nn.Module
    task: Task
    record: dict[str, Any]
    origin: Provenance


def read_checkpoint(path: Path, whole: bool = True) -> dict[str, Any]:
    """Read a checkpoint: tensors and plain values only, nothing is unpickled.

    Args:
        path: Its state, a file or a folder of rows.
        whole: Put tensors together that are cut into rows; else these are not read.

    Raises:
        InputError: If it is missing, damaged, or holds more than tensors and plain values.
    """
    if not path.exists():
        raise InputError(Problem(str(path), "there is no such checkpoint.", "Train the run first: lit-hf fit."))
    try:
        if path.is_dir():
            return shards.read_whole(path) if whole else shards.read(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            Problem(
                str(path),
                f"the checkpoint cannot be read: {str(error).strip().splitlines()[0]}",
                "It may be cut off or damaged: use another one, or remove it to start anew.",
            )
        ) from error


def read_best_or_last(run: RunFolder, which: Literal["best", "last"]) -> dict[str, Any]:
    """Read a run's best or newest valid checkpoint.

    Raises:
        InputError: If it has none.
    """
    path = run.checkpoint(which)
    if path is None:
        cure = f"See which there are: lit-hf checkpoints {run.path}; or train it first: lit-hf fit."
        raise InputError(Problem(str(run.path), f"the run has no valid {which} checkpoint.", cure))
    return read_checkpoint(path)


def provenance(run: RunFolder, path: Path, state: Mapping[str, Any]) -> Provenance:
    """Return where a model of a run comes from: the run, and the checkpoint whose weights it has.

    Args:
        run: The run.
        path: The checkpoint's state on the disk.
        state: What was read from there.
    """
    epoch, step = state["epoch"] + 1, state["global_step"]
    return Provenance(run.read_config(), run.read_record(), path.parent.name, results_of(state), epoch, step)


def results_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of the validation of a checkpoint's weights, by name; empty if they were not validated."""
    found = state["results"] if state.get("results_at") == state["global_step"] else {}
    return {name.removeprefix("val/"): value for name, value in found.items()}


def load_weights(module: LitModule, checkpoint: Mapping[str, Any]) -> None:
    """Put a checkpoint's weights into a module whose model is built.

    Raises:
        InputError: If they do not fit the model.
    """
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise InputError(
            Problem("checkpoint", f"its weights do not fit the model: {str(error).strip().splitlines()[-1].strip()}")
        ) from error


def build_model(module: LitModule) -> None:
    """Build a module's model without a trainer: quantized weights on the GPU, if there is one, others on the CPU."""
    quantized, found = module.base.quantized is not None, torch.accelerator.current_accelerator(check_available=True)
    with found if quantized and found is not None else torch.device("cpu"):
        module.configure_model()


def bind_task(cli: TrainerCLI, checkpoint: Mapping[str, Any]) -> None:
    """Bind a run's task to what the run learnt from its data, labels and tokenizer; take back its adapter's ranks."""
    cli.task.load_state_dict(checkpoint["task"])
    cli.model.adaptation.load_state_dict(checkpoint.get("adapter"))
    cli.datamodule.tokenizer = AutoTokenizer.from_pretrained(
        cli.run.tokenizer, trust_remote_code=cli.config.model.trust_remote_code
    )
    cli.task.bind(cli.datamodule.tokenizer)


def load_run(run: RunFolder, path: Path, safe: bool = False) -> LoadedRun:
    """Rebuild a run's model from its folder.

    Args:
        run: The run.
        path: The state of one of its checkpoints.
        safe: Take the run's config as data, as `--safe-config` does.

    Raises:
        InputError: If there is no run, or its checkpoint cannot be used.
    """
    cli = TrainerCLI(with_run_config([str(run.path), *([FLAG] if safe else [])]))
    state = read_checkpoint(path)
    bind_task(cli, state)
    build_model(cli.model)
    load_weights(cli.model, state)
    return LoadedRun(cli.model.model.eval(), cli.task, cli.resolved["task"], provenance(run, path, state))
