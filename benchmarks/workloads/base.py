"""What a workload is: the work that lit-hf and its peers are given alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Kind = Literal["text_classification", "token_classification", "seq2seq", "causal", "preference"]

Rows = dict[str, list[dict[str, Any]]]
"""Rows of the splits `train` and `validation`."""

AUTO_CLASSES: dict[Kind, str] = {
    "text_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "causal": "AutoModelForCausalLM",
    "preference": "AutoModelForCausalLM",
}


@dataclass(frozen=True)
class Workload:
    """The work of one comparison.

    All peers get the same starting weights, the same rows, AdamW without decay at a constant learning rate, gradients
    clipped to a norm of 1, one epoch, the same batch size, precision and number of threads.

    Attributes:
        name: As it stands in the results.
        kind: What is learnt; decides model class, collator and loss.
        peers: Whom lit-hf is compared with.
        read: Returns the rows, of a folder of datasets, a number of training rows and one of validation rows.
        checkpoint: Writes the starting weights and the tokenizer to a folder, given the rows.
        task: lit-hf's task: `class_path` and `init_args`.
        rows: Training rows, in the whole benchmark and in the quick one.
        validation_rows: Rows that the final loss is computed on.
        batch_size: Rows of a batch.
        max_length: Longest input in tokens; longer ones are cut.
        learning_rate: Of AdamW.
        lora: Arguments of `peft.LoraConfig`, to train an adapter.
        nf4: Whether the base model is quantized to 4 bits.
        data: Further settings of lit-hf's `data` block.
        compile: Whether lit-hf compiles the model.
        ranks: Processes that train together; lit-hf only.
        precision: `32-true` or `bf16-true`.
        on_gpu: Whether it runs on a GPU.
        steps: Optimizer steps after which training ends; None trains on all rows.
    """

    name: str
    kind: Kind
    peers: tuple[str, ...]
    read: Callable[[Path, int, int], Rows]
    checkpoint: Callable[[Path, Rows], None]
    task: dict[str, Any]
    rows: tuple[int, int]
    validation_rows: int = 100
    batch_size: int = 32
    max_length: int | None = None
    learning_rate: float = 5e-5
    lora: dict[str, Any] | None = None
    nf4: bool = False
    data: dict[str, Any] = field(default_factory=dict)
    compile: bool = False
    ranks: int = 1
    precision: Literal["32-true", "bf16-true"] = "32-true"
    on_gpu: bool = False
    steps: int | None = None

    @property
    def dtype(self) -> str:
        """The type of the weights."""
        return "bfloat16" if self.precision == "bf16-true" else "float32"


def json_lines(path: Path, limit: int) -> list[dict[str, Any]]:
    """Return the first rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(limit), strict=False)]


def read_json_lines(
    dataset: str,
    data: Path,
    rows: int,
    validation_rows: int,
    *,
    row: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    validation: str = "validation",
) -> Rows:
    """Return the first rows of a dataset of JSON lines.

    Args:
        dataset: Its folder.
        data: The folder of all datasets.
        rows: Training rows.
        validation_rows: Rows that the final loss is computed on.
        row: Gives a row the columns of the workload.
        validation: The file of the validation rows.
    """
    files = {"train": ("train", rows), "validation": (validation, validation_rows)}
    return {
        split: [row(line) for line in json_lines(data / dataset / f"{name}.jsonl", limit)]
        for split, (name, limit) in files.items()
    }


def texts(rows: Rows) -> Iterator[str]:
    """Yield every text in the training rows, wherever it stands."""
    for row in rows["train"]:
        yield from _texts(row)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
