import importlib.util

import pytest
import torch
from transformers import AutoTokenizer

from lit_hf.errors import InputError
from lit_hf.models.attention import attention_problems
from lit_hf.models.loading import Base
from lit_hf.tasks import TextClassification

GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}


@pytest.fixture
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


@pytest.mark.parametrize("attention", [None, "eager", "sdpa", "flash_attention_2"])
def test_known_implementations_are_no_problem_before_the_model_is_built(attention):
    assert list(attention_problems(attention)) == []


def test_an_implementation_that_there_is_not_names_those_there_are():
    (problem,) = attention_problems("spda")
    assert problem.where == "model.attention"
    assert problem.cure.startswith("Did you mean 'sdpa'?")
    assert "flex_attention" in problem.cure


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_flex_attention_is_refused_where_it_does_not_train():
    (problem,) = attention_problems("flex_attention")
    assert "no backward pass" in problem.what


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_attention_that_is_not_installed_is_refused_with_the_cure(task, tiny_text_model):
    with pytest.raises(InputError) as caught:
        Base(str(tiny_text_model), attention="flash_attention_2").skeleton(task)
    (problem,) = caught.value.problems
    assert problem.where == "model.attention"
    assert problem.what == (
        "flash_attention_2 cannot be had: the package for FlashAttention2 doesn't seem to be installed."
    )
    assert "pip install flash-attn" in problem.cure


def test_a_model_that_has_not_this_implementation_is_told(task):
    with pytest.raises(InputError, match="flex_attention cannot be had: GPT2") as caught:
        Base(config=GPT2, attention="flex_attention").skeleton(task)
    assert caught.value.problems[0].cure == "Leave it out to let transformers choose."
