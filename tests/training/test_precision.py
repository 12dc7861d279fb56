import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_hf.training.precision import default_precision, low_precision_note, precision_note


def test_a_cpu_computes_in_float32_unless_it_is_told_otherwise():
    assert default_precision("cpu") == "32-true"
    assert precision_note("32-true").startswith("32-true")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_all_is_float32():
    assert default_precision("auto") == "32-true"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_with_bfloat16_computes_in_it():
    has_bfloat16 = torch.cuda.get_device_capability() >= (8, 0)
    assert default_precision("auto") == ("bf16-mixed" if has_bfloat16 else "32-true")


def test_weights_that_train_in_16_bits_are_told_with_their_number():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)).to(torch.bfloat16)
    model[1].float()
    assert low_precision_note(model).startswith("20 weights train in bfloat16")
    assert low_precision_note(model.float()) == ""


def test_an_adapter_on_a_16_bit_base_trains_in_float32():
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = get_peft_model(LlamaForCausalLM(config).to(torch.bfloat16), LoraConfig(target_modules=["q_proj"]))
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert low_precision_note(model) == ""
