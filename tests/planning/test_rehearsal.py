"""One operator at a time: the bytes are counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lit_hf.planning.rehearsal import Peaks, rehearse

FLOAT = 4
SCALAR = FLOAT


class Vector(nn.Module):
    """A parameter alone."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.empty(shape))


class Tied(nn.Module):
    """Embeddings of 16 words that are the output head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
        self.head.weight = self.embeddings.weight


class Deep(nn.Module):
    """Four layers that are 64 wide inside and 4 outside."""

    def __init__(self, *, computes_again: bool) -> None:
        super().__init__()
        self.computes_again = computes_again
        inside = [nn.Sequential(nn.Linear(4, 64, bias=False), nn.ReLU(), nn.Linear(64, 4, bias=False)) for _ in "1234"]
        self.layers = nn.ModuleList(inside)

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = checkpoint(layer, states, use_reentrant=False) if self.computes_again else layer(states)
        return states.sum()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1.0)


def peaks_of(make: Callable[[], nn.Module], forward: Callable[..., Tensor], optimizer=sgd, **settings) -> Peaks:
    with torch.device("meta"):
        model = make().train()
    return rehearse(model, forward, optimizer, **settings)


def linear() -> nn.Module:
    return nn.Linear(8, 4, bias=False)


def on_two_rows(model: nn.Module) -> Tensor:
    return model(torch.ones(2, 8)).sum()


WEIGHT = 8 * 4 * FLOAT
INPUT, OUTPUT = 2 * 8 * FLOAT, 2 * 4 * FLOAT


def test_a_product_with_a_matrix():
    assert peaks_of(linear, on_two_rows) == Peaks(
        weights=WEIGHT,
        gradients=WEIGHT,
        optimizer=0,
        forward=2 * WEIGHT + INPUT + OUTPUT + SCALAR,  # the gradients of the step before are still there
        loss=2 * WEIGHT + INPUT + 2 * SCALAR,  # the loss and its gradient, which is expanded and not copied
        backward=2 * WEIGHT + 2 * SCALAR,
        update=2 * WEIGHT,
    )


def test_states_of_the_optimizer():
    peaks = peaks_of(linear, on_two_rows, lambda model: torch.optim.AdamW(model.parameters(), fused=False))

    assert peaks.optimizer == 2 * WEIGHT + SCALAR  # two moments, and the number of steps


def test_autocast_keeps_a_copy_of_what_it_casts():
    peaks = peaks_of(linear, on_two_rows, autocast=torch.bfloat16)

    assert peaks.forward == 2 * WEIGHT + INPUT + (WEIGHT + INPUT + OUTPUT) // 2


def test_tied_weights_are_there_once():
    peaks = peaks_of(Tied, lambda model: model.head(model.embeddings(torch.arange(4))).sum())

    assert peaks.weights == peaks.gradients == 16 * 8 * FLOAT


def test_what_an_operation_needs_for_its_gradient_is_kept():
    size = 1024 * FLOAT

    summed = peaks_of(lambda: Vector(1024), lambda model: model.values.sum())
    exponential = peaks_of(lambda: Vector(1024), lambda model: model.values.exp().sum())

    assert summed.loss == 2 * size + 2 * SCALAR
    assert exponential.loss == summed.loss + size


@pytest.mark.parametrize(("on_gpu", "of_a_value"), [(False, FLOAT), (True, 1)], ids=["cpu", "gpu"])
def test_the_mask_of_dropout_takes_a_byte_a_value_on_a_gpu_and_four_on_a_cpu(on_gpu, of_a_value):
    size = 1024 * FLOAT

    peaks = peaks_of(lambda: Vector(1024), lambda model: functional.dropout(model.values).sum(), on_gpu=on_gpu)

    assert peaks.forward == 3 * size + 1024 * of_a_value + SCALAR
    assert peaks.loss == 2 * size + 1024 * of_a_value + 2 * SCALAR


def test_a_mask_of_labels_picks_as_many_rows_as_it_is_true_for():
    labels = torch.tensor([-100, 1, -100, 2])
    row = 256 * FLOAT

    peaks = peaks_of(lambda: Vector(4, 256), lambda model: model.values[labels != -100].exp().sum())

    assert peaks.forward == 2 * 4 * row + 2 * row + 2 * row + labels.numel()  # picked, exponential, and the mask


@pytest.mark.parametrize("tokens", [64, 128])
def test_fused_attention_on_a_gpu_makes_no_matrix_of_tokens_by_tokens(tokens):
    def attend(model: nn.Module) -> Tensor:
        states = model.values
        return functional.scaled_dot_product_attention(states, states, states, dropout_p=0.1, is_causal=True).sum()

    states = tokens * 8 * FLOAT

    on_gpu = peaks_of(lambda: Vector(1, 1, tokens, 8), attend, on_gpu=True)
    on_cpu = peaks_of(lambda: Vector(1, 1, tokens, 8), attend)

    assert on_gpu.forward == 3 * states + tokens * FLOAT + SCALAR  # the output, and a number a query
    assert on_cpu.forward > 2 * tokens * tokens * FLOAT


def test_checkpointing_keeps_what_goes_into_layers_and_one_layer_s_inside():
    weights = 4 * 2 * 4 * 64 * FLOAT
    inside, outside = 32 * 64 * FLOAT, 32 * 4 * FLOAT

    plain = peaks_of(lambda: Deep(computes_again=False), lambda model: model(torch.ones(32, 4)))
    lean = peaks_of(lambda: Deep(computes_again=True), lambda model: model(torch.ones(32, 4)))

    # in the last layer, before and after its activation
    assert plain.forward == 2 * weights + 4 * outside + 3 * inside + 2 * inside
    assert lean.forward == 2 * weights + 4 * outside + 2 * inside
    assert lean.gradients == plain.gradients == weights


def test_what_the_peak_holds_beside_weights_gradients_and_states_is_activations():
    peaks = Peaks(weights=800, gradients=400, optimizer=1600, forward=2500, loss=3000, backward=2900, update=2800)

    assert (peaks.total, peaks.activations) == (3000, 200)
