from __future__ import annotations

import json
import logging

import pytest
from transformers import GenerationConfig

from lit_hf.evaluation.decoding import (
    GREEDY,
    Room,
    fit_prompt,
    generation_problems,
    room,
    stop_tokens,
    superseded,
    with_length,
    write_generation_config,
)
from tests.conversations import chat_tokenizer

QWEN = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "pad_token_id": 151643,
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}
"""Of Qwen2.5-7B-Instruct."""

BART = {
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "length_penalty": 2.0,
    "max_length": 142,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
}
"""Of bart-large-cnn."""


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


@pytest.mark.parametrize("settings", [{"num_beams": 2}, {}, {"do_sample": True}])
def test_more_than_one_text_a_row_is_refused(settings):
    ((where, what, _),) = problems(num_return_sequences=2, **settings)
    assert (where, what) == ("task.generation.num_return_sequences", "a row gets one text.")
    assert problems(num_return_sequences=1) == []


def test_what_new_settings_make_meaningless_goes():
    assert superseded(QWEN, GREEDY) >= {"temperature", "top_k", "top_p"}
    assert not superseded(QWEN, {"max_new_tokens": 3}) & {"temperature", "top_k", "top_p", "repetition_penalty"}
    assert superseded(BART, {"num_beams": 1}) >= {"early_stopping", "length_penalty"}
    assert not superseded(BART, {"num_beams": 2}) & set(BART)
    assert superseded(BART, {"max_new_tokens": 3}) & set(BART) == {"max_length"}


def written(folder, checkpoint, settings, tokenizer=None):
    (folder / "generation_config.json").write_text(json.dumps(checkpoint))
    write_generation_config(folder, tokenizer, settings)
    return GenerationConfig.from_pretrained(folder)


def test_greedy_settings_are_written_over_those_of_a_checkpoint_that_samples(tmp_path, caplog):
    config = written(tmp_path, QWEN, {**GREEDY, "max_new_tokens": 256})
    config.validate(strict=True)
    assert (config.temperature, config.top_k, config.top_p) == (None, None, None)
    assert (config.do_sample, config.max_new_tokens, config.repetition_penalty) == (False, 256, 1.05)
    assert config.eos_token_id == [151645, 151643]
    assert caplog.messages == []


def test_one_beam_is_written_over_a_checkpoint_with_more(tmp_path):
    config = written(tmp_path, BART, {"num_beams": 1, "max_new_tokens": 60})
    config.validate(strict=True)
    assert (config.num_beams, config.early_stopping, config.length_penalty) == (1, None, None)
    assert (config.max_length, config.max_new_tokens, config.min_length) == (None, 60, 56)
    config = written(tmp_path, BART, {"max_length": 60})
    assert (config.num_beams, config.early_stopping, config.length_penalty) == (4, True, 2.0)
    assert (config.max_length, config.max_new_tokens) == (60, None)


def test_several_texts_of_a_checkpoint_become_one(tmp_path):
    assert written(tmp_path, {"do_sample": True, "num_return_sequences": 3}, GREEDY).num_return_sequences is None


def test_what_transformers_still_refuses_costs_no_export(tmp_path, caplog):
    forced = {"forced_eos_token_id": 2}
    config = written(tmp_path, forced, {"suppress_tokens": [2]})
    assert (config.forced_eos_token_id, config.suppress_tokens) == (2, None)
    assert "says nothing of how the task generates" in caplog.text


def test_the_end_of_a_prompt_is_kept_with_room_for_the_answer():
    ids = list(range(1000))
    assert fit_prompt(ids, 1024, 24) == ids
    assert fit_prompt(ids, 1024, 256) == ids[-768:]
    assert fit_prompt(ids, 32, 32) == fit_prompt(ids, 32, 100) == ids[-16:]
    assert fit_prompt(ids, 1, 5) == ids[-1:]
    assert fit_prompt(ids, 10**30, 5) == ids


def test_the_length_is_said_in_one_way():
    assert with_length({}, 64) == with_length({}, 64, 1024) == {"max_new_tokens": 64}
    assert with_length({}, 64, 32) == {"max_new_tokens": 16}
    assert with_length({"max_new_tokens": 40}, 64, 32) == {"max_new_tokens": 40}
    assert with_length({"max_length": 50, "max_new_tokens": None}, 64, 1024) == {"max_length": 50}
    assert room({"max_new_tokens": 40}, 1024) == Room(1024, 40)
    assert room({"max_length": 50}, 1024) == Room(50, 50)
    assert room({"max_length": 50}, 32) == Room(32, 32)


def test_generation_stops_at_the_end_of_a_turn_beside_the_ends_of_model_and_tokenizer():
    tokenizer = chat_tokenizer()
    end = tokenizer.eos_token_id
    tokenizer.eos_token = tokenizer.pad_token = "[SEP]"
    assert stop_tokens(tokenizer, None, end) == {"eos_token_id": [3, end], "pad_token_id": 3}
    assert stop_tokens(tokenizer, GenerationConfig(eos_token_id=[7, end]), end)["eos_token_id"] == [7, end, 3]
    assert stop_tokens(tokenizer, GenerationConfig(eos_token_id=7))["eos_token_id"] == [7, 3]
