import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lit_hf.planning.layouts import SHARED_BY_TENSORS, Dimensions, Layout, alone, ddp, dimensions, fsdp, tensor_parallel
from lit_hf.planning.rehearsal import Peaks

PEAKS = Peaks(weights=800, gradients=400, optimizer=1600, forward=2500, loss=3000, backward=2900, update=2800)
"""Its total is 3,000, of which 200 are activations."""

SIZES = Dimensions(layer=100, rest=40, layer_gradients=50, width=8, layers=3, matrices=0.75)


@pytest.fixture
def llama() -> nn.Module:
    """Two layers of 128 parameters: q and o 4 x 4, k and v 2 x 4, three of 6 x 4, two norms of 4. Beside them 84."""
    shape = {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 6}
    config = LlamaConfig(vocab_size=10, pad_token_id=0, num_hidden_layers=2, tie_word_embeddings=False, **shape)
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_one_device_has_all():
    layout = alone(PEAKS)

    assert layout == Layout("one device", 800, 400, 1600, 200)
    assert layout.total == PEAKS.total


@pytest.mark.parametrize(("devices", "sent"), [(2, 400), (4, 600), (8, 700)])
def test_replicas_have_all_and_buckets_and_send_gradients_around_a_ring(devices, sent):
    layout = ddp(PEAKS, devices)

    assert layout.total == PEAKS.total + 400
    assert (layout.sent_a_step, layout.sent_a_batch) == (sent, 0)


def test_sharding_leaves_a_part_of_everything_and_two_layers():
    layout = fsdp(PEAKS, activations=90, size=SIZES, devices=4)

    assert (layout.weights, layout.gradients, layout.optimizer, layout.activations) == (200, 100, 400, 90)
    assert layout.buffers == 40 + 2 * 100 + 50
    # weights twice, gradients once, three quarters of which are elsewhere
    assert layout.sent_a_batch == 0.75 * (2 * (3 * 100 + 40) + 3 * 50)
    assert layout.overlaps and not layout.within_machine


def test_divided_matrices_leave_what_is_in_none_of_them():
    layout = tensor_parallel(PEAKS, SIZES, devices=2, tokens=10)

    share = 0.75 / 2 + 0.25
    assert (layout.weights, layout.gradients, layout.optimizer) == (800 * share, 400 * share, 1600 * share)
    assert SHARED_BY_TENSORS == 24 / 34
    assert layout.activations == pytest.approx(200 * (10 + 24 / 2) / 34)
    # four sums a layer, each of which sends the hidden states once between two devices
    assert layout.sent_a_batch == 4 * 3 * 10 * 8
    assert layout.within_machine and not layout.overlaps


def test_a_model_is_measured_by_its_largest_layer_and_what_is_in_none(llama):
    assert dimensions(llama, bytes_a_value=2) == Dimensions(
        layer=2 * 128, rest=2 * 84, layer_gradients=2 * 128, width=2 * 4, layers=2, matrices=256 / 340
    )


def test_what_does_not_train_has_no_gradients_to_sum(llama):
    llama.model.layers.requires_grad_(False)

    assert dimensions(llama, bytes_a_value=4).layer_gradients == 0
