from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForMultipleChoice, AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.errors import LitHFError
from lit_hf.export.verify import answers, tolerance_for, verify
from tests.classifiers import classifier


def test_the_same_model_differs_by_nothing(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    model.save_pretrained(tmp_path)
    task.tokenizer.save_pretrained(tmp_path)
    expected = answers(model, task.tokenizer)
    assert verify(tmp_path, task.auto_class, task.tokenizer, expected, 1e-5) == 0.0


def test_a_model_that_chooses_is_given_choices(tiny_text_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_model)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForMultipleChoice.from_pretrained(tiny_text_model)
    model.save_pretrained(tmp_path)
    expected = answers(model, tokenizer)
    assert verify(tmp_path, "AutoModelForMultipleChoice", tokenizer, expected, 1e-5) == 0.0
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"]))
    assert torch.equal(answers(adapted, tokenizer)[0]["logits"], expected[0]["logits"])


def test_one_changed_weight_is_found(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    expected = answers(model, task.tokenizer)
    model.classifier.bias.data[1] += 1e-3
    model.save_pretrained(tmp_path)
    task.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(LitHFError, match=r"logits differ by 0\.001"):
        verify(tmp_path, task.auto_class, task.tokenizer, expected, 1e-5)


def test_another_tokenizer_is_found(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    model.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tiny_text_model)
    other.model_max_length = 5
    other.save_pretrained(tmp_path)
    with pytest.raises(LitHFError, match="tokenizer gives other tokens"):
        verify(tmp_path, task.auto_class, task.tokenizer, answers(model, task.tokenizer), 1e-5)


def test_dropout_is_off_while_comparing_and_on_again_after(tiny_text_model):
    _, task = classifier(tiny_text_model)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_text_model, hidden_dropout_prob=0.5).train()
    first, second = answers(model, task.tokenizer), answers(model, task.tokenizer)
    assert all(torch.equal(one["logits"], two["logits"]) for one, two in zip(first, second, strict=True))
    assert model.training


def test_merging_and_half_precision_may_round():
    assert tolerance_for(torch.float32, merged=False) == 1e-5
    assert tolerance_for(torch.float32, merged=False) < tolerance_for(torch.float32, merged=True)
    assert tolerance_for(torch.bfloat16, merged=False) < tolerance_for(torch.bfloat16, merged=True) <= 0.1
