import copy
import logging

import pytest
import torch
from peft import LoftQConfig, LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from lit_hf.models.adaptation import Adaptation
from lit_hf.models.adapters import adapter_problems
from lit_hf.models.assembly import Assembly
from lit_hf.models.loading import Base
from lit_hf.models.quantization import quantization_problems
from lit_hf.models.switches import Switches
from lit_hf.tasks import TextClassification

IDS = torch.arange(5, 25)[None]
METHODS = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    if request.param == "llama":
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        model = LlamaModel(LlamaConfig(vocab_size=120, pad_token_id=0, initializer_range=0.1, **shape))
    else:  # whose layers have their weights the other way round
        shape = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
        model = GPT2Model(GPT2Config(vocab_size=120, pad_token_id=0, initializer_range=0.1, **shape))
    model.save_pretrained(folder)
    return folder


def loftq(**settings):
    start = {"init_lora_weights": "loftq", "loftq_config": LoftQConfig()}
    return LoraConfig(**{"r": 16, "lora_alpha": 32, "target_modules": "all-linear", **start, **settings})


def assembled(folder, adapter, method):
    base = Base(str(folder), quantization=BitsAndBytesConfig(**METHODS[method]))
    return Assembly(base, Adaptation(adapter, is_quantized=True), [], Switches())


def outputs(model):
    with torch.no_grad():
        return model.eval().base_model.model.base_model(IDS).last_hidden_state


@pytest.mark.parametrize(
    ("method", "most"),
    [("nf4", 0.8), ("int8", 0.95)],  # 8 bits round the layers' inputs too
)
def test_an_adapter_gives_back_what_quantization_took(folder, task, method, most, caplog):
    caplog.set_level(logging.INFO, "lit_hf")
    parts = assembled(folder, loftq(), method)
    assert list(parts.problems(task, lambda model: [])) == []
    model, stored = parts.build(task, lambda model: [])
    plain = Base(str(folder)).build(task)[0].eval()
    with torch.no_grad():
        expected = plain.base_model(IDS).last_hidden_state
    started = (outputs(model) - expected).norm()
    with model.disable_adapter():
        without = (outputs(model) - expected).norm()
    assert started < most * without
    assert "LoftQ gives back" in caplog.text
    # what is kept is plain LoRA on the quantized base
    assert parts.adaptation.state_dict()["init_lora_weights"] is True
    assert stored and not any("base_layer" in name for name in stored)


def test_all_ranks_give_all_of_it_back(folder, task):
    parts = assembled(folder, loftq(r=64, use_rslora=True), "nf4")
    model, _ = parts.build(task, lambda model: [])
    with torch.no_grad():
        expected = Base(str(folder)).build(task)[0].eval().base_model(IDS).last_hidden_state
    torch.testing.assert_close(outputs(model), expected, atol=1e-3, rtol=1e-3)


def test_a_run_that_goes_on_does_not_start_again(folder, task):
    parts = assembled(folder, loftq(), "nf4")
    kept = parts.adaptation.state_dict()
    again = assembled(folder, loftq(), "nf4")
    again.adaptation.load_state_dict(copy.deepcopy(kept))
    model, _ = again.build(task, lambda model: [])
    assert all(not value.any() for name, value in model.named_parameters() if "lora_B" in name)


def test_dora_is_refused(folder, task):
    found = list(assembled(folder, loftq(use_dora=True), "nf4").problems(task, lambda model: []))
    assert [problem.where for problem in found] == ["model.adapter.init_args.use_dora"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="PEFT has it on CUDA")
def test_weights_in_full_need_a_gpu(folder, task):
    found = list(adapter_problems(loftq(), Base(str(folder)).skeleton(task)))
    assert [problem.where for problem in found] == ["model.adapter.init_args.init_lora_weights"]
    assert "model.quantization" in found[0].cure


def test_adapters_are_not_merged_into_quantized_weights(folder):
    base = Base(str(folder), quantization=BitsAndBytesConfig(**METHODS["nf4"]))
    (problem,) = quantization_problems(base.quantization, None, LoraConfig(), ["runs/first/export"])
    assert problem.where == "model.merge_adapters"
    assert "without model.quantization" in problem.cure
