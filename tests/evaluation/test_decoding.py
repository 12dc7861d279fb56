from __future__ import annotations

import logging

import pytest

from lit_hf.evaluation.decoding import generation_problems


def problems(**settings):
    return [(problem.where, problem.what, problem.cure) for problem in generation_problems("task.generation", settings)]


def test_what_generate_knows_passes():
    assert problems() == []
    assert problems(num_beams=4, length_penalty=2.0, max_new_tokens=60, no_repeat_ngram_size=3) == []


def test_an_unknown_setting_is_told_with_the_nearest():
    first, second = problems(num_beam=4, colour="red")
    assert first == ("task.generation.num_beam", "generation has no such setting.", "Did you mean 'num_beams'?")
    assert second[0] == "task.generation.colour"
    assert "GenerationConfig" in second[2]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"max_new_tokens": -1}, "must be greater than 0"),
        ({"temperature": 0.5}, "`do_sample` is not set"),
        ({"length_penalty": 2.0}, "only used in beam-based generation"),
    ],
)
def test_values_that_are_refused_or_would_be_ignored_are_told_once(settings, what, caplog):
    with caplog.at_level(logging.WARNING):
        ((where, told, _),) = problems(**settings)
    assert where == "task.generation"
    assert what in told
    assert caplog.messages == []
