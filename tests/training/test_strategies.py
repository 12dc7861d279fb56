import torch
from lightning.pytorch import Trainer
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Shard
from torch.optim import SGD, AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from lit_hf.models.accounting import count_parameters
from lit_hf.training.callbacks.nonfinite import _finite
from lit_hf.training.optimizers import build_optimizer, parameter_groups
from lit_hf.training.shards import local
from lit_hf.training.strategies import FullySharding, shard

SMALL = {"vocab_size": 25, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def test_it_is_known_by_its_short_name():
    assert isinstance(Trainer(strategy="fsdp2", accelerator="cpu", devices=2, logger=False).strategy, FullySharding)


def test_each_layer_is_cut_for_itself_and_what_is_in_none_together(as_rank):
    model, whole = llama(), llama()
    shard(model, as_rank(1, 2))
    assert [name for name, one in model.named_modules() if isinstance(one, FSDPModule)] == [
        "",
        "model.layers.0",
        "model.layers.1",
    ]
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor) and parameter.placements == (Shard(0),)
        assert torch.equal(local(parameter), whole.get_parameter(name).chunk(2)[1])


def test_a_model_that_is_cut_is_what_it_was(as_rank):
    model = llama()
    shard(model, as_rank(0, 2))
    assert (type(model).__name__, type(model).__module__) == ("LlamaForCausalLM", LlamaForCausalLM.__module__)
    assert count_parameters(model) == count_parameters(llama())


def test_kernels_are_fused_where_there_are_some_for_weights_that_are_cut(as_rank):
    model = llama()
    assert build_optimizer(lambda groups: SGD(groups, 0.1), parameter_groups(model), False).defaults["fused"]
    shard(model, as_rank(0, 2))
    assert build_optimizer(lambda groups: AdamW(groups, 0.1), parameter_groups(model), False).defaults["fused"]
    assert not build_optimizer(lambda groups: SGD(groups, 0.1), parameter_groups(model), False).defaults["fused"]


def test_each_rank_looks_for_what_is_not_finite_among_its_own_rows(as_rank):
    for rank, is_fine in ((0, True), (1, False), (2, True)):  # the third of three has none of two rows
        mesh = as_rank(rank, 3)
        rows = torch.tensor([[1.0], [float("nan")]])[rank : rank + 1]
        cut = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=torch.Size([2, 1]), stride=(1, 1))
        assert _finite([cut, torch.ones(2)]) is is_fine
