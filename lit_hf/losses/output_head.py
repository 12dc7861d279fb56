"""The output head of a language model, run at chosen tokens only and chunk by chunk, and the loss of its logits."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK = 256
"""Targets whose logits are made at a time on a CPU: of 128k words 128 MiB. With fewer of them the time goes into adding
up the weight's gradient, with more into memory."""

CHUNK_ON_GPU = 1024
"""The same on a GPU, which does more arithmetic in the time that it takes to read a weight."""


@dataclass(frozen=True)
class After:
    """What a model does to its logits after the head: scales them, caps them softly, adds a bias."""

    scale: float = 1.0
    divisor: float = 1.0
    cap: float | None = None
    bias: Tensor | None = None

    @classmethod
    def of(cls, core: Any) -> After:
        """Read it off a `transformers` model."""
        config = core.config.get_text_config()
        return cls(
            scale=getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None) or 1.0,
            divisor=getattr(config, "logits_scaling", None) or 1.0,
            cap=getattr(config, "final_logit_softcapping", None),
            bias=getattr(core, "final_logits_bias", None),
        )

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the model's logits from those of its head."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.divisor != 1.0:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits if self.bias is None else logits + self.bias.to(logits.device)

    def chain(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Return the gradient of what came in from that of what went out, which is overwritten, and from the latter."""
        if self.cap is not None:
            capped = logits if self.bias is None else logits - self.bias.to(logits.device)
            gradient.mul_(1 - (capped / self.cap) ** 2)
        return gradient if self.scale == self.divisor == 1.0 else gradient.mul_(self.scale).div_(self.divisor)

    def explains(self, raw: Tensor, logits: Any) -> bool:
        """Whether the model's logits are those of its head after this."""
        if not isinstance(logits, Tensor) or logits.shape != raw.shape:
            return False
        with torch.no_grad():
            exact = raw.dtype == torch.float32 and logits.dtype == torch.float32
            return torch.allclose(self(raw.float()), logits.float(), rtol=1e-5 if exact else 2e-2, atol=1e-6)


class Head(NamedTuple):
    """An output head, and what its model does to the logits."""

    module: nn.Module
    after: After

    def scores(self, hidden: Tensor) -> Tensor:
        """Return float32 logits [targets, vocabulary] of hidden states [targets, size]."""
        return self.after(self.module(hidden).float())

    def losses(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return the negative log-likelihood of each target, in float32."""
        if torch.is_grad_enabled() and _is_plain(self.module) and not _trains(self.module):
            return _FrozenHeadLosses.apply(hidden, self.module.weight, self.module.bias, ids, self.after)
        return torch.cat([self._recomputed(*part, reduction="none") for part in self._chunks(hidden, ids)])

    def mean(self, hidden: Tensor, ids: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor | None]:
        """Return the mean loss of the targets, 0 without any, and without gradients how many of them are right."""
        if not torch.is_grad_enabled():
            total, right = self._measured(hidden, ids, label_smoothing)
            return total / max(len(ids), 1), right
        if _is_plain(self.module):
            if hidden.is_cuda and (fused := _fused(self, hidden, ids, label_smoothing)) is not None:
                return fused / max(len(ids), 1), None
            weight, bias = self.module.weight, self.module.bias
            return _MeanLoss.apply(hidden, weight, bias, ids, self.after, label_smoothing), None
        parts = self._chunks(hidden, ids)
        losses = [self._recomputed(*part, reduction="sum", label_smoothing=label_smoothing) for part in parts]
        return torch.stack(losses).sum() / max(len(ids), 1), None

    def _measured(self, hidden: Tensor, ids: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
        total, right = hidden.new_zeros((), dtype=torch.float32), ids.new_zeros(())
        for states, wanted in self._chunks(hidden, ids):
            scores = self.scores(states)
            total += functional.cross_entropy(scores, wanted, reduction="sum", label_smoothing=label_smoothing)
            right += (scores.argmax(-1) == wanted).sum()
        return total, right

    def _recomputed(self, hidden: Tensor, ids: Tensor, **settings: Any) -> Tensor:
        """Return the cross entropy of a chunk, whose logits the backward pass computes anew."""

        def part(states: Tensor) -> Tensor:
            return functional.cross_entropy(self.scores(states), ids, **settings)

        return checkpoint(part, hidden, use_reentrant=False) if torch.is_grad_enabled() else part(hidden)

    def _chunks(self, hidden: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield hidden states and targets by parts; one part, an empty one, where there are none."""
        size = _chunk(hidden)
        return zip(hidden.split(size), ids.split(size), strict=True)


def _chunk(hidden: Tensor) -> int:
    return CHUNK if hidden.device.type == "cpu" else CHUNK_ON_GPU


def _is_plain(head: nn.Module) -> bool:
    """Whether a head is nothing but a product with a matrix of its own: no adapter, quantized or sharded one."""
    hooks = len(head._forward_pre_hooks) + len(head._forward_hooks) + len(head._backward_hooks)  # two are the tap's
    is_whole = type(head.weight) in (nn.Parameter, FakeTensor)  # those of a plan hold no numbers
    return type(head) is nn.Linear and is_whole and hooks == 2 and "forward" not in vars(head)


def _trains(head: nn.Module) -> bool:
    return any(weight.requires_grad for weight in head.parameters())


class _MeanLoss(torch.autograd.Function):
    """Mean cross entropy of a linear head, whose gradients are computed along with it, chunk by chunk.

    So a chunk's logits are neither kept nor computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        ids: Tensor,
        after: After,
        label_smoothing: float,
    ) -> Tensor:
        states, matrix = _cast(hidden, weight)
        share = 1 / max(len(ids), 1)
        gradients = _Gradients.of(ctx.needs_input_grad, states, weight, bias)
        total = hidden.new_zeros((), dtype=torch.float32)
        for part, scores in _scores(states, matrix, bias, after):
            losses, slope = _losses_and_slope(scores, ids[part], label_smoothing)
            total += losses.sum()
            gradients.add(part, after.chain(slope, scores).to(matrix.dtype), states[part], matrix, share)
        # not saved for the backward pass: what is held there as well is copied when it becomes a weight's gradient
        ctx.gradients = gradients
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return total * share

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the loss of a linear head has one backward pass"
        # a GPU would have to be waited for to know; a CPU takes its time to multiply a weight's gradient by 1
        is_one = of_mean.device.type == "cpu" and not isinstance(of_mean, FakeTensor) and of_mean.numpy() == 1
        # in place: a copy of it would be the largest tensor of the step
        scaled = [
            None if gradient is None else (gradient if is_one else gradient.mul_(of_mean)).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


class _FrozenHeadLosses(torch.autograd.Function):
    """Cross entropy of each target under a linear head that is not trained, its gradient computed along with it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, after: After) -> Tensor:
        states, matrix = _cast(hidden, weight)
        losses, by_states = hidden.new_empty(len(ids), dtype=torch.float32), torch.empty_like(states)
        for part, scores in _scores(states, matrix, bias, after):
            losses[part], slope = _losses_and_slope(scores, ids[part])
            torch.mm(after.chain(slope, scores).to(matrix.dtype), matrix, out=by_states[part])
        ctx.save_for_backward(by_states)
        ctx.dtype = hidden.dtype
        return losses

    @staticmethod
    def backward(ctx: Any, of_losses: Tensor) -> tuple[Tensor | None, ...]:
        (by_states,) = ctx.saved_tensors
        return (by_states * of_losses[:, None]).to(ctx.dtype), None, None, None, None


def _cast(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return hidden states and weight in the type in which they are multiplied."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return hidden.to(dtype), weight.to(dtype)


def _scores(states: Tensor, matrix: Tensor, bias: Tensor | None, after: After) -> Iterator[tuple[slice, Tensor]]:
    """Yield float32 logits [chunk, vocabulary], and of which targets they are; once without targets, too."""
    for start in range(0, max(len(states), 1), _chunk(states)):
        part = slice(start, start + _chunk(states))
        with torch.autocast(states.device.type, enabled=False):
            raw = functional.linear(states[part], matrix, None if bias is None else bias.to(matrix.dtype))
        yield part, after(raw.float())


def _losses_and_slope(scores: Tensor, ids: Tensor, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the loss of each target by its logits [chunk, vocabulary], and the gradient of their sum."""
    logs, wanted = scores.log_softmax(-1), ids[:, None]
    losses = (label_smoothing - 1) * logs.gather(-1, wanted)
    if label_smoothing:
        losses -= label_smoothing * logs.mean(-1, keepdim=True)
    slope = logs.exp_()
    slope.scatter_add_(-1, wanted, slope.new_full(wanted.shape, label_smoothing - 1))
    return losses[:, 0], slope.sub_(label_smoothing / slope.shape[-1]) if label_smoothing else slope


class _Gradients(NamedTuple):
    """Gradients that grow with each chunk; None where none is wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, needed: tuple[bool, ...], states: Tensor, weight: Tensor, bias: Tensor | None) -> _Gradients:
        is_one_chunk = len(states) <= _chunk(states)  # else they are added up in float32
        dtype = states.dtype if is_one_chunk else torch.float32
        new = torch.empty_like if dtype == states.dtype else torch.zeros_like
        return cls(
            torch.empty_like(states) if needed[0] else None,
            new(weight, dtype=dtype) if needed[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None,
        )

    def add(self, part: slice, slope: Tensor, states: Tensor, matrix: Tensor, share: float) -> None:
        """Add a chunk.

        Args:
            part: Which targets these are.
            slope: The gradient by their raw logits of the sum of their losses, shape [chunk, vocabulary].
            states: Their hidden states, shape [chunk, size].
            matrix: The head, shape [vocabulary, size].
            share: What each loss counts.
        """
        if self.hidden is not None:
            self.hidden[part].addmm_(slope, matrix, beta=0, alpha=share)
        if self.weight is not None and self.weight.dtype == slope.dtype:
            self.weight.addmm_(slope.t(), states, beta=int(part.start > 0), alpha=share)
        elif self.weight is not None:
            self.weight.add_(slope.t() @ states, alpha=share)
        if self.bias is not None:
            self.bias.add_(slope.sum(0, dtype=torch.float32), alpha=share)


# kernels of other libraries, for CUDA


def _fused(head: Head, hidden: Tensor, ids: Tensor, label_smoothing: float) -> Tensor | None:
    """Return the loss by a fused kernel, where one is installed that can do this head."""
    module, after = cast(nn.Linear, head.module), head.after
    if after.bias is not None or (module.bias is not None and after.scale != after.divisor):
        return None
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else module.weight.dtype
    states = (hidden * (after.scale / after.divisor)).to(dtype) if after.scale != after.divisor else hidden.to(dtype)
    weight = module.weight.to(dtype)
    if _is_installed("liger_kernel"):
        kernel = importlib.import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
        bias = None if module.bias is None else module.bias.to(dtype)
        settings = {"reduction": "sum", "softcap": after.cap, "accum_dtype": torch.float32}
        return kernel(states, weight, ids, bias, label_smoothing=label_smoothing, **settings)
    if _is_installed("cut_cross_entropy") and module.bias is None and not label_smoothing:
        kernel = importlib.import_module("cut_cross_entropy").linear_cross_entropy
        # without its filter, which leaves small gradients out
        return kernel(states, weight, ids, softcap=after.cap, reduction="sum", filter_eps=None)
    return None


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
