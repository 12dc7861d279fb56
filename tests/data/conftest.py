from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from datasets import Dataset

from lit_hf.task import Examples, RowProblem, Task


class Sorting(Task):
    """A small task: sort texts by their label."""

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"

    def __init__(self, text: str = "text", label: str = "label", suffix: str = "") -> None:
        self.text = text
        self.label = label
        self.suffix = suffix

    @property
    def input_columns(self) -> list[str]:
        return [self.text]

    @property
    def target_columns(self) -> list[str]:
        return [self.label]

    def learn_labels(self, rows: Dataset) -> list[str]:
        return sorted(set(rows[self.label]))

    def check(self, rows: Dataset) -> Iterable[RowProblem]:
        if empty := [index for index, text in enumerate(rows[self.text]) if not text]:
            yield RowProblem(empty, self.text, "the text is empty.", "Fill it in.")

    def encode(self, examples: Examples) -> Examples:
        texts = [text + self.suffix for text in examples[self.text]]
        labels = [(self.labels or []).index(label) for label in examples[self.label]]
        return {**self.tokenizer(texts, truncation=True), "labels": labels}

    def predict(self, model: object, batch: object) -> list[dict]:
        return []


@pytest.fixture
def sorting() -> Sorting:
    return Sorting()


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write rows to a file in the test's folder, and return its path."""

    def write(name: str, rows: Iterable[dict]) -> str:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
