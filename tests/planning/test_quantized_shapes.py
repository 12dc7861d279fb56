import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, PerGroup, quantize_
from transformers import BitsAndBytesConfig, EetqConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from lit_hf.planning.quantized_shapes import QuantizedLinear, TorchAoLinear, has_shapes, quantize_shapes
from lit_hf.planning.rehearsal import rehearse

NF4 = BitsAndBytesConfig(load_in_4bit=True)
DOUBLE = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True)
INT8 = BitsAndBytesConfig(load_in_8bit=True)


def taken(module: nn.Module) -> dict[str, int]:
    return {name: value.numel() * value.element_size() for name, value in module.state_dict().items()}


def adapted(**settings) -> nn.Module:
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=128, pad_token_id=0, num_hidden_layers=1, **shape)).bfloat16()
        return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings))


def quantized(model: nn.Module, kind: type = QuantizedLinear) -> set[str]:
    return {name.rpartition("layers.0.")[2] for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize(
    ("config", "weight", "scales"),
    [
        (NF4, 64 * 128 // 2, 128 * 4),  # half a byte a weight, a float for 64 of them
        (DOUBLE, 64 * 128 // 2, 128 + 4),  # a byte for 64, a float for 256 of these
        (INT8, 64 * 128, 128 * 4),  # a byte a weight, a float a row
    ],
    ids=["4 bits", "double", "8 bits"],
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(64, 128), lambda: Conv1D(128, 64)], ids=["linear", "conv1d"])
def test_a_layer_takes_its_packed_weights_its_scales_and_its_bias(config, weight, scales, make):
    with torch.device("meta"):
        layer = QuantizedLinear(make(), config)

    assert (layer.in_features, layer.out_features) == (64, 128)
    assert taken(layer) == {"weight": weight, "scales": scales, "bias": 128 * 4}
    assert not layer.weight.requires_grad


def test_what_does_not_fill_a_byte_or_a_block_takes_a_whole_one():
    with torch.device("meta"):
        layer = QuantizedLinear(nn.Linear(3, 3, bias=False), NF4)

    assert taken(layer) == {"weight": 5, "scales": 4}


def test_frozen_linear_layers_are_quantized_but_the_head_and_the_adapter_are_not():
    model = adapted()

    quantize_shapes(model, NF4)

    attention = {"self_attn.q_proj.base_layer", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
    assert quantized(model) == attention | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    assert model.base_model.model.lm_head.weight.shape == (128, 64)


@pytest.mark.parametrize(
    "config", [Int8WeightOnlyConfig(), Int8WeightOnlyConfig(granularity=PerGroup(32))], ids=["rows", "groups"]
)
def test_a_layer_of_torchao_takes_what_torchao_s_own_takes(config):
    theirs = nn.Linear(64, 128)
    with torch.device("meta"):
        ours = TorchAoLinear(theirs, TorchAoConfig(config))

    quantize_(theirs, config)

    parts = {name: getattr(theirs.weight, name) for name in theirs.weight.__tensor_flatten__()[0]}
    sizes = {"weight" if name == "qdata" else name: one.numel() * one.element_size() for name, one in parts.items()}
    assert taken(ours) == sizes | {"bias": 128 * 4}


def test_a_layer_of_torchao_computes_as_torchao_s_own():
    torch.manual_seed(0)
    theirs, states = nn.Linear(64, 128).requires_grad_(False), torch.randn(2, 3, 64, requires_grad=True)
    with torch.device("meta"):
        ours = TorchAoLinear(theirs, TorchAoConfig(Int8WeightOnlyConfig()))
    quantize_(theirs, Int8WeightOnlyConfig())
    ours.weight = nn.Parameter(theirs.weight.qdata, requires_grad=False)
    ours.scale, ours.bias = theirs.weight.scale, theirs.bias

    for layer in (theirs, ours):
        layer(states).square().sum().backward()
    once = torch.autograd.grad(ours(states).square().sum(), states)[0]

    assert torch.equal(ours(states), theirs(states))
    torch.testing.assert_close(states.grad, 2 * once)


def test_torchao_leaves_the_head_and_layers_that_are_not_linear_to_it():
    model, config = adapted(), TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["lm_head", "down_proj"])
    model.base_model.model.model.layers[0].self_attn.v_proj = Conv1D(64, 64).requires_grad_(False)

    quantize_shapes(model, config)

    attention = {"self_attn.q_proj.base_layer", "self_attn.k_proj", "self_attn.o_proj"}
    assert quantized(model, TorchAoLinear) == attention | {"mlp.gate_proj", "mlp.up_proj"}


def test_kinds_whose_shapes_are_not_known_are_told_apart():
    known = [NF4, INT8, TorchAoConfig(Int8WeightOnlyConfig())]
    unknown = [EetqConfig(), TorchAoConfig(Float8WeightOnlyConfig())]
    unknown.append(TorchAoConfig(Int8WeightOnlyConfig(), include_input_output_embeddings=True))
    assert [has_shapes(config) for config in (*known, *unknown)] == [True] * 3 + [False] * 3


def test_what_is_not_quantized_is_float32():
    model = adapted()

    quantize_shapes(model, NF4)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.uint8}


def test_modules_that_train_in_full_or_are_named_are_left():
    model = adapted(modules_to_save=["down_proj"])
    model.base_model.model.model.layers[0].self_attn.v_proj.requires_grad_(True)

    quantize_shapes(model, NF4, in_full=("k_proj",))

    assert quantized(model) == {*("self_attn.q_proj.base_layer", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")}


@pytest.mark.parametrize(("config", "kept"), [(NF4, 0), (INT8, 2 * 64 * 4)], ids=["4 bits", "8 bits"])
def test_8_bits_keep_their_input_for_backward_and_4_bits_do_not(config, kept):
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.states, self.layer = (
                nn.Parameter(torch.empty(2, 64)),
                QuantizedLinear(nn.Linear(64, 16, False), config),
            )

    def forward(model: nn.Module) -> torch.Tensor:
        states = model.states + 1  # which nothing else keeps
        return model.layer(states).sum()

    with torch.device("meta"):
        model = Frozen()
    peaks = rehearse(model, forward, lambda model: torch.optim.SGD([model.states], lr=1.0))

    states, unpacked = 2 * 64 * 4, 64 * 16 * 4
    # backward unpacks the weights again, for the gradient by the states; the loss and its gradient are scalars
    assert peaks.loss == peaks.weights + kept + unpacked + states + 2 * 4
