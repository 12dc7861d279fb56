import copy

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    AwqConfig,
    BitsAndBytesConfig,
    EetqConfig,
    FineGrainedFP8Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTQConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    QuantoConfig,
    TorchAoConfig,
)

from lit_hf.models.loading import Base
from lit_hf.models.quantization import (
    dequantize,
    environment_problems,
    is_quantized,
    merge_problems,
    name_of,
    prepare,
    quantization_problems,
    stored_quantization,
)
from lit_hf.tasks import TextClassification

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
METHODS = {
    "nf4": NF4,
    "double": {**NF4, "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "storage": {**NF4, "bnb_4bit_quant_storage": "bfloat16"},
    "int8": {"load_in_8bit": True},
}
BITS = {"nf4": 4, "double": 4, "fp4": 4, "storage": 4, "int8": 8}
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=80, pad_token_id=0, initializer_range=0.1, **shape)).save_pretrained(folder)
    return folder


def build(folder, task, dtype="float32", **settings):
    return Base(str(folder), dtype=dtype, quantization=BitsAndBytesConfig(**settings)).build(task)[0]


def adapted(model):
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"))


def gradients(model):
    model.zero_grad()
    model.train()(input_ids=IDS, labels=torch.tensor([1])).loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def found_in(base, adapter):
    from_scratch = base.checkpoint is None
    return list(quantization_problems(base.quantization, base.stored_quantization, adapter, (), from_scratch))


def found_here(base, device):
    return list(environment_problems(base.quantized, base.quantization is None, device))


@pytest.mark.parametrize("method", METHODS)
def test_linear_layers_take_the_bits_that_were_asked_for_and_little_more(llama, task, method):
    plain, quantized = Base(str(llama)).build(task)[0], build(llama, task, **METHODS[method])
    for name, module in plain.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            weight = quantized.model.layers.get_submodule(name).weight
            assert weight.numel() * weight.element_size() == module.weight.numel() * BITS[method] // 8
    layers = quantized.model.layers
    taken = sum(value.numel() * value.element_size() for value in layers.state_dict().values())
    elements = sum(one.numel() for one in plain.model.layers.parameters())
    # 32 bits of scale for a block of 64 weights; the codes and names that every layer keeps again; norms in float32
    assert taken < elements * (BITS[method] + 0.5) / 8 + 2 * (7 * 1500 + 2 * 64 * 4)
    assert type(quantized.score) is torch.nn.Linear and quantized.score.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_is_frozen_and_what_is_not_quantized_is_float32(llama, task, dtype):
    model = build(llama, task, dtype, **NF4)
    kinds = {
        name: parameter.dtype
        for name, parameter in model.named_parameters()
        if not is_quantized(model.get_submodule(name.rpartition(".")[0]))
    }
    assert set(kinds.values()) == {torch.float32}
    assert {"model.norm.weight", "model.layers.0.input_layernorm.weight", "score.weight"} <= kinds.keys()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_the_first_layer_and_are_the_same_after_an_evaluation(llama, task, method):
    model = adapted(build(llama, task, **METHODS[method]))
    before = gradients(model)
    assert before["base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"].abs().max() > 0
    with torch.no_grad():
        answer = model.eval()(IDS).logits
    model.state_dict()  # as a checkpoint does
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, before[name]), name
    with torch.no_grad():
        assert torch.equal(model.eval()(IDS).logits, answer)


def test_bitsandbytes_alone_would_lose_gradients_after_an_evaluation(llama):
    """If this fails, bitsandbytes has mended it, and `keep_packing` may go."""
    config = BitsAndBytesConfig(**NF4)
    model = AutoModelForSequenceClassification.from_pretrained(llama, quantization_config=config, device_map="cpu")
    if not model.model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu:
        pytest.skip("this processor has no AVX512-BF16")
    model = adapted(model)
    before = gradients(model)
    with torch.no_grad():
        model.eval()(IDS)
    after = gradients(model)
    name = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.default.weight"
    assert not torch.allclose(after[name], before[name], rtol=0.1)


def test_gradient_checkpointing_gives_the_same_gradients(llama, task):
    model = adapted(build(llama, task, **NF4))
    before = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, before[name])


def test_new_modules_inside_of_the_base_train_in_full(task, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=80, **shape)).save_pretrained(tmp_path)  # it has no pooler
    model, new = Base(str(tmp_path), quantization=BitsAndBytesConfig(**NF4)).build(task)
    assert "bert.pooler.dense.weight" in new
    assert type(model.bert.pooler.dense) is torch.nn.Linear
    assert is_quantized(model.bert.encoder.layer[0].output.dense)


def test_modules_to_save_are_not_quantized(llama, task):
    base = Base(str(llama), quantization=BitsAndBytesConfig(**NF4))
    model, _ = base.build(task, ["layers.1.mlp.down_proj"])
    assert type(model.model.layers[1].mlp.down_proj) is torch.nn.Linear
    assert is_quantized(model.model.layers[0].mlp.down_proj)
    assert base.quantization.llm_int8_skip_modules is None


@pytest.mark.parametrize(("method", "nearness"), [("nf4", 1e-6), ("double", 1e-6), ("fp4", 1e-6), ("int8", 5e-2)])
def test_dequantized_weights_answer_as_the_quantized_ones(llama, task, method, nearness):
    torch.manual_seed(1)
    model = build(llama, task, **METHODS[method]).eval()
    with torch.no_grad():
        before = model(IDS).logits
        plain = dequantize(model)
        torch.testing.assert_close(plain(IDS).logits, before, atol=nearness, rtol=nearness)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float32}
    assert stored_quantization(plain.config) is None
    assert type(plain.model.layers[0].mlp.up_proj) is torch.nn.Linear


@pytest.mark.parametrize("method", ["nf4", "int8", "torchao"])
def test_a_checkpoint_that_was_quantized_already_is_turned_back_and_written(llama, task, tmp_path, method):
    if method == "torchao":
        config = TorchAoConfig(pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig())
    else:
        config = BitsAndBytesConfig(**METHODS[method])
    Base(str(llama), quantization=config).build(task)[0].save_pretrained(tmp_path / "packed")
    plain = dequantize(Base(str(tmp_path / "packed")).build(task)[0]).eval()
    plain.save_pretrained(tmp_path / "plain")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    assert not hasattr(again.config, "quantization_config")
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, plain(IDS).logits)


def test_layers_of_gpt2_are_turned_back_as_they_were(tmp_path):
    shape = {"n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 80}
    GPT2LMHeadModel(GPT2Config(**shape)).eval().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**NF4)
    model = prepare(GPT2LMHeadModel.from_pretrained(tmp_path, quantization_config=config, device_map="cpu")).eval()
    with torch.no_grad():
        before = model(IDS).logits
        plain = dequantize(model)
        torch.testing.assert_close(plain(IDS).logits, before, atol=1e-5, rtol=1e-5)
    shapes = {name: value.shape for name, value in GPT2LMHeadModel(GPT2Config(**shape)).state_dict().items()}
    assert {name: value.shape for name, value in plain.state_dict().items()} == shapes


def test_weights_of_torchao_train_and_are_turned_back(llama, task):
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    base = Base(str(llama), quantization=TorchAoConfig(Int8WeightOnlyConfig()))
    assert found_here(base, "cpu") == []
    assert name_of(base.quantization) == "torchao Int8WeightOnlyConfig"
    model = base.build(task)[0]
    assert is_quantized(model.model.layers[0].mlp.up_proj) and not is_quantized(model.score)
    assert any(gradient.abs().max() > 0 for name, gradient in gradients(adapted(model)).items() if "layers.0." in name)
    model = base.build(task)[0].eval()
    with torch.no_grad():
        before = model(IDS).logits
        torch.testing.assert_close(dequantize(model)(IDS).logits, before, atol=1e-5, rtol=1e-5)


# what is wrong


def places(problems):
    return [problem.where for problem in problems]


@pytest.fixture
def packed(llama, task, tmp_path):
    """A checkpoint that is quantized already."""
    build(llama, task, **NF4).save_pretrained(tmp_path / "packed")
    return tmp_path / "packed"


def test_nothing_is_wrong_with_an_adapter_on_quantized_weights(llama):
    base = Base(str(llama), quantization=BitsAndBytesConfig(**NF4))
    assert [*found_in(base, LoraConfig()), *found_here(base, "cpu")] == []
    plain = Base(str(llama))
    assert found_in(plain, None) == []


def test_quantized_weights_need_an_adapter(llama):
    (problem,) = found_in(Base(str(llama), quantization=BitsAndBytesConfig(**NF4)), None)
    assert problem.where == "model.adapter"
    assert "qlora.yaml" in problem.cure and "model.quantization out" in problem.cure


def test_a_model_from_scratch_has_nothing_to_quantize():
    base = Base(config={"model_type": "llama"}, quantization=BitsAndBytesConfig(**NF4))
    (problem,) = found_in(base, IA3Config())
    assert problem.where == "model.quantization" and "no checkpoint" in problem.what


def test_a_quantized_checkpoint_is_not_quantized_again(packed):
    base = Base(str(packed), quantization=BitsAndBytesConfig(load_in_8bit=True))
    (problem,) = found_in(base, LoraConfig())
    assert problem.what == "the checkpoint is quantized already: bitsandbytes 4-bit nf4."
    (problem,) = found_in(Base(str(packed)), None)
    assert problem.where == "model.adapter" and "model.quantization" not in problem.cure


def test_an_adapter_trains_on_a_checkpoint_that_is_quantized_already(packed, llama, task):
    base = Base(str(packed))
    assert [*found_in(base, LoraConfig()), *found_here(base, "cpu")] == []
    model, new = base.build(task)
    assert new == []
    gradients(adapted(model))
    with torch.no_grad():
        expected = build(llama, task, **NF4).eval().model(IDS).last_hidden_state
        assert torch.equal(model.eval().model(IDS).last_hidden_state, expected)


def test_starts_of_lora_that_change_the_base_are_refused(llama):
    base = Base(str(llama), quantization=BitsAndBytesConfig(**NF4))
    assert places(found_in(base, LoraConfig(init_lora_weights="pissa"))) == [
        "model.adapter.init_args.init_lora_weights"
    ]


def test_a_tuner_that_computes_on_the_weights_as_they_lie_is_told(llama):
    base = Base(str(llama), quantization=BitsAndBytesConfig(**NF4))
    (problem,) = found_in(base, LoHaConfig())
    assert problem.where == "model.adapter" and "LoRA" in problem.cure
    assert problem.what == "LoHaConfig computes on the weights as they lie, which are bitsandbytes 4-bit nf4."
    assert found_in(Base(str(llama), quantization=BitsAndBytesConfig(load_in_8bit=True)), LoHaConfig()) == []
    # one of a method that was not tried
    assert found_in(Base(str(llama), quantization=EetqConfig()), LoHaConfig()) == []


@pytest.mark.parametrize(
    "adapter",
    [AdaLoraConfig(total_step=9), IA3Config(), LoraConfig(use_dora=True), OFTConfig(), VeraConfig()],
    ids=lambda adapter: adapter.peft_type,
)
@pytest.mark.parametrize("method", ["double", "int8"])
def test_other_tuners_train_on_them(llama, task, adapter, method):
    adapter = copy.deepcopy(adapter)
    adapter.task_type, adapter.target_modules = "SEQ_CLS", ["q_proj", "v_proj", "down_proj"]
    if isinstance(adapter, IA3Config):
        adapter.feedforward_modules = ["down_proj"]
    model = get_peft_model(build(llama, task, **METHODS[method]), adapter)
    found = [gradient for name, gradient in gradients(model).items() if "layers.0." in name]
    assert any(gradient.abs().max() > 0 for gradient in found)


def test_a_config_that_quantizes_nothing_is_told(llama):
    (problem,) = found_in(Base(str(llama), quantization=BitsAndBytesConfig()), LoraConfig())
    assert "neither load_in_4bit nor load_in_8bit" in problem.what


def test_a_device_that_bitsandbytes_does_not_run_on_is_told(llama):
    base = Base(str(llama), quantization=BitsAndBytesConfig(**NF4))
    (problem,) = found_here(base, "tpu")
    assert problem.where == "trainer.accelerator" and "cuda" in problem.cure


def test_a_package_that_is_missing_is_told(llama):
    (problem,) = found_here(Base(str(llama), quantization=EetqConfig()), "cuda")
    assert problem.where == "model.quantization"
    assert "eetq does not work on this machine" in problem.what


@pytest.mark.parametrize(
    ("quantization", "merges"),
    [
        (None, True),
        (BitsAndBytesConfig(**NF4), True),
        (BitsAndBytesConfig(load_in_8bit=True), True),
        (AwqConfig(), False),
        (EetqConfig(), False),
        (FineGrainedFP8Config(), False),
        (GPTQConfig(bits=4), False),
        (QuantoConfig(), False),
    ],
    ids=lambda value: str(getattr(value, "quant_method", value)),
)
def test_weights_without_a_way_back_take_no_adapter(quantization, merges):
    found = list(merge_problems(quantization))
    assert places(found) == ([] if merges else ["merge"])
    assert all(problem.cure == "Export the adapter alone: merge: false." for problem in found)


def test_weights_of_torchao_have_a_way_back():
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    assert list(merge_problems(TorchAoConfig(Int8WeightOnlyConfig()))) == []


@pytest.mark.parametrize("kind", ["Int4WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_weights_that_no_adapter_trains_on_are_told(llama, kind):
    torchao = pytest.importorskip("torchao.quantization")
    base = Base(str(llama), quantization=TorchAoConfig(getattr(torchao, kind)()))
    (problem,) = found_here(base, "cpu")
    assert problem.what == f"adapters cannot be trained on torchao {kind} weights."


def test_torchao_loses_the_gradients_of_activations_that_it_rounds(llama, task):
    """If this fails, torchao has mended it, and `environment_problems` may let such weights through."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    model = adapted(
        Base(str(llama), quantization=TorchAoConfig(Int8DynamicActivationInt8WeightConfig())).build(task)[0]
    )
    assert not gradients(model)["base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_computes_as_the_cpu_does(llama, task, method):
    torch.manual_seed(3)
    on_cpu = build(llama, task, **METHODS[method])
    with torch.device("cuda"):
        on_gpu = build(llama, task, **METHODS[method])
    assert on_gpu.device.type == "cuda"
    on_gpu.score.load_state_dict(on_cpu.score.state_dict())
    with torch.no_grad():
        expected = on_cpu.eval()(IDS).logits
        torch.testing.assert_close(on_gpu.eval()(IDS.cuda()).logits.cpu(), expected, atol=2e-2, rtol=2e-2)
    assert isinstance(on_gpu, LlamaForSequenceClassification)
    assert all(gradient.isfinite().all() for gradient in gpu_gradients(adapted(on_gpu)).values())


def gpu_gradients(model):
    model.train()(input_ids=IDS.cuda(), labels=torch.tensor([1], device="cuda")).loss.backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
