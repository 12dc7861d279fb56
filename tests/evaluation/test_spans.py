import math

import numpy as np
import pytest
import torch

from lit_hf.evaluation.spans import Reading, Span, Window, read_windows

TEXT = "Ada wrote it in 1843."
OFFSETS = np.array([(0, 3), (4, 9), (10, 12), (13, 15), (16, 20), (20, 21)])


def window(row=0, first=3, offsets=OFFSETS, text=TEXT, answers=()):
    return Window(row, 0, first, offsets, text, answers)


def span(score, text="x"):
    return Span(score, 0, len(text), text)


def test_the_best_spans_are_those_of_a_plain_loop_over_all():
    torch.manual_seed(0)
    starts, ends = torch.randn(2, 12), torch.randn(2, 12)
    readings = list(read_windows(starts, ends, [window(), window(first=5)], n_best=4, max_length=3))
    for number, first in enumerate((3, 5)):
        every = {
            (begin, end): starts[number, first + begin].item() + ends[number, first + end].item()
            for begin in range(6)
            for end in range(begin, min(begin + 3, 6))
        }
        best = sorted(every, key=every.get, reverse=True)[:4]
        assert [found.text for found in readings[number].spans] == [
            TEXT[OFFSETS[begin, 0] : OFFSETS[end, 1]] for begin, end in best
        ]
        assert [found.score for found in readings[number].spans] == pytest.approx([every[key] for key in best])
        assert readings[number].null_score == pytest.approx((starts[number, 0] + ends[number, 0]).item())


def test_a_span_lies_inside_the_context_however_high_the_rest_scores():
    starts, ends = torch.full((1, 12), 9.0), torch.full((1, 12), 9.0)
    starts[0, 3:9], ends[0, 3:9] = torch.arange(6.0), torch.arange(6.0)
    (reading,) = read_windows(starts, ends, [window()], n_best=100, max_length=30)
    assert len(reading.spans) == 6 * 7 / 2
    assert reading.spans[0] == Span(10.0, 20, 21, ".")


def test_characters_count_from_the_start_of_the_whole_context_and_blanks_are_left_out():
    offsets = np.array([(100, 103), (103, 109), (109, 112)])
    scores = torch.tensor([[0.0, -5.0, 5.0, -5.0]])
    (reading,) = read_windows(scores, scores, [window(first=1, offsets=offsets, text="Ada wrote it")], 1, 5)
    assert reading.spans == [Span(10.0, 104, 109, "wrote")]


def test_a_window_without_context_has_no_span():
    scores = torch.ones(1, 4)
    (reading,) = read_windows(scores, scores, [window(offsets=np.empty((0, 2), dtype=int), text="")], 3, 5)
    assert reading == Reading(2.0, [])
    assert reading.null_difference == math.inf


def test_a_row_takes_the_best_spans_and_the_lowest_score_of_no_answer_of_its_windows():
    parts = [Reading(3.0, [span(2.0, "a"), span(0.0, "b")]), Reading(-1.0, [span(4.0, "c"), span(1.0, "d")])]
    whole = Reading.of_row(parts, n_best=3)
    assert (whole.null_score, [found.text for found in whole.spans]) == (-1.0, ["c", "a", "d"])
    assert whole.null_difference == -5.0
