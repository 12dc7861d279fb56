import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig
from transformers import AutoTokenizer

from lit_hf.models.adapters import adapter_problems, add_adapter, reference_problems
from lit_hf.models.loading import Base
from lit_hf.tasks import TextClassification


@pytest.fixture
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


def adapted(task, folder, adapter):
    model, new = Base(str(folder)).build(task)
    return add_adapter(model, adapter, task.peft_task_type, new)


def test_only_the_adapter_and_the_new_head_train(task, tiny_text_model):
    model = adapted(task, tiny_text_model, LoraConfig(r=2, target_modules=["query", "value"]))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len([name for name in trainable if "lora_" in name]) == 2 * 2 * 2
    assert {name for name in trainable if "lora_" not in name} == {
        f"base_model.model.classifier.modules_to_save.default.{name}" for name in ("weight", "bias")
    }


def test_a_step_changes_the_head_and_leaves_the_base(task, tiny_text_model):
    model = adapted(task, tiny_text_model, LoraConfig(r=2))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    batch = task.collator()([{"input_ids": [2, 5, 6, 3], "labels": 1}])
    task.forward(model, batch).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved <= trainable
    assert {name for name in trainable if "lora_B" in name or "classifier" in name} <= moved


@pytest.mark.parametrize(
    "adapter", [LoraConfig(), IA3Config(), PromptTuningConfig(num_virtual_tokens=3)], ids=lambda a: a.peft_type
)
def test_task_type_and_targets_are_filled_in(task, tiny_text_model, adapter):
    model = adapted(task, tiny_text_model, adapter)
    assert model.peft_config["default"].task_type == "SEQ_CLS"
    assert any("classifier" in name for name, p in model.named_parameters() if p.requires_grad)


def test_target_modules_that_match_nothing_are_named_with_those_there(task, tiny_text_model):
    skeleton = Base(str(tiny_text_model)).skeleton(task)
    adapter = LoraConfig(target_modules=["query", "q_proj"], modules_to_save=["pooler", "clasifier"])
    problems = {problem.where.rpartition(".")[2]: problem for problem in adapter_problems(adapter, skeleton)}
    assert problems["target_modules"].what.startswith("'q_proj' matches no module")
    assert "query" in problems["target_modules"].cure
    assert problems["modules_to_save"].what.startswith("'clasifier'")


@pytest.mark.parametrize(
    ("settings", "key", "what"),
    [
        ({"exclude_modules": ["key", "q_proj"]}, "exclude_modules", "'q_proj' matches no module of the model."),
        ({"layers_to_transform": [0, 2, 7]}, "layers_to_transform", "the model has no layer 2, 7."),
        ({"layers_to_transform": 5}, "layers_to_transform", "the model has no layer 5."),
        ({"target_parameters": ["query.weigth"]}, "target_parameters", "'query.weigth' matches no parameter"),
        ({"rank_pattern": {"query": 4, r"9\..*query": 2}}, "rank_pattern", r"'9\\..*query' matches no module"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern", "'q_proj' matches no module of the model."),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_parts_that_match_nothing_are_told(task, tiny_text_model, settings, key, what):
    skeleton = Base(str(tiny_text_model)).skeleton(task)
    (problem,) = adapter_problems(LoraConfig(target_modules=["query"], **settings), skeleton)
    assert problem.where == f"model.adapter.init_args.{key}"
    assert problem.what.startswith(what) and problem.cure


def test_parts_that_match_are_no_problem(task, tiny_text_model):
    skeleton = Base(str(tiny_text_model)).skeleton(task)
    settings = {"layers_to_transform": [0, 1], "rank_pattern": {r"layer\.0\..*query": 4}, "exclude_modules": ["key"]}
    adapter = LoraConfig(target_modules=["query"], target_parameters=["value.weight"], **settings)
    assert list(adapter_problems(adapter, skeleton)) == []


@pytest.mark.parametrize("targets", ["all-linear", r".*attention.*query", ["query"]])
def test_targets_that_match_are_no_problem(task, tiny_text_model, targets):
    skeleton = Base(str(tiny_text_model)).skeleton(task)
    assert list(adapter_problems(LoraConfig(target_modules=targets), skeleton)) == []


def test_a_pattern_that_matches_nothing_is_told(task, tiny_text_model):
    skeleton = Base(str(tiny_text_model)).skeleton(task)
    assert len(list(adapter_problems(LoraConfig(target_modules=r".*q_proj"), skeleton))) == 1


def logits_with_the_adapter_off(model):
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]])}
    with torch.no_grad(), model.disable_adapter():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({}, []),
        ({"init_lora_weights": "gaussian"}, []),
        ({"init_lora_weights": "orthogonal"}, []),
        ({"init_lora_weights": False}, []),
        ({"init_lora_weights": "pissa"}, ["init_lora_weights"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["init_lora_weights"]),
        ({"init_lora_weights": "olora"}, ["init_lora_weights"]),
        ({"bias": "all"}, ["bias"]),
        ({"bias": "lora_only"}, ["bias"]),
    ],
)
def test_adapters_that_change_the_base_are_no_reference(task, tiny_text_model, settings, keys):
    adapter = LoraConfig(r=2, target_modules=["value"], **settings)
    found = list(reference_problems(adapter))
    assert [problem.where.removeprefix("model.adapter.init_args.") for problem in found] == keys

    torch.manual_seed(0)
    base, new = Base(str(tiny_text_model)).build(task)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.normal_()
    expected = base.eval()(torch.tensor([[2, 5, 6, 3]])).logits
    model = add_adapter(base, adapter, task.peft_task_type, new)
    trainable = [parameter for name, parameter in model.named_parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trainable:
            parameter.add_(0.5)  # as a step would
    assert torch.allclose(logits_with_the_adapter_off(model), expected, atol=1e-4) == (not keys)


def test_adapters_without_these_settings_are_a_reference():
    assert list(reference_problems(IA3Config())) == list(reference_problems(PromptTuningConfig())) == []
