"""Spans of an extractive answer: the best ones by start and end scores, and the answer of a row read in windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Span(NamedTuple):
    """A part of a context that may be the answer.

    Attributes:
        score: Start logit plus end logit.
        start: Its first character in the context.
        end: The character after its last.
        text: The characters between.
    """

    score: float
    start: int
    end: int
    text: str


class Window(NamedTuple):
    """A part of a row's context that the model reads at once, as far as its answer depends on it.

    Attributes:
        row: The row, by its position.
        null_position: The token whose score stands for "no answer".
        first: The first token of the context.
        offsets: First and last character of the context's tokens, in the whole context; shape [tokens, 2].
        text: The context from the first token's first character on.
        answers: The right answers, where they are known.
    """

    row: int
    null_position: int
    first: int
    offsets: np.ndarray
    text: str
    answers: Sequence[str]


class Reading(NamedTuple):
    """What the model sees in a window.

    Attributes:
        null_score: Score of "no answer".
        spans: The best spans, the best first; none where the window has no token of the context.
    """

    null_score: float
    spans: Sequence[Span]

    @classmethod
    def of_row(cls, readings: Iterable[Reading], n_best: int) -> Reading:
        """Return the reading of a row from those of its windows.

        A row has no answer only if no window has one, so that the lowest score of "no answer" counts.
        """
        readings = list(readings)
        spans = sorted((span for reading in readings for span in reading.spans), key=lambda span: -span.score)
        return cls(min(reading.null_score for reading in readings), spans[:n_best])

    @property
    def null_difference(self) -> float:
        """The score of "no answer" less that of the best span; infinite where there is no span."""
        return self.null_score - self.spans[0].score if self.spans else math.inf


def read_windows(
    start_logits: Tensor, end_logits: Tensor, windows: Sequence[Window], n_best: int, max_length: int
) -> Iterator[Reading]:
    """Find the best spans of each window.

    All spans inside the context that are short enough are compared, not only those between the best starts and ends.

    Args:
        start_logits: Scores of the first token, shape [windows, tokens].
        end_logits: Scores of the last token, shape [windows, tokens].
        windows: One for each row of the scores.
        n_best: Spans a window.
        max_length: Longest span in tokens.
    """
    device = start_logits.device
    nulls = torch.tensor([window.null_position for window in windows], device=device)[:, None]
    null_scores = (start_logits.gather(1, nulls) + end_logits.gather(1, nulls)).squeeze(1).float().tolist()
    bounds = torch.tensor([(window.first, window.first + len(window.offsets)) for window in windows], device=device)
    found = _best(start_logits.float(), end_logits.float(), bounds, n_best, max_length)
    for window, null_score, *best in zip(windows, null_scores, *(part.tolist() for part in found), strict=True):
        spans = [_span(window, *span) for span in zip(*best, strict=True) if math.isfinite(span[0])]
        yield Reading(null_score, spans)


def _best(
    start_logits: Tensor, end_logits: Tensor, bounds: Tensor, n_best: int, max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores, first and last tokens of the best spans, each [windows, spans]; impossible ones score -inf."""
    tokens = start_logits.shape[1]
    max_length = min(max_length, tokens)
    positions = torch.arange(tokens, device=start_logits.device)
    outside = (positions < bounds[:, :1]) | (positions >= bounds[:, 1:])
    starts, ends = (logits.masked_fill(outside, -math.inf) for logits in (start_logits, end_logits))
    # [windows, tokens, lengths]: the end scores of the spans of 1, 2, ... tokens that start at each token
    ends = functional.pad(ends, (0, max_length - 1), value=-math.inf).unfold(1, max_length, 1)
    scores, indices = (starts[:, :, None] + ends).flatten(1).topk(min(n_best, tokens * max_length))
    first = indices // max_length
    return scores, first, first + indices % max_length


def _span(window: Window, score: float, first: int, last: int) -> Span:
    start = int(window.offsets[first - window.first, 0])
    end = int(window.offsets[last - window.first, 1])
    base = int(window.offsets[0, 0])
    text = window.text[start - base : end - base]
    # the tokens of some tokenizers begin with the blank before the word
    start += len(text) - len(text.lstrip())
    return Span(score, start, start + len(text.strip()), text.strip())
