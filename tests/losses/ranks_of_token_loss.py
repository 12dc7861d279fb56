"""Two ranks compute the lean loss of a model that DDP or FSDP2 shares; run by `test_tokens.py` under torchrun."""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from lit_hf.losses import output_head
from lit_hf.losses.tokens import token_loss

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "pad_token_id": 0}


class Step(torch.nn.Module):
    """What Lightning hands to DDP: a module whose forward pass is a training step."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return token_loss(self.model, batch, shift=True).loss


def check(rank, strategy, tied=False):
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, num_attention_heads=2, tie_word_embeddings=tied)
    alone, model = LlamaForCausalLM(config), LlamaForCausalLM(config)
    model.load_state_dict(alone.state_dict())
    if strategy == "ddp":
        step = DistributedDataParallel(Step(model))
    else:
        for layer in model.model.layers:
            fully_shard(layer)
        if strategy == "fsdp_head":
            fully_shard(model.lm_head)
        fully_shard(model)
        step = Step(model)
    ids = torch.randint(1, 50, (2, 3, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[1, :, 4:] = -100
    sum(alone(input_ids=ids[part], labels=labels[part]).loss / 2 for part in (0, 1)).backward()
    for _ in range(2):
        model.zero_grad()
        step({"input_ids": ids[rank], "labels": labels[rank]}).backward()
    for name, value in alone.named_parameters():
        gradient = model.get_parameter(name).grad
        gradient = gradient if strategy == "ddp" else gradient.full_tensor()
        torch.testing.assert_close(gradient, value.grad, rtol=1e-5, atol=1e-7, msg=name)
    if strategy == "ddp":  # a rank without targets joins in
        labels[1] = -100
        step({"input_ids": ids[rank], "labels": labels[rank]}).backward()
        assert all(value.grad is not None for value in model.parameters())


def main():
    dist.init_process_group("gloo")
    output_head.CHUNK = 5
    check(dist.get_rank(), "ddp")
    check(dist.get_rank(), "ddp", tied=True)
    check(dist.get_rank(), "fsdp")
    check(dist.get_rank(), "fsdp_head")
    dist.barrier()
    dist.destroy_process_group()


main()
