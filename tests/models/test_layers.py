import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    T5Config,
)

from lit_hf.models.layers import distances_from_output, layer_stacks

SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA = LlamaConfig(**SIZES, num_key_value_heads=2)
BART = BartConfig(vocab_size=16, d_model=8, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2,
                  decoder_attention_heads=2, encoder_ffn_dim=8, decoder_ffn_dim=8)  # fmt: skip
T5 = T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
GPT2 = GPT2Config(vocab_size=16, n_embd=8, n_layer=2, n_head=2)
CASES = [
    (AutoModelForCausalLM, LLAMA, {"embed_tokens": 3, "layers.0.": 2, "layers.1.": 1, "model.norm": 0, "lm_head": 0}),
    (AutoModelForCausalLM, MixtralConfig(**SIZES, num_local_experts=2), {"embed_tokens": 3, "layers.1.mlp": 1}),
    (AutoModelForCausalLM, GPT2, {"wte": 3, "wpe": 3, "h.0.": 2, "h.1.": 1, "ln_f": 0}),
    (AutoModelForCausalLM, GPTNeoXConfig(**SIZES), {"embed_in": 3, "layers.0.": 2, "lm_head": 0, "final_layer": 0}),
    (AutoModelForMaskedLM, BertConfig(**SIZES), {"bert.embeddings": 3, "layer.1.": 1, "cls.predictions": 0}),
    (AutoModelForSeq2SeqLM, T5, {"shared": 3, "encoder.block.0.": 2, "decoder.block.1.": 1, "final": 0}),
    (
        AutoModelForSeq2SeqLM,
        BART,
        {
            "shared": 4,
            "encoder.embed_positions": 4,
            "decoder.embed_positions": 4,
            "encoder.layers.0.": 2,
            "decoder.layers.0.": 3,
            "decoder.layers.2.": 1,
        },
    ),
]


@pytest.mark.parametrize(("auto_class", "config", "expected"), CASES, ids=[config.model_type for _, config, _ in CASES])
def test_the_distance_from_the_output_goes_by_the_layers(auto_class, config, expected):
    with torch.device("meta"):
        model = auto_class.from_config(config)
    distances = distances_from_output(model)
    assert list(distances) == [name for name, _ in model.named_parameters()]
    for part, distance in expected.items():
        found = {value for name, value in distances.items() if part in name}
        assert found == {distance}, part


def test_an_adapter_lies_as_deep_as_its_layer():
    model = get_peft_model(AutoModelForCausalLM.from_config(LLAMA), LoraConfig(target_modules=["q_proj"]))
    distances = {name: value for name, value in distances_from_output(model).items() if "lora_" in name}
    assert len(distances) == 4
    assert all(value == (2 if ".layers.0." in name else 1) for name, value in distances.items())


def test_lists_inside_of_layers_are_no_stacks_of_their_own():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MixtralConfig(**SIZES, num_local_experts=2))
    assert list(layer_stacks(model)) == ["model.layers"]
    assert layer_stacks(nn.Linear(2, 2)) == {}
