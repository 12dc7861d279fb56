import copy
import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.models.adaptation import Adaptation
from lit_hf.models.loading import Base
from lit_hf.tasks import TextClassification

IDS = torch.tensor([[2, 5, 6, 3]])


@pytest.fixture
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


@pytest.fixture
def skeleton(task, tiny_text_model):
    return Base(str(tiny_text_model)).skeleton(task)


def lora(**settings):
    return LoraConfig(**{"r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", **settings})


def trained(folder, base, adapter=None, seed=1):
    """Save an adapter with random weights to a folder, and return the folder."""
    adapter = copy.deepcopy(adapter or lora())
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), adapter)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return str(folder)


def build(task, base, adaptation):
    model, new = Base(str(base)).build(task)
    return adaptation.apply(model, task, new, lambda model: [])


def told(adaptation, task, skeleton):
    return {problem.where: problem.what for problem in adaptation.problems(task, skeleton)}


def test_without_an_adapter_the_model_itself_trains(task, skeleton, tiny_text_model):
    nothing = Adaptation()
    assert nothing.config is None and nothing.state_dict() is None
    assert nothing.changes_base and nothing.is_new
    assert told(nothing, task, skeleton) == {}
    assert nothing.skeleton(task, skeleton) is skeleton
    model = build(task, tiny_text_model, nothing)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_s_config_travels_as_plain_values(task, tiny_text_model):
    adaptation = Adaptation(lora(target_modules={"value", "query"}), revision="v1")
    build(task, tiny_text_model, adaptation)
    state = json.loads(json.dumps(adaptation.state_dict()))
    assert sorted(state["target_modules"]) == ["query", "value"] and state["revision"] == "v1"
    again = Adaptation(IA3Config())  # what the run kept wins
    again.load_state_dict(state)
    assert not again.is_new
    assert isinstance(again.config, LoraConfig) and again.config.r == 2
    again = Adaptation(lora())
    again.load_state_dict(None)
    assert again.is_new


def test_an_adapter_to_start_from_has_its_weights_and_trains(task, tiny_text_model, tmp_path):
    folder = trained(tmp_path / "first", tiny_text_model)
    model = build(task, tiny_text_model, Adaptation(checkpoint=folder))
    base = AutoModelForSequenceClassification.from_pretrained(tiny_text_model, num_labels=2)
    expected = PeftModel.from_pretrained(base, folder)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IDS).logits, expected.eval()(IDS).logits)
    assert {name for name, p in model.named_parameters() if "lora_" in name and not p.requires_grad} == set()


def test_adapters_are_merged_one_after_the_other(task, tiny_text_model, tmp_path):
    folders = [trained(tmp_path / str(seed), tiny_text_model, seed=seed) for seed in (1, 2)]
    model = build(task, tiny_text_model, Adaptation(merged=folders))
    assert all(parameter.requires_grad for parameter in model.parameters())
    expected = AutoModelForSequenceClassification.from_pretrained(tiny_text_model, num_labels=2)
    for folder in folders:
        expected = PeftModel.from_pretrained(expected, folder).merge_and_unload()
    name = "encoder.layer.1.attention.self.value.weight"
    torch.testing.assert_close(model.bert.state_dict()[name], expected.bert.state_dict()[name])
    assert Adaptation(lora(), merged=folders).changes_base and not Adaptation(lora()).changes_base


def test_what_cannot_be_merged_or_gone_on_from_is_told_at_once(task, skeleton, tiny_text_model, tmp_path):
    prompt = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    prompts = trained(tmp_path / "prompt", tiny_text_model, prompt)
    found = told(Adaptation(lora(), merged=[prompts, str(tmp_path)]), task, skeleton)
    assert set(found) == {"model.merge_adapters[0]", "model.merge_adapters[1]"}
    assert "is a prompt" in found["model.merge_adapters[0]"]
    assert "holds no adapter" in found["model.merge_adapters[1]"]
    first = trained(tmp_path / "first", tiny_text_model)
    assert set(told(Adaptation(lora(), checkpoint=first), task, skeleton)) == {"model.adapter_checkpoint"}
    assert told(Adaptation(checkpoint=first), task, skeleton) == {}


def test_an_adapter_of_another_model_is_told(task, skeleton, tiny_text_model, tmp_path):
    folder = trained(tmp_path / "first", tiny_text_model, lora(target_modules=["dense"]))
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    (tmp_path / "first" / "adapter_config.json").write_text(
        json.dumps({**config, "target_modules": ["query"], "modules_to_save": None})
    )
    adaptation = Adaptation(checkpoint=folder)
    (problem,) = adaptation.weight_problems(adaptation.skeleton(task, skeleton))
    assert problem.where == "model.adapter_checkpoint"
    # two matrices on each dense layer: three in each of two layers, and the pooler's
    assert "14 of its weights belong to no module of the model" in problem.what


@pytest.mark.parametrize(
    "adapter", [lora(), IA3Config(task_type="SEQ_CLS"), PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)]
)
def test_weights_that_fit_are_no_problem(task, skeleton, tiny_text_model, tmp_path, adapter):
    adaptation = Adaptation(checkpoint=trained(tmp_path / "first", tiny_text_model, adapter))
    assert told(adaptation, task, skeleton) == {}
    assert list(adaptation.weight_problems(adaptation.skeleton(task, skeleton))) == []


@pytest.mark.parametrize("adapter", [lora(), IA3Config(), PrefixTuningConfig(num_virtual_tokens=2)])
def test_a_skeleton_has_the_adapter_s_modules_and_no_weights(task, skeleton, adapter):
    adaptation = Adaptation(adapter)
    model = adaptation.skeleton(task, skeleton)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert isinstance(model, PeftModel)
    assert adaptation.config.task_type in ("SEQ_CLS", None)  # the given config is not filled in by that
