from __future__ import annotations

import sys

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from lit_hf.cli.generation import can_stream, set_generation
from lit_hf.cli.main import main
from lit_hf.data.tokenization import train_tokenizer
from lit_hf.errors import InputError
from lit_hf.export.package import export
from lit_hf.models.loading import Base
from lit_hf.tasks import CausalLM, Chat, Preference, Seq2Seq, TextClassification
from tests.conversations import chat_tokenizer

SIZES = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
RECORD = {"class_path": "lit_hf.tasks.seq2seq.Seq2Seq", "init_args": {"max_target_length": 8}}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an untrained model; its model and task."""
    torch.manual_seed(1)
    task = Seq2Seq(**RECORD["init_args"])
    task.bind(train_tokenizer(iter(["good film", "bad film and a dull plot"]), 300))
    model = AutoModelForSeq2SeqLM.from_config(Base(config={"model_type": "t5", **SIZES}).task_config(task)).eval()
    folder = tmp_path_factory.mktemp("seq2seq") / "export"
    export(model, task, RECORD, folder)
    return folder, model, task


def test_settings_of_the_command_line_win():
    task = Seq2Seq(generation={"num_beams": 4, "length_penalty": 2.0})
    set_generation(task, {"num_beams": 2}, 7)
    assert task.generation == {"num_beams": 2, "length_penalty": 2.0, "max_new_tokens": 7}
    set_generation(task, {"max_length": 9}, None)
    assert task.generation == {"num_beams": 2, "length_penalty": 2.0, "max_length": 9}


def test_what_settings_of_the_command_line_make_meaningless_goes():
    task = Seq2Seq(generation={"num_beams": 4, "length_penalty": 2.0})
    set_generation(task, {"num_beams": 1}, None)
    assert task.generation == {"num_beams": 1, "max_new_tokens": 128}


@pytest.mark.parametrize("kind", [Seq2Seq, Chat, CausalLM, Preference])
def test_of_the_command_line_a_total_length_is_taken_and_several_texts_are_refused(kind):
    task = kind()
    set_generation(task, {"max_length": 20}, None)
    task.bind(chat_tokenizer())
    assert task.generation["max_length"] == 20
    assert "max_new_tokens" not in task.generation
    with pytest.raises(InputError, match=r"--generation\.num_return_sequences: a row gets one text"):
        set_generation(task, {"num_return_sequences": 2, "num_beams": 2}, None)


def test_no_settings_change_nothing():
    task = TextClassification()
    set_generation(task, {}, None)
    assert task.generation is None


@pytest.mark.parametrize("given", [({"num_beams": 2}, None), ({}, 5)])
def test_a_task_that_generates_nothing_takes_no_settings(given):
    with pytest.raises(InputError, match="TextClassification does not generate text"):
        set_generation(TextClassification(), *given)


def test_an_unknown_setting_is_refused_before_a_model_loads(exported, capsys):
    assert main(["predict", str(exported[0]), "--text", "a", "--generation", '{"num_beam": 2}']) == 2
    assert "Did you mean 'num_beams'?" in capsys.readouterr().err
    assert main(["predict", str(exported[0]), "--text", "a", "--generation", "num_beams=2"]) == 2
    assert "is no JSON object" in capsys.readouterr().err


def test_a_terminal_sees_one_text_as_it_is_generated(exported, capsys, monkeypatch):
    folder, model, task = exported
    (expected,) = task.predict(model, task.collator()([{"input_ids": task.encode({"source": ["a"]})["input_ids"][0]}]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["predict", str(folder), "--text", "a"]) == 0
    assert capsys.readouterr().out == expected["generated_text"] + "\n"


def test_beams_cannot_be_streamed(exported):
    _, model, task = exported
    assert can_stream(model, task)
    assert not can_stream(model, Seq2Seq(generation={"num_beams": 2}))
    assert not can_stream(model, TextClassification())
