from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM, GraniteConfig
from transformers import GraniteForCausalLM as Granite

from lit_hf.losses import output_head
from lit_hf.losses.output_head import After, Head

SMALL = {"vocab_size": 11, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
AFTERS = {
    "nothing": After(),
    "scaled": After(scale=3.0),
    "divided": After(divisor=4.0),
    "capped": After(cap=2.0),
    "all": After(scale=3.0, divisor=4.0, cap=2.0, bias=torch.linspace(-1, 1, 11)),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_head, "CHUNK", 4)


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 11)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(10, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()


IDS = torch.arange(10)


def add_hooks(linear: nn.Linear, is_plain: bool) -> None:
    """Give a head the two hooks of the tap, or one: a head with other hooks is not plain."""
    linear.register_forward_pre_hook(lambda *_: None)
    if is_plain:
        linear.register_forward_hook(lambda *_: None)


def test_logits_are_scaled_then_capped_then_biased():
    after = After(scale=3.0, divisor=2.0, cap=30.0, bias=torch.tensor([5.0]))

    assert after(torch.tensor([20.0])).item() == pytest.approx(30 * torch.tensor(1.0).tanh().item() + 5)


@pytest.mark.parametrize("after", AFTERS.values(), ids=AFTERS)
def test_the_chain_rule_is_autograd_s(after):
    raw = torch.randn(3, 11, generator=torch.Generator().manual_seed(2)).requires_grad_()
    logits = after(raw)
    slope = torch.randn(3, 11, generator=torch.Generator().manual_seed(3))

    logits.backward(slope)

    assert torch.allclose(after.chain(slope.clone(), logits.detach()), raw.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.5)), After(scale=0.5)),
        (Granite(GraniteConfig(**SMALL, logits_scaling=4.0)), After(divisor=4.0)),
        (Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=4, final_logit_softcapping=7.0)), After(cap=7.0)),
    ],
    ids=["cohere", "granite", "gemma2"],
)
def test_what_a_model_does_to_its_logits_is_read_off_it(model, expected):
    after = After.of(model)

    assert after == expected
    ids = torch.tensor([[1, 5, 3]])
    with torch.no_grad():
        raw = model.lm_head(model.eval().model(ids)[0])
        assert after.explains(raw, model(ids).logits)
        assert not After(scale=1.1).explains(raw, model(ids).logits)


def test_logits_of_another_shape_or_none_are_not_explained():
    raw = torch.ones(2, 11)

    assert not After().explains(raw, None)
    assert not After().explains(raw, raw[:1])


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("after", AFTERS.values(), ids=AFTERS)
@pytest.mark.parametrize("is_plain", [True, False], ids=["in one pass", "computed again"])
def test_the_loss_and_its_gradients_are_torch_s(linear, hidden, after, smoothing, factor, is_plain):
    tensors = [hidden, linear.weight, linear.bias]
    expected = functional.cross_entropy(after(linear(hidden)), IDS, label_smoothing=smoothing)
    wanted = torch.autograd.grad(factor * expected, tensors)
    add_hooks(linear, is_plain)

    mean, right = Head(linear, after).mean(hidden, IDS, smoothing)
    is_one_pass = type(mean.grad_fn).__name__.startswith("_MeanLoss")
    found = torch.autograd.grad(factor * mean, tensors)

    assert right is None
    assert is_one_pass == is_plain
    assert torch.allclose(mean, expected)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_weight_takes_its_gradient_without_a_copy(linear, hidden):
    add_hooks(linear, is_plain=True)
    mean, _ = Head(linear, After()).mean(hidden, IDS, 0.0)
    place = mean.grad_fn.gradients.weight.data_ptr()

    mean.backward()

    assert linear.weight.grad.data_ptr() == place


@pytest.mark.parametrize("trains", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize("after", AFTERS.values(), ids=AFTERS)
def test_each_target_has_its_loss_and_its_gradient(linear, hidden, after, trains):
    linear.requires_grad_(trains)
    add_hooks(linear, is_plain=True)
    tensors, weights = [hidden, *(linear.parameters() if trains else ())], torch.linspace(-1, 2, 10)
    expected = functional.cross_entropy(after(linear(hidden)), IDS, reduction="none")
    wanted = torch.autograd.grad(expected @ weights, tensors)

    losses = Head(linear, after).losses(hidden, IDS)
    is_one_pass = type(losses.grad_fn).__name__.startswith("_FrozenHeadLosses")
    found = torch.autograd.grad(losses @ weights, tensors)

    assert is_one_pass != trains
    assert torch.allclose(losses, expected, atol=1e-6)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("chunk", [4, 16], ids=["several chunks", "one"])
def test_in_16_bits_gradients_are_added_up_in_32(linear, hidden, chunk, monkeypatch):
    monkeypatch.setattr(output_head, "CHUNK", chunk)
    add_hooks(linear.bfloat16(), is_plain=True)
    states = hidden.detach().bfloat16().requires_grad_()
    exact = functional.cross_entropy(functional.linear(states, linear.weight, linear.bias).float(), IDS)
    wanted = torch.autograd.grad(exact, [states, linear.weight])

    mean, _ = Head(linear, After()).mean(states, IDS, 0.0)
    assert mean.grad_fn.gradients.weight.dtype == (torch.bfloat16 if chunk == 16 else torch.float32)
    found = torch.autograd.grad(mean, [states, linear.weight])

    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.allclose(one, other, rtol=2**-6, atol=1e-3)


def test_without_gradients_right_targets_are_counted(linear, hidden):
    ids = linear(hidden).argmax(-1)
    ids[:3] = (ids[:3] + 1) % 11

    with torch.no_grad():
        mean, right = Head(linear, After()).mean(hidden, ids, 0.0)

    assert right.item() == 7
    assert mean.item() == pytest.approx(functional.cross_entropy(linear(hidden), ids).item())


def test_no_targets_have_no_loss(linear, hidden):
    head, none = Head(linear, After()), IDS[:0]

    mean, _ = head.mean(hidden[:0], none, 0.0)
    mean.backward()

    assert mean.item() == 0
    assert head.losses(hidden[:0], none).shape == (0,)
    assert linear.weight.grad.abs().sum().item() == 0
