import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn

from lit_hf.models.freezing import freeze, freeze_problems, rank_problems


@pytest.fixture
def model():
    return nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "head": nn.Linear(2, 2)})


def test_parameters_with_a_pattern_in_their_names_do_not_train(model):
    freeze(model, [r"^body\.0", "head.bias"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["body.1.weight", "body.1.bias", "head.weight"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model["head"](model["body"](torch.ones(1, 2))).sum().backward()
    optimizer.step()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == trained


def test_patterns_that_fit_are_no_problem(model):
    assert list(freeze_problems(model, [r"^body\.0", "bias"])) == []
    assert list(freeze_problems(model, [])) == []


def test_a_pattern_that_no_name_has_lists_the_names(model):
    (problem,) = freeze_problems(model, ["head", "embeddings"])
    assert problem.where == "model.freeze[1]"
    names = {"body.{0..1}.weight", "body.{0..1}.bias", "head.weight", "head.bias"}
    assert all(name in problem.cure for name in names)


def test_what_does_not_train_anyway_cannot_be_frozen(model):
    model["head"].requires_grad_(False)
    (problem,) = freeze_problems(model, ["head"])
    assert "'head' is in no name of a parameter that trains" in problem.what


def test_all_that_is_wrong_with_the_patterns_is_told(model):
    problems = {problem.where: problem.what for problem in freeze_problems(model, ["(", "body", "head"])}
    assert "'(' is no regular expression" in problems["model.freeze[0]"]
    assert problems["model.freeze"] == "no parameter is left to train."


def test_matrices_that_share_out_ranks_are_not_frozen(model):
    settings = {"target_modules": ["head"], "init_r": 4, "target_r": 2}
    ranks = AdaLoraConfig(total_step=9, **settings)
    model.config = {"model_type": "tiny"}
    adapted = get_peft_model(model, ranks)
    (problem,) = rank_problems(ranks, adapted, ["lora_A"])
    assert problem.where == "model.freeze" and "head.lora_A" in problem.what
    assert list(rank_problems(ranks, adapted, ["body"])) == []
    assert list(rank_problems(LoraConfig(target_modules=["head"]), adapted, ["lora_A"])) == []
