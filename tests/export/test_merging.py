import json

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

import lit_hf.export.merging as merging
from lit_hf.errors import InputError, LitHFError
from lit_hf.export.merging import loss_of_precision, merge
from lit_hf.export.package import export
from lit_hf.export.verify import answers
from lit_hf.models.loading import Base
from lit_hf.tasks import TextClassification
from tests.classifiers import LABELS, RECORD

METHODS = {"nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "int8": {"load_in_8bit": True}}


@pytest.fixture
def task(tiny_text_model):
    task = TextClassification(text="text")
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model), LABELS)
    return task


def trained(folder, task, adapter, dtype="float32", **settings):
    """Return a model on quantized weights whose adapter and head make a difference."""
    quantization = BitsAndBytesConfig(**settings) if settings else None
    model, _ = Base(str(folder), dtype=dtype, quantization=quantization).build(task)
    model = get_peft_model(model, adapter)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def lora():
    return LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")


@pytest.mark.parametrize(("method", "limit"), [("nf4", 1e-5), ("int8", 0.01)])
@pytest.mark.parametrize("adapter", [lora(), IA3Config(task_type="SEQ_CLS")], ids=lambda adapter: adapter.peft_type)
def test_a_quantized_base_is_merged_in_full_precision(tiny_text_model, task, method, limit, adapter):
    model = trained(tiny_text_model, task, adapter, **METHODS[method])
    before = answers(model, task.tokenizer)
    merged = merge(model)
    lost = loss_of_precision(model, before, answers(merged, task.tokenizer))
    assert 0 < lost.mean <= lost.largest < limit < lost.scale
    for old, new in zip(before, answers(merged, task.tokenizer), strict=True):
        assert (old["logits"] - new["logits"]).abs().max().item() <= lost.largest
    for old, new in zip(before, answers(model, task.tokenizer), strict=True):
        assert torch.equal(old["logits"], new["logits"])  # the given model is as it was


def test_a_model_loaded_in_half_precision_is_merged_to_it_and_the_loss_is_told(tiny_text_model, task):
    model = trained(tiny_text_model, task, lora(), "bfloat16", **METHODS["nf4"])
    merged = merge(model)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    lost = loss_of_precision(model, answers(model, task.tokenizer), answers(merged, task.tokenizer))
    assert 1e-4 < lost.largest < 0.3


def test_an_export_says_what_was_lost_and_loads_as_any_model(tiny_text_model, task, tmp_path, caplog):
    caplog.set_level("INFO")
    model = trained(tiny_text_model, task, lora(), **METHODS["nf4"])
    export(model, task, RECORD, tmp_path / "export", merge=True)
    lost = json.loads((tmp_path / "export" / "lit_hf.json").read_text())["merged"]
    assert lost["quantization"] == "bitsandbytes 4-bit nf4"
    assert f"outputs differ by {lost['largest']:.2g} at most and {lost['mean']:.2g} in the mean" in caplog.text
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    assert type(reloaded.bert.pooler.dense) is torch.nn.Linear
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_a_base_that_is_not_quantized_has_lost_nothing(tiny_text_model, task):
    model = trained(tiny_text_model, task, lora())
    before = answers(model, task.tokenizer)
    assert loss_of_precision(model, before, answers(merge(model), task.tokenizer)) is None


def test_a_merged_model_that_answers_otherwise_is_not_exported(tiny_text_model, task, tmp_path, monkeypatch):
    def wrong(model):
        merged = merge(model)
        merged.classifier.weight.data.neg_()
        return merged

    monkeypatch.setattr("lit_hf.export.package.merge_adapter", wrong)
    model = trained(tiny_text_model, task, lora(), **METHODS["nf4"])
    with pytest.raises(LitHFError, match="Nothing was exported"):
        export(model, task, RECORD, tmp_path / "export", merge=True)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_be_read_back_are_told(tiny_text_model, task, monkeypatch):
    def refuse(model):
        raise NotImplementedError("GptqLinear cannot be dequantized.")

    monkeypatch.setattr(merging, "dequantize", refuse)
    with pytest.raises(InputError, match="GptqLinear cannot be dequantized"):
        merge(trained(tiny_text_model, task, lora(), **METHODS["nf4"]))
