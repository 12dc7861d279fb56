import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, OSFConfig, VBLoRAConfig, get_peft_model
from torch import nn
from transformers import BartConfig, BartForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from lit_hf.models.sharding import adapter_problems, computing_layers, model_problems

SMALL = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama() -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**SMALL))


def bart(layerdrop: float) -> BartForConditionalGeneration:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    with torch.device("meta"):
        return BartForConditionalGeneration(
            BartConfig(vocab_size=24, **sizes, **heads, decoder_layerdrop=layerdrop, max_position_embeddings=16)
        )


def test_layers_are_found_in_all_stacks_and_in_lists_of_lists():
    assert list(computing_layers(llama())) == ["model.layers.0", "model.layers.1"]
    assert list(computing_layers(bart(0.0))) == ["model.encoder.layers.0", "model.decoder.layers.0"]
    blocks = nn.ModuleList([nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), nn.ModuleList([nn.Linear(2, 2)])])
    assert list(computing_layers(nn.ModuleDict({"blocks": blocks}))) == ["blocks.0.0", "blocks.0.1", "blocks.1.0"]


@pytest.mark.parametrize("adapter", [AdaLoraConfig(total_step=10), OSFConfig()])
def test_adapters_that_need_their_weights_whole_are_told(adapter):
    (problem,) = adapter_problems(adapter)
    assert problem.where == "model.adapter" and type(adapter).__name__ in problem.what
    assert "peft.LoraConfig" in problem.cure and "ddp" in problem.cure


@pytest.mark.parametrize("adapter", [None, LoraConfig(), LoraConfig(use_dora=True)])
def test_others_are_taken(adapter):
    assert list(adapter_problems(adapter)) == []


def test_a_bank_of_vectors_that_all_layers_share_is_told():
    model = get_peft_model(llama(), VBLoRAConfig(num_vectors=8, vector_length=8, target_modules=["q_proj"]))
    (problem,) = model_problems(model)
    assert problem.where == "model.adapter" and "vblora_vector_bank" in problem.what


def test_layers_that_share_weights_are_told_and_tied_embeddings_are_not():
    model = llama()
    model.lm_head.weight = model.model.embed_tokens.weight
    assert list(model_problems(model)) == []
    model.model.layers[1].mlp = model.model.layers[0].mlp
    (problem,) = model_problems(model)
    assert problem.where == "model.checkpoint" and "model.layers.0.mlp" in problem.what


def test_layers_that_are_left_out_at_random_are_told():
    assert list(model_problems(bart(0.0))) == []
    (problem,) = model_problems(bart(0.1))
    assert problem.where == "model.config.decoder_layerdrop"
