import pytest
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoTokenizer

from lit_hf.errors import Problem
from lit_hf.models.adaptation import Adaptation
from lit_hf.models.assembly import Assembly
from lit_hf.models.loading import Base
from lit_hf.models.switches import Switches
from lit_hf.tasks import TextClassification


@pytest.fixture
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


def parts(folder, adapter=None, frozen=(), **base):
    return Assembly(Base(str(folder), **base), Adaptation(adapter), frozen, Switches())


def places(assembly, task):
    return [problem.where for problem in assembly.problems(task, lambda model: [Problem("of the model", "wrong.")])]


def test_the_whole_model_is_looked_at_once_its_parts_are_right(task, tiny_text_model):
    assert places(parts(tiny_text_model), task) == ["of the model"]
    assert places(parts(tiny_text_model, frozen=["absent"]), task) == ["model.freeze[0]", "of the model"]
    assert places(parts(tiny_text_model, attention="spda"), task) == ["model.attention"]
    task.tokenizer.model_max_length = 65
    assert places(parts(tiny_text_model), task) == ["data.max_length"]


def test_virtual_tokens_take_their_part_of_the_positions(tiny_text_model):
    assert parts(tiny_text_model).longest_input == 64
    assert parts(tiny_text_model, PromptTuningConfig(num_virtual_tokens=10)).longest_input == 54


def test_a_model_is_built_as_its_skeleton_says(task, tiny_text_model):
    def kinds(model):
        return {name: (tuple(one.shape), one.requires_grad) for name, one in model.named_parameters()}

    def make():
        return parts(tiny_text_model, LoraConfig(r=2, target_modules=["query"]), frozen=["layer.0"])

    model, _ = make().build(task, lambda model: [])
    skeleton = kinds(make().skeleton(task))
    built = kinds(model)
    assert {name: kind for name, kind in built.items() if name in skeleton and "classifier" not in name} == {
        name: kind for name, kind in skeleton.items() if "classifier" not in name
    }
    assert not any(trains for name, (_, trains) in built.items() if "layer.0" in name)
    assert model.config.pad_token_id == task.tokenizer.pad_token_id


def test_checkpoints_hold_what_is_in_no_other_place(task, tiny_text_model):
    everything = parts(tiny_text_model)
    assert everything.stores_base and everything.build(task, lambda model: [])[1] is None
    adapted = parts(tiny_text_model, LoraConfig(r=2, target_modules=["query"]))
    assert not adapted.stores_base
    _, stored = adapted.build(task, lambda model: [])
    weights = {name for name in stored if "position_ids" not in name and "token_type_ids" not in name}
    assert all("lora_" in name or "classifier" in name for name in weights)
    assert any("classifier" in name for name in weights)
