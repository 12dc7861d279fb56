"""Multiple choice: which of several answers or endings fits a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from transformers import DataCollatorForMultipleChoice

from lit_hf.data.cells import Cells
from lit_hf.data.texts import text_problems
from lit_hf.evaluation.definitions import CHOICES
from lit_hf.task import Batch, Collator, Examples, Outputs, RowProblem, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel


class MultipleChoice(Task):
    """Choose the answer or the ending that fits a text; every row has the same number of them.

    The model reads each choice as a pair, the context and `question choice`, and gives it a score. A pair that is too
    long loses the end of its longer part, mostly the context.

    Args:
        context: Column with the text.
        choices: Column with a list of choices, or a column for each.
        label: Column with the right one: its number from 0, or its letter from A.
        question: Column with what comes before each choice: a question, or the beginning of a sentence.
    """

    auto_class = "AutoModelForMultipleChoice"
    pipeline_tag = "multiple-choice"
    definitions = CHOICES

    def __init__(
        self,
        context: str = "context",
        choices: str | list[str] = "choices",
        label: str = "label",
        question: str | None = None,
    ) -> None:
        self.context = context
        self.choices = choices
        self.label = label
        self.question = question

    @property
    def _texts(self) -> list[str]:
        return [self.context, *([self.question] if self.question else [])]

    @property
    def input_columns(self) -> list[str]:
        """The columns with the context, the question and the choices."""
        return [*self._texts, *([self.choices] if isinstance(self.choices, str) else self.choices)]

    @property
    def target_columns(self) -> list[str]:
        """The column with the right choice."""
        return [self.label]

    # rows

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find text that is missing, other numbers of choices than in most rows, and labels that are no choice."""
        for column in self._texts:
            yield from text_problems(Cells(rows, column), column)
        choices = self._choices({column: rows[column][:] for column in self.input_columns})
        yield from self._choice_problems(choices)
        if self.label in rows.column_names:
            labels = Cells(rows, self.label)
            unknown = [
                row
                for row, (label, options) in enumerate(zip(labels, choices, strict=True))
                if not 0 <= _index(label) < len(options)
            ]
            if unknown:
                what = f"{labels[unknown[0]]!r:.60} is none of the {len(choices[unknown[0]])} choices."
                yield RowProblem(unknown, self.label, what, "Number them from 0 (0, 1, ...), or by letter (A, B, ...).")

    def _choice_problems(self, choices: list[list[Any]]) -> Iterator[RowProblem]:
        column = self.choices if isinstance(self.choices, str) else self.choices[0]
        usual = Counter(map(len, choices)).most_common(1)[0][0]
        if other := [row for row, options in enumerate(choices) if len(options) != usual]:
            what = f"the row has {len(choices[other[0]])} choices, most rows have {usual}."
            yield RowProblem(other, column, what, "Every row needs the same number.")
        elif usual < 2:
            yield RowProblem(list(range(len(choices))), column, f"{usual} choices are no choice.", "Give 2 or more.")
        if wrong := [row for row, options in enumerate(choices) if not all(map(_is_text, options))]:
            yield RowProblem(wrong, column, "a choice is missing, empty, or no text.", "Fill it in or remove the row.")

    def _choices(self, examples: Examples) -> list[list[Any]]:
        """Return the choices of each row."""
        if isinstance(self.choices, str):
            return [list(cell) if isinstance(cell, list | tuple) else [] for cell in examples[self.choices]]
        return [list(row) for row in zip(*(examples[column] for column in self.choices), strict=True)]

    def encode(self, examples: Examples) -> Examples:
        """Tokenize each choice as a pair with its context.

        Returns:
            The model's inputs, of shape [rows, choices, tokens]; `labels`, or in prediction the texts of the `choices`.
        """
        choices = self._choices(examples)
        questions = examples[self.question] if self.question else [""] * len(choices)
        contexts = [text for text, options in zip(examples[self.context], choices, strict=True) for _ in options]
        endings = [
            f"{question} {choice}".strip()
            for question, options in zip(questions, choices, strict=True)
            for choice in options
        ]
        flat = self.tokenizer(contexts, endings, truncation="longest_first")
        encoded = {name: _by_row(values, choices) for name, values in flat.items()}
        if self.label in examples:
            return {**encoded, "labels": [_index(label) for label in examples[self.label]]}
        return {**encoded, "choices": choices}

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return transformers' own collator, which also takes rows without a label."""
        return _Collator(DataCollatorForMultipleChoice(self.tokenizer, pad_to_multiple_of=pad_to_multiple_of))

    def full_row(self, length: int) -> dict[str, Any]:
        """Return as many choices as there are columns of them; of a list four, as exams have."""
        count = 4 if isinstance(self.choices, str) else len(self.choices)
        return {"input_ids": [[0] * length] * count, "labels": 0}

    # model

    def metrics(self) -> MetricCollection:
        """Return the accuracy over rows."""
        # prediction needs no metrics, and importing them takes two seconds
        from torchmetrics import MeanMetric, MetricCollection

        return MetricCollection({"accuracy": MeanMetric()})

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """The accuracy; torchmetrics does not say of a mean that more of it is better."""
        return {"accuracy": "max"}

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add which rows of a batch are right."""
        metrics.update((outputs.logits.argmax(-1) == batch["labels"]).float())

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return a row's `choice` (its number from 0), its `text`, its `score`, and the `scores` of all choices."""
        inputs = {name: value for name, value in batch.items() if name != "choices"}
        rows = model(**inputs).logits.float().softmax(-1).tolist()
        predictions = []
        for scores, options in zip(rows, batch["choices"], strict=True):
            choice = max(range(len(scores)), key=scores.__getitem__)
            predictions.append({"choice": choice, "text": options[choice], "score": scores[choice], "scores": scores})
        return predictions


class _Collator:
    """Gives rows without a label one, which transformers' collator needs, and leaves the texts as they are."""

    def __init__(self, collate: DataCollatorForMultipleChoice) -> None:
        self._collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        if "labels" in rows[0]:
            return self._collate(rows)
        inputs = [{name: row[name] for name in row if name != "choices"} | {"labels": -1} for row in rows]
        batch = dict(self._collate(inputs))
        del batch["labels"]
        return {**batch, "choices": [row["choices"] for row in rows]}


def _by_row(values: list[Any], choices: list[list[Any]]) -> list[list[Any]]:
    """Cut what belongs to the choices one after the other into rows."""
    remaining = iter(values)
    return [[next(remaining) for _ in options] for options in choices]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _index(label: Any) -> int:
    """Return the number of the choice that a number or a letter names; -1 where it names none."""
    text = str(label).strip()
    if isinstance(label, float) and label.is_integer():
        return int(label)
    if text.isdecimal():
        return int(text)
    return ord(text.upper()) - ord("A") if len(text) == 1 and text.isascii() and text.isalpha() else -1
