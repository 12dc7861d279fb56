"""Extractive question answering: a question and a context to the part of the context that answers it."""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lit_hf.data.cells import Cells
from lit_hf.data.texts import text_problems
from lit_hf.errors import InputError, Problem, raise_problems
from lit_hf.evaluation.definitions import ANSWERS
from lit_hf.evaluation.spans import Reading, Window, read_windows
from lit_hf.task import Batch, Collator, Examples, Outputs, RowProblem, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import RenderableType
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW_COLUMNS = ("row", "null_position", "first", "offsets", "text", "answers")
"""What `encode` yields beside the model's inputs: the fields of a `Window`.

Of them `offsets` is one flat list, and `answers` is JSON: lists of texts would have no type in Arrow where all of the
first thousand rows are empty, and the next thousand would not fit.
"""


class QuestionAnswering(Task):
    """Find the answer to a question in a context, of any length, or that there is none.

    A context that does not fit is read in windows that overlap; their length is `data.max_length`.

    Args:
        question: Column with the question.
        context: Column with the text that answers it.
        answers: Column with the answers as SQuAD has them: `{text: [...], answer_start: [...]}`, where `answer_start`
            counts characters. Training uses the first one, evaluation the one that fits best.
        unanswerable: Whether a question may have no answer (SQuAD v2); its lists of answers are empty.
        null_threshold: There is no answer where "no answer" scores by more than that above the best answer (logits).
        doc_stride: Tokens that a window shares with the next one.
        max_question_length: Longer questions are cut, in tokens.
        max_answer_length: Longest answer that is looked for, in tokens.
        n_best: Answers that are kept of each row; their probabilities sum up to 1.
    """

    auto_class = "AutoModelForQuestionAnswering"
    pipeline_tag = "question-answering"
    definitions = ANSWERS
    peft_task_type = "QUESTION_ANS"

    def __init__(
        self,
        question: str = "question",
        context: str = "context",
        answers: str = "answers",
        unanswerable: bool = False,
        null_threshold: float = 0.0,
        doc_stride: int = 128,
        max_question_length: int = 64,
        max_answer_length: int = 30,
        n_best: int = 20,
    ) -> None:
        self.question = question
        self.context = context
        self.answers = answers
        self.unanswerable = unanswerable
        self.null_threshold = null_threshold
        self.doc_stride = doc_stride
        self.max_question_length = max_question_length
        self.max_answer_length = max_answer_length
        self.n_best = n_best
        raise_problems(self._setting_problems())

    def _setting_problems(self) -> Iterator[Problem]:
        for name in ("max_question_length", "max_answer_length", "n_best"):
            if (value := getattr(self, name)) < 1:
                yield Problem(f"task.{name}", f"{value} is too small.", "Give 1 or more.")
        if self.doc_stride < 0:
            yield Problem("task.doc_stride", f"{self.doc_stride} is no number of tokens.", "Give 0 or more.")

    @property
    def input_columns(self) -> list[str]:
        """The question and the context."""
        return [self.question, self.context]

    @property
    def target_columns(self) -> list[str]:
        """The answers."""
        return [self.answers]

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Take the tokenizer; it must say which characters a token stands for, and leave room for the context.

        Raises:
            InputError: If it does not.
        """
        if not tokenizer.is_fast:
            what = f"{type(tokenizer).__name__} cannot say which characters a token stands for."
            raise InputError(Problem("data.tokenizer", what, "Use a tokenizer with a tokenizer.json (a fast one)."))
        length, special = tokenizer.model_max_length, tokenizer.num_special_tokens_to_add(pair=True)
        room = length - special - self.max_question_length
        if room <= self.doc_stride:
            what = f"windows of {length} tokens leave {max(room, 0)} to the context beside a question of "
            what += f"{self.max_question_length}, so they cannot overlap by {self.doc_stride}."
            cure = "Lower it or task.max_question_length, or raise data.max_length."
            raise InputError(Problem("task.doc_stride", what, cure))
        tokenizer.padding_side = "right"  # the positions of answers count from the left
        super().bind(tokenizer, labels)

    # rows

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find questions and contexts without text, and answers that are missing or not in their context."""
        for column in self.input_columns:
            yield from text_problems(Cells(rows, column), column)
        if self.answers in rows.column_names:
            yield from self._answer_problems(rows)

    def _answer_problems(self, rows: Dataset) -> Iterator[RowProblem]:
        misshapen, absent, misplaced = [], [], {}
        for index, (context, value) in enumerate(
            zip(Cells(rows, self.context), Cells(rows, self.answers), strict=True)
        ):
            if not _is_answers(value):
                misshapen.append(index)
            elif not value["text"]:
                absent.append(index)
            elif isinstance(context, str) and (fault := _misplaced(context, value)):
                misplaced[index] = fault
        if misshapen:
            cure = "Write answers as {text: [...], answer_start: [...]}, texts and numbers, one for one."
            yield RowProblem(misshapen, self.answers, "these are no answers.", cure)
        if absent and not self.unanswerable:
            cure = "Set task.unanswerable: true, or remove the row."
            yield RowProblem(absent, self.answers, "the question has no answer.", cure)
        if misplaced:
            cure = "answer_start counts characters from 0, at which the answer's text begins in the context."
            yield RowProblem(list(misplaced), self.answers, next(iter(misplaced.values())), cure)

    def encode(self, examples: Examples) -> Examples:
        """Turn each row to windows, with the tokens where the first answer begins and ends.

        A window that does not hold the whole answer points at the first special token, as does one without an answer.
        """
        encoding = self.tokenizer(
            self._cut(examples[self.question]),
            examples[self.context],
            truncation="only_second",
            stride=self.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        encoded: Examples = {name: encoding[name] for name in self.tokenizer.model_input_names if name in encoding}
        windows = [
            self._window(encoding, number, row, examples)
            for number, row in enumerate(encoding["overflow_to_sample_mapping"])
        ]
        for position, name in enumerate(WINDOW_COLUMNS):
            encoded[name] = [window[position] for window in windows]
        encoded["offsets"] = [offsets.ravel().tolist() for offsets in encoded["offsets"]]
        if self.answers in examples:
            encoded["answers"] = [json.dumps(window.answers) for window in windows]
            targets = [_target(window, examples[self.answers][window.row]["answer_start"]) for window in windows]
            encoded["start_positions"], encoded["end_positions"] = map(list, zip(*targets, strict=True))
        else:
            del encoded["answers"]
        return encoded

    def _cut(self, questions: Sequence[str]) -> list[str]:
        questions = [question.strip() for question in questions]
        offsets = self.tokenizer(
            questions,
            add_special_tokens=False,
            truncation=True,
            max_length=self.max_question_length,
            return_offsets_mapping=True,
        )["offset_mapping"]
        return [text[: ends[-1][1]] if ends else text for text, ends in zip(questions, offsets, strict=True)]

    def _window(self, encoding: Any, number: int, row: int, examples: Examples) -> Window:
        parts, ids = encoding.sequence_ids(number), encoding["input_ids"][number]
        first = parts.index(1) if 1 in parts else len(parts)
        offsets = np.array(encoding["offset_mapping"][number][first : first + parts.count(1)]).reshape(-1, 2)
        text = examples[self.context][row][offsets[0, 0] : offsets[-1, 1]] if len(offsets) else ""
        null = self.tokenizer.cls_token_id if self.tokenizer.cls_token_id is not None else self.tokenizer.bos_token_id
        answers = examples[self.answers][row]["text"] if self.answers in examples else []
        return Window(row, ids.index(null) if null in ids else 0, first, offsets, text, answers)

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return what pads windows; in evaluation it hands on their text and offsets as the list `windows`."""
        return _WindowCollator(super().collator(pad_to_multiple_of=pad_to_multiple_of), training)

    def full_row(self, length: int) -> dict[str, Any]:
        """Return a window without an answer."""
        return {"input_ids": [0] * length, "start_positions": 0, "end_positions": 0}

    # model

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the model's output; the loss is the mean of those of the answers' first and last tokens."""
        return model(**{name: value for name, value in batch.items() if name != "windows"})

    def metrics(self) -> MetricCollection:
        """Return exact match and F1, as percentages."""
        from torchmetrics import MetricCollection

        from lit_hf.evaluation.squad import SquadScorer

        return MetricCollection({"squad": SquadScorer(self.unanswerable, self.null_threshold)})

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """F1 and exact match; with unanswerable questions also the F1 at the best threshold."""
        best: dict[str, Literal["min", "max"]] = {"best_f1": "max"} if self.unanswerable else {}
        return {"f1": "max", "exact_match": "max", **best}

    def update(self, metrics: MetricCollection, outputs: Any, batch: Batch) -> None:
        """Add the best span of each window to the metrics."""
        metrics.update(batch["windows"], self._read(outputs, batch, n_best=1))

    def _read(self, outputs: Any, batch: Batch, n_best: int) -> Iterator[Reading]:
        starts, ends = outputs.start_logits.detach(), outputs.end_logits.detach()
        return read_windows(starts, ends, batch["windows"], n_best, self.max_answer_length)

    def report(self, results: Mapping[str, Any]) -> Iterable[RenderableType]:
        """Return the scores of the questions with and without answer by themselves, where there may be both."""
        from lit_hf.evaluation.squad import squad_report

        return squad_report(results, self.null_threshold) if self.unanswerable else ()

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return the `reading` of each window, of which `merge` makes the answer."""
        return [{"reading": reading} for reading in self._read(self.forward(model, batch), batch, self.n_best)]

    def merge(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the `answer` of a row, its `score`, and its first character (`start`) and the one after it (`end`).

        Scores are probabilities among the `n_best` answers, which `scores` lists, the best first. Where questions may
        be unanswerable, the empty answer is among them, and `null_difference` is what `null_threshold` is held to.
        """
        reading = Reading.of_row((prediction["reading"] for prediction in predictions), self.n_best)
        found = [(span.score, span.text, span.start, span.end) for span in reading.spans]
        if self.unanswerable or not found:
            found.append((reading.null_score, "", 0, 0))
        weights = [math.exp(score - max(found)[0]) for score, *_ in found]
        shares = [weight / sum(weights) for weight in weights]
        scores: dict[str, float] = {}
        for share, (_, text, *_) in sorted(zip(shares, found, strict=True), key=lambda pair: -pair[0]):
            scores.setdefault(text, share)
        says_none = self.unanswerable and reading.null_difference > self.null_threshold
        index = len(found) - 1 if says_none else 0
        _, answer, start, end = found[index]
        prediction = {"answer": answer, "score": shares[index], "start": start, "end": end, "scores": scores}
        if self.unanswerable:
            prediction["null_difference"] = reading.null_difference if reading.spans else None
        return prediction


class _WindowCollator:
    """Pads the model's inputs, and takes the rest along for evaluation. A class, so that workers can be sent it."""

    def __init__(self, pad: Collator, training: bool) -> None:
        self._pad = pad
        self._training = training

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = dict(self._pad([{k: v for k, v in row.items() if k not in WINDOW_COLUMNS} for row in rows]))
        if not self._training:
            batch["windows"] = [_read_window(row) for row in rows]
        return batch


def _read_window(row: dict[str, Any]) -> Window:
    offsets = np.array(row["offsets"], dtype=np.int64).reshape(-1, 2)
    answers = json.loads(row.get("answers", "[]"))
    return Window(row["row"], row["null_position"], row["first"], offsets, row["text"], answers)


def _target(window: Window, starts: Sequence[int]) -> tuple[int, int]:
    """Return the first and the last token of the first answer."""
    if not starts or not len(window.offsets):
        return window.null_position, window.null_position
    begin, end = starts[0], starts[0] + len(window.answers[0])
    token_starts, token_ends = window.offsets[:, 0].tolist(), window.offsets[:, 1].tolist()
    if begin < token_starts[0] or end > token_ends[-1]:
        return window.null_position, window.null_position
    first, last = bisect_right(token_ends, begin), bisect_left(token_starts, end) - 1
    if first > last:
        return window.null_position, window.null_position
    return window.first + first, window.first + last


def _is_answers(value: Any) -> bool:
    """Say whether this is `{text: [...], answer_start: [...]}` with texts and whole numbers, one for one."""
    texts, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return False
    return all(isinstance(text, str) for text in texts) and all(type(start) is int for start in starts)


def _misplaced(context: str, answers: Mapping[str, Any]) -> str | None:
    """Say which answer is not in its context where it should be, if one is not."""
    for text, start in zip(answers["text"], answers["answer_start"], strict=True):
        if start < 0 or not text.strip() or context[start : start + len(text)] != text:
            there = context[max(start, 0) : max(start, 0) + len(text)]
            return f"the answer {text!r:.60} is not in the context at offset {start}; there stands {there!r:.60}."
    return None
