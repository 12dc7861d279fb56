"""Which task an exported model was trained for; read as data, so that a downloaded folder cannot run code."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_hf.errors import InputError, Problem
from lit_hf.models.folder import MANIFEST, load_config
from lit_hf.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig

OWN_TASKS = "lit_hf.tasks"
KINDS = {"multi_label_classification": "multi_label", "regression": "regression"}


def read_task(folder: Path, task: Task | None = None, trust_remote_code: bool = False) -> Task:
    """Return the task that an exported model was trained for, with its labels, not yet bound to a tokenizer.

    A folder without `lit_hf.json` that holds a text classifier gets a task that reads the column `text`.

    Args:
        folder: The exported folder.
        task: Use this one, and take only what the exported one learnt from its data.
        trust_remote_code: Import the task's class from wherever the folder says.

    Raises:
        InputError: If the task is not known, or not one of lit-hf's own.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return task or _guess(folder, load_config(folder, trust_remote_code))
    try:
        manifest = json.loads(path.read_text("utf-8"))
        record, state = manifest["task"], manifest["state"]
        class_path, init_args = str(record["class_path"]), dict(record["init_args"])
    except (ValueError, KeyError, TypeError) as error:
        what = f"the file is damaged ({type(error).__name__}: {error})."
        raise InputError(Problem(str(path), what, "Write it again: lit-hf export.")) from error
    if task is None:
        task = _make(path, class_path, init_args, trust_remote_code)
    task.load_state_dict(state)
    return task


def _make(path: Path, class_path: str, init_args: dict[str, Any], trusted: bool) -> Task:
    module, _, name = class_path.rpartition(".")
    if not (trusted or module == OWN_TASKS or module.startswith(f"{OWN_TASKS}.")):
        raise InputError(
            Problem(
                str(path),
                f"the task {class_path} is not one of lit-hf's own, and a folder may not run code of its choice.",
                "If you know the class and trust it: --trust_remote_code.",
            )
        )
    try:
        made = getattr(importlib.import_module(module), name)(**init_args)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        what = f"the task {class_path} cannot be made: {error}."
        raise InputError(Problem(str(path), what, "Was it exported by another version of lit-hf?")) from error
    if not isinstance(made, Task):
        raise InputError(Problem(str(path), f"{class_path} is not a task."))
    return made


def _guess(folder: Path, config: PretrainedConfig) -> Task:
    """Return the task of a text classifier that somebody else has made."""
    architecture = (config.architectures or ["a model of unknown kind"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise InputError(
            Problem(
                str(folder),
                f"there is no {MANIFEST} that names its task, and {architecture} is not a text classifier.",
                "Give a run's folder, or a folder that lit-hf export has written.",
            )
        )
    count = config.num_labels or 0
    kind = KINDS.get(config.problem_type or "", "regression" if count == 1 else "single_label")
    names: dict[Any, str] = config.id2label or {}
    labels = None if kind == "regression" else [names[index] for index in range(count)]
    task: Task = importlib.import_module(OWN_TASKS).TextClassification(text="text", labels=labels, kind=kind)
    return task
