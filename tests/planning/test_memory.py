import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from lit_hf.models.switches import Switches
from lit_hf.planning.layouts import alone, ddp, dimensions, fsdp, tensor_parallel
from lit_hf.planning.memory import Depth, Setting, depths, shortened, step_memory
from lit_hf.planning.rehearsal import Peaks

IDS = torch.arange(256).view(4, 64) % 100


def llama(layers=3, **values):
    shape = {"vocab_size": 500, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("llama", **shape, num_hidden_layers=layers, intermediate_size=192, **values)
    return AutoModelForCausalLM.from_config(config).train()


def skeleton(*args, **values):
    with torch.device("meta"):
        return llama(*args, **values)


def loss_of(model):
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS, use_cache=False).loss


def adamw(model):
    return torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3, fused=False)


def measured(model, autocast=None):
    """The peak of the CPU's own allocator, from before the model is there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = model()
        optimizer = adamw(model)
        for _ in range(3):
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                loss = loss_of(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    live = most = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


@pytest.mark.parametrize(
    ("precision", "autocast"), [("32-true", None), ("bf16-mixed", torch.bfloat16)], ids=["float32", "bfloat16"]
)
def test_the_peak_is_the_allocator_s(precision, autocast):
    peaks = step_memory(skeleton(), loss_of, adamw, Setting(precision))
    assert peaks.total == pytest.approx(measured(llama, autocast), rel=0.03)


def test_the_peak_with_checkpointing_is_the_allocator_s():
    switches = Switches(gradient_checkpointing=True)

    def model():
        built = llama()
        switches.turn_on(built)
        return built

    peaks = step_memory(skeleton(), loss_of, adamw, Setting(switches=switches))
    assert peaks.total == pytest.approx(measured(model), rel=0.03)
    assert peaks.total < 0.8 * step_memory(skeleton(), loss_of, adamw, Setting()).total


def test_weights_gradients_and_states_are_counted():
    peaks = step_memory(skeleton(), loss_of, adamw, Setting())
    parameters = sum(one.numel() for one in skeleton().parameters())
    assert peaks.weights == pytest.approx(4 * parameters, rel=0.001)
    assert peaks.gradients == 4 * parameters
    assert peaks.optimizer == pytest.approx(8 * parameters, rel=0.001)


@pytest.mark.parametrize(
    ("optimizer", "bytes_a_weight"),
    [
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), 0),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 4),
        (lambda model: torch.optim.Adafactor(model.parameters()), 0.1),
    ],
    ids=["sgd", "momentum", "adafactor"],
)
def test_the_optimizer_s_own_state_is_counted(optimizer, bytes_a_weight):
    parameters = sum(one.numel() for one in skeleton().parameters())
    state = step_memory(skeleton(), loss_of, optimizer, Setting()).optimizer
    assert state / parameters == pytest.approx(bytes_a_weight, abs=0.1)


def test_an_8_bit_optimizer_keeps_two_bytes_a_weight_of_large_ones():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    peaks = step_memory(skeleton(), loss_of, lambda model: bitsandbytes.optim.AdamW8bit(model.parameters()), Setting())
    sizes_of = [one.numel() for one in skeleton().parameters()]
    expected = sum((2 + 8 / 256) * size if size >= 4096 else 8 * size for size in sizes_of)
    assert peaks.optimizer == pytest.approx(expected, rel=0.05)


def test_a_deep_model_follows_from_two_shallow_ones():
    deep = skeleton(9)
    assert depths(deep) == Depth(layers=9, few=2, period=1)
    assert depths(skeleton(3)) is None
    setting = Setting("bf16-mixed")
    from_shallow = step_memory(deep, loss_of, adamw, setting)
    deep.model.layers[8].unlike = torch.nn.Linear(1, 1, device="meta")  # now the last one is not like the others
    assert depths(deep) is None
    whole = step_memory(deep, loss_of, lambda model: adamw(model.model), setting)
    assert from_shallow.forward == pytest.approx(whole.forward, rel=0.06)
    assert from_shallow.loss == pytest.approx(whole.loss, rel=0.06)


def test_layers_of_several_kinds_repeat_together():
    kinds = ["sliding_attention"] * 2 + ["full_attention"]
    shape = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = AutoConfig.for_model(
        "gemma3_text", **shape, head_dim=16, intermediate_size=64, vocab_size=100, layer_types=kinds * 4
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert depths(model) == Depth(layers=12, few=3, period=3)


def test_shortening_leaves_the_model_as_it_is():
    model = skeleton(6)
    layers = list(model.model.layers)
    assert len(shortened(model, 2).model.layers) == 2
    assert list(model.model.layers) == layers


def adapted():
    with torch.device("meta"):
        return get_peft_model(llama(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_an_adapter_has_gradients_and_states_of_its_own_only():
    peaks = step_memory(adapted(), loss_of, adamw, Setting())
    trained = sum(one.numel() for one in adapted().parameters() if one.requires_grad)
    assert peaks.gradients == 4 * trained
    assert peaks.optimizer == pytest.approx(8 * trained, rel=0.01)


def test_quantized_weights_take_half_a_byte_or_one_and_their_scales():
    linear = sum(module.weight.numel() for name, module in skeleton().named_modules() if name.endswith("_proj"))
    in_full = step_memory(adapted(), loss_of, adamw, Setting()).weights
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    saved = in_full - step_memory(adapted(), loss_of, adamw, Setting(quantization=four)).weights
    assert saved == pytest.approx((4 - 0.5 - 4 / 64) * linear, rel=0.001)
    eight = BitsAndBytesConfig(load_in_8bit=True)
    saved = in_full - step_memory(adapted(), loss_of, adamw, Setting(quantization=eight)).weights
    assert saved == pytest.approx((4 - 1) * linear, rel=0.02)


def test_fused_attention_with_dropout_keeps_no_matrix_of_pairs_on_a_gpu():
    model = {"attention_dropout": 0.1}
    on_cpu = step_memory(skeleton(**model), loss_of, adamw, Setting())
    on_gpu = step_memory(skeleton(**model), loss_of, adamw, Setting(on_gpu=True))
    pairs = 3 * 4 * 4 * 64 * 64 * 4  # layers, rows, heads, queries, keys, bytes
    assert on_cpu.activations - on_gpu.activations > pairs


PEAKS = Peaks(weights=100, gradients=100, optimizer=200, forward=500, loss=480, backward=450, update=420)


def test_replicas_add_buckets_and_send_a_ring():
    assert alone(PEAKS).total == 500
    way = ddp(PEAKS, 4)
    assert way.total == 600
    assert way.sent_a_step == 2 * 3 / 4 * 100


def test_sharding_divides_what_is_kept():
    size = dimensions(skeleton(), 2)
    way = fsdp(PEAKS, 60, size, 4)
    layer = sum(one.numel() for one in skeleton().model.layers[0].parameters())
    rest = sum(one.numel() for one in skeleton().parameters()) - 3 * layer
    assert (size.layer, size.rest, size.layers, size.width) == (2 * layer, 2 * rest, 3, 128)
    assert (way.weights, way.gradients, way.optimizer, way.activations) == (25, 25, 50, 60)
    assert way.buffers == 2 * rest + 3 * 2 * layer
    assert way.sent_a_batch == pytest.approx(3 / 4 * (3 * 2 * 3 * layer + 2 * 2 * rest))


def test_tensor_parallelism_divides_the_layers():
    size = dimensions(skeleton(), 2)
    way = tensor_parallel(PEAKS, size, 4, tokens=10)
    kept = size.matrices / 4 + 1 - size.matrices
    assert way.weights == pytest.approx(100 * kept)
    assert way.activations == pytest.approx(100 * (10 / 34 + 24 / 34 / 4))
    assert way.sent_a_batch == pytest.approx(4 * 3 * 2 * 3 / 4 * 10 * 128)


def test_an_adapter_that_is_put_on_shallow_models_takes_what_it_takes_on_the_whole():
    def adapt(model):
        return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))

    whole = step_memory(adapt(skeleton(layers=6)), loss_of, adamw, Setting())
    assert step_memory(skeleton(layers=6), loss_of, adamw, Setting(), adapt) == whole
