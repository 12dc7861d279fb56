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
        return torch.cat([self._recomputed(*part, reduction="none") for part in self._chunks(hidden, ids)])

    def total(self, hidden: Tensor, ids: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor | None]:
        """Return the loss, summed over all targets, and without gradients how many of them are right."""
        if not torch.is_grad_enabled():
            return self._measured(hidden, ids, label_smoothing)
        if _is_plain(self.module):
            if hidden.is_cuda and (fused := _fused(self, hidden, ids, label_smoothing)) is not None:
                return fused, None
            weight, bias = self.module.weight, self.module.bias
            total = _LinearLoss.apply(hidden, weight, bias, ids, self.after, label_smoothing)
            return total, None
        parts = self._chunks(hidden, ids)
        losses = [self._recomputed(*part, reduction="sum", label_smoothing=label_smoothing) for part in parts]
        return torch.stack(losses).sum(), None

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


class _LinearLoss(torch.autograd.Function):
    """Cross entropy of a linear head, whose gradients are computed along with it, chunk by chunk.

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
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        states, matrix = hidden.to(dtype), weight.to(dtype)
        gradients = _Gradients.of(ctx.needs_input_grad, states, weight, bias)
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            for start in range(0, max(len(ids), 1), _chunk(states)):  # once without targets, too: that makes zeros
                part = slice(start, start + _chunk(states))
                raw = functional.linear(states[part], matrix, None if bias is None else bias.to(dtype))
                scores = after(raw.float())
                loss, slope = _loss_and_slope(scores, ids[part], label_smoothing)
                total += loss
                gradients.add(part, after.chain(slope, scores).to(dtype), states[part], matrix)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return total

    @staticmethod
    def backward(ctx: Any, of_total: Tensor) -> tuple[Tensor | None, ...]:
        # in place: a copy of the weight's gradient would be the largest tensor of the step
        scaled = [
            None if gradient is None else gradient.mul_(of_total).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *scaled, None, None, None


def _loss_and_slope(scores: Tensor, ids: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of logits [chunk, vocabulary], and its gradient by them."""
    logs, wanted = scores.log_softmax(-1), ids[:, None]
    uniform = label_smoothing / logs.shape[-1]
    loss = (label_smoothing - 1) * logs.gather(-1, wanted).sum()
    if label_smoothing:
        loss -= uniform * logs.sum()
    slope = logs.exp_()
    slope.scatter_add_(-1, wanted, slope.new_full(wanted.shape, label_smoothing - 1))
    return loss, slope.sub_(uniform) if label_smoothing else slope


class _Gradients(NamedTuple):
    """Gradients that grow with each chunk; None where none is wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, needed: tuple[bool, ...], states: Tensor, weight: Tensor, bias: Tensor | None) -> _Gradients:
        return cls(
            torch.empty_like(states) if needed[0] else None,
            torch.empty_like(weight, dtype=torch.float32) if needed[1] else None,
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None,
        )

    def add(self, part: slice, slope: Tensor, states: Tensor, matrix: Tensor) -> None:
        """Add a chunk.

        Args:
            part: Which targets these are.
            slope: The loss's gradient by their raw logits, shape [chunk, vocabulary].
            states: Their hidden states, shape [chunk, size].
            matrix: The head, shape [vocabulary, size].
        """
        if self.hidden is not None:
            torch.mm(slope, matrix, out=self.hidden[part])
        if self.weight is not None:
            if part.start == 0 and slope.dtype == torch.float32:
                torch.mm(slope.t(), states, out=self.weight)
            elif part.start == 0:
                self.weight.copy_(slope.t() @ states)
            elif slope.dtype == torch.float32:
                self.weight.addmm_(slope.t(), states)
            else:
                self.weight.add_(slope.t() @ states)
        if self.bias is not None:
            self.bias.add_(slope.sum(0, dtype=torch.float32))


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
