"""Predictions from an exported folder: rows in, the same rows with predictions out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_hf.errors import InputError, LitHFError, Problem
from lit_hf.inference.manifest import read_task
from lit_hf.models.folder import fetch, load_model, load_tokenizer
from lit_hf.models.loading import max_positions
from lit_hf.models.offload import Offload, input_device
from lit_hf.task import value_at

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from lit_hf.task import Task

Row = dict[str, Any]

CHUNK = 64
"""Batches that are sorted by length together."""


class Predictor:
    """Adds a task's predictions to rows.

    Args:
        model: The plain `transformers` or PEFT model, in eval mode, on its device.
        task: The task, bound to its tokenizer and labels.
        batch_size: Rows that go through the model at once.
    """

    def __init__(self, model: PreTrainedModel, task: Task, batch_size: int = 32) -> None:
        self.model = model
        self.task = task
        self.batch_size = batch_size

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        task: Task | None = None,
        device: str | None = None,
        batch_size: int = 32,
        trust_remote_code: bool = False,
        offload: Offload | None = None,
    ) -> Predictor:
        """Load an exported folder; no dataset and no run config is needed.

        Args:
            folder: The folder, or a model's id on the Hub.
            task: The task; by default that of the folder's `lit_hf.json`.
            device: `cpu`, `cuda`, `cuda:1`; by default the first GPU if there is one.
            batch_size: Rows that go through the model at once.
            trust_remote_code: Run code from outside lit-hf and transformers that the folder names.
            offload: Spread the model over devices, memory and disk; `device` is not used then.

        Raises:
            InputError: If the folder is incomplete or damaged, has no trained head, or would run code; or if there is
                no such device.
        """
        target = _device(device)
        path = fetch(folder)
        task = read_task(path, task, trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code)
        model = load_model(path, task.auto_class, target, trust_remote_code, offload)
        _limit_length(tokenizer, model.config)
        task.bind(tokenizer, task.labels)
        return cls(model, task, batch_size)

    def predict(self, rows: Iterable[Row], columns: Collection[str] | None = None) -> Iterator[Row]:
        """Yield every row with its prediction added, in the order they came; rows are read in chunks, as needed.

        A prediction never replaces a column of the user's: where the rows have a column `label`, the predicted one is
        `predicted_label`.

        Args:
            rows: Rows with at least the task's input columns.
            columns: All columns of all rows; by default those of the first chunk.
        """
        source = iter(rows)
        while chunk := list(islice(source, self.batch_size * CHUNK)):
            if columns is None:
                columns = set().union(*chunk)
            for row, prediction in zip(chunk, self._predict(chunk), strict=True):
                yield {**row, **{_free(key, {*columns, *row}): value for key, value in prediction.items()}}

    def _predict(self, rows: list[Row]) -> list[Row]:
        wanted = self.task.optional_columns
        optional = [column for column in wanted if any(value_at(row, column) is not None for row in rows)]
        columns = [*self.task.input_columns, *optional]
        encoded = self.task.encode_inputs({column: [value_at(row, column) for row in rows] for column in columns})
        inputs = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
        owners = encoded.get("row", range(len(inputs)))
        if sorted(set(owners)) != list(range(len(rows))):
            what = f"{type(self.task).__name__} makes {len(inputs)} inputs of {len(rows)} rows."
            raise LitHFError(Problem("task", what, "Prediction needs one or more for each row."))
        parts: list[list[Row]] = [[] for _ in rows]
        for owner, prediction in zip(owners, self._predict_inputs(inputs), strict=True):
            parts[owner].append(prediction)
        return [self.task.merge(predictions) for predictions in parts]

    def _predict_inputs(self, inputs: list[Row]) -> list[Row]:
        """Return a prediction for each input, in their order; the longest go first, as they need the most memory."""
        order = sorted(range(len(inputs)), key=lambda index: -len(inputs[index].get("input_ids", ())))
        collate = self.task.collator()
        predictions: dict[int, Row] = {}
        for start in range(0, len(order), self.batch_size):
            indices = order[start : start + self.batch_size]
            batch = _to_device(collate([inputs[index] for index in indices]), input_device(self.model))
            with torch.inference_mode():
                predictions |= zip(indices, self.task.predict(self.model, batch), strict=True)
        return [predictions[index] for index in range(len(inputs))]


def _free(key: str, taken: Collection[str]) -> str:
    while key in taken:
        key = f"predicted_{key}"
    return key


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(Problem("--device", f"{name!r} cannot be used: {reason}", "Leave it out, or: cpu.")) from error


def _limit_length(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Cut off text that is longer than the model's positions, where a tokenizer made by others does not say so."""
    positions = max_positions(config)
    if positions is not None and tokenizer.model_max_length > positions:
        tokenizer.model_max_length = positions
