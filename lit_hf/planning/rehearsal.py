"""A training step without weights: the model's own forward, backward and update on tensors that hold no numbers.

accelerate's estimator (`accelerate estimate-memory`) is not the base: it takes weights, gradients and Adam's state for
multiples of the checkpoint's size, and knows nothing of activations, adapters, frozen or quantized weights.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lit_hf.losses import output_head

aten = torch.ops.aten

NUMBERS = 2**24
"""Elements up to which tensors of whole numbers are real, so that code may look into them: ids, labels and masks."""

Forward = Callable[[nn.Module], Tensor]
"""Returns the loss of a model."""


class Peaks(NamedTuple):
    """Bytes of live tensors on one device, in a training step as Lightning makes it, once it has run in.

    Attributes:
        weights: Parameters and buffers.
        gradients: Of the weights that train, after backward.
        optimizer: What the optimizer keeps between steps.
        forward: Most during forward; the gradients of the step before are still there.
        loss: Most while the first half of the gradients is made, when almost all activations are there.
        backward: Most while the rest of them is made.
        update: Most during the optimizer's step.
    """

    weights: float
    gradients: float
    optimizer: float
    forward: float
    loss: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        """The most of all."""
        return max(self.forward, self.loss, self.backward, self.update)

    @property
    def activations(self) -> float:
        """What the most holds beside weights, gradients and optimizer state: activations and intermediate results."""
        return self.total - self.weights - self.gradients - self.optimizer


def rehearse(
    skeleton: nn.Module,
    forward: Forward,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    autocast: torch.dtype | None = None,
    on_gpu: bool = False,
) -> Peaks:
    """Run a training step on tensors without numbers, as if others had been before, and return its peaks.

    The operations are the model's own, dispatched as on a CPU (`torch._subclasses.FakeTensorMode`), and each tensor
    storage is counted from its making to its end, as `torch.distributed._tools.mem_tracker` does it. What a kernel
    takes for itself, and the allocator's fragments, are not seen.

    Args:
        skeleton: The model on the meta device, in training mode; its parameters are replaced.
        forward: Computes the loss.
        optimizer: Makes the optimizer of the model's parameters.
        autocast: Type that forward is cast to, None for none.
        on_gpu: Whether to take the ways of CUDA where these differ in memory: fused attention also with dropout, masks
            of dropout in bytes, norms in float32, larger chunks of the output head.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    _materialise(skeleton, fake)
    counter = _Counter(fake)
    parameters = [parameter for parameter in skeleton.parameters() if parameter.requires_grad]
    weights = counter.add([*skeleton.parameters(), *skeleton.buffers()])
    with counter, _as_on_gpu() if on_gpu else nullcontext():
        made = optimizer(skeleton)
        _step_before(made, parameters)
        optimizer_state = counter.live - weights - counter.size([parameter.grad for parameter in parameters])
        with counter.peak() as in_forward, _cast(autocast):
            loss = forward(skeleton)
        made.zero_grad()
        halves = _backward(loss, parameters, counter)
        del loss
        gradients = counter.size([parameter.grad for parameter in parameters])
        with counter.peak() as in_update:
            made.step()
        del made
    return Peaks(weights, gradients, optimizer_state, in_forward.most, *halves, in_update.most)


def _step_before(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    """Leave gradients and the optimizer's state as a first step leaves them."""
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()


def _backward(loss: Tensor, parameters: list[nn.Parameter], counter: _Counter) -> tuple[int, int]:
    """Run backward, and return the most bytes before and after half of the parameters have their gradients."""
    made = 0
    half = 0

    def count(_: Tensor) -> None:
        nonlocal made, half
        made += 1
        if made == (len(parameters) + 1) // 2:
            half = counter.restart()

    hooks = [parameter.register_post_accumulate_grad_hook(count) for parameter in parameters]
    counter.restart()
    loss.backward()
    for hook in hooks:
        hook.remove()
    end = counter.restart()
    return max(half, 0) or end, end


@contextmanager
def _cast(dtype: torch.dtype | None) -> Iterator[None]:
    context: AbstractContextManager[Any] = torch.autocast("cpu", dtype=dtype) if dtype is not None else nullcontext()
    with context:
        yield


def _materialise(model: nn.Module, fake: FakeTensorMode) -> None:
    """Replace parameters and buffers of the meta device by those of a CPU that hold no numbers; tied ones stay tied."""
    known: dict[int, Any] = {}

    def on_cpu(tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        if not tensor.is_floating_point() and tensor.numel() <= NUMBERS and tensor.dtype not in _BYTES:
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        with fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in known:
                    # the original is kept beside, so that no other can have its id
                    known[id(parameter)] = (nn.Parameter(on_cpu(parameter), parameter.requires_grad), parameter)
                module._parameters[name] = known[id(parameter)][0]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = on_cpu(buffer)


class _Most:
    """The most bytes of a stretch."""

    most = 0


_BYTES = (torch.uint8, torch.int8)

_LOOKS_INSIDE = (aten.nonzero.default, aten.masked_select.default, aten._local_scalar_dense.default)


class _Counter(TorchDispatchMode):
    """Runs floating point on tensors without numbers, whole numbers for real, and counts the bytes of both."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake
        self.live = 0
        self._most = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    @contextmanager
    def peak(self) -> Iterator[_Most]:
        """Measure the most live bytes of a stretch."""
        most = _Most()
        self.restart()
        yield most
        most.most = self.restart()

    def restart(self) -> int:
        """Return the most live bytes since the last call."""
        most, self._most = self._most, self.live
        return most

    @staticmethod
    def size(tensors: Iterable[Tensor | None]) -> int:
        """Return the bytes of tensors, each storage once."""
        storages = [tensor.untyped_storage() for tensor in tensors if tensor is not None]
        return sum({id(storage): storage.nbytes() for storage in storages}.values())

    def add(self, values: Any) -> int:
        """Count the storages of tensors, each until it is freed; return the bytes of those that are new."""
        before = self.live
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if (key := id(storage)) not in self._known:
                    size = storage.nbytes()
                    self.live += size
                    self._known[key] = weakref.ref(storage, partial(self._free, key, size))
        self._most = max(self._most, self.live)
        return self.live - before

    def _free(self, key: int, size: int, _: Any) -> None:
        self.live -= size
        del self._known[key]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        if func is torch.ops.prim.device.default:  # asked for more often than anything is computed
            return args[0].fake_device
        outputs = self._run(func, args, kwargs or {})
        self.add(outputs)
        return outputs

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        is_fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if func is aten._local_scalar_dense.default and is_fake:
            return 1.0 if args[0].is_floating_point() else 1
        if func in (aten.allclose.default, aten.equal.default) and is_fake:
            return True
        if tensors and not is_fake and (func in _LOOKS_INSIDE or func is aten.index.Tensor):
            return func(*args, **kwargs)
        if is_fake and func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            indices = [part for index in args[1] for part in _whole_numbers(index)]
            args = (args[0], indices, *args[2:])
        outputs = self.fake.dispatch(func, (), args, kwargs)
        if not is_fake and _are_small_numbers(outputs):
            return func(*args, **{**kwargs, "device": "cpu"} if kwargs.get("device") is not None else kwargs)
        return outputs


def _whole_numbers(index: Tensor | None) -> list[Tensor | None]:
    """Return a mask as the places where it is true, of which only a real one tells how many they are."""
    is_mask = index is not None and index.dtype in (torch.bool, torch.uint8) and not isinstance(index, FakeTensor)
    return list(index.nonzero().unbind(1)) if index is not None and is_mask else [index]


def _are_small_numbers(outputs: Any) -> bool:
    """Say whether a result is of whole numbers only, and few enough to be computed for real."""
    tensors = [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]
    return all(
        not (tensor.is_floating_point() or tensor.is_complex())
        and tensor.dtype not in _BYTES
        and tensor.numel() <= NUMBERS
        for tensor in tensors
    )


@contextmanager
def _as_on_gpu() -> Iterator[None]:
    """Take the ways of CUDA where these differ in memory from those of a CPU; also in what backward computes again."""
    plain_norm = functional.layer_norm

    def norm(*args: Any, **kwargs: Any) -> Tensor:
        # norms are on CUDA's list of what autocast computes in float32 (torch.amp, "CUDA Ops that autocast to
        # float32"), on the CPU's they are not
        if torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map(_in_float32, (args, kwargs))
        return plain_norm(*args, **kwargs)

    changed = {"dropout": _dropout, "layer_norm": norm, "scaled_dot_product_attention": _fused_attention}
    plain = {name: getattr(functional, name) for name in changed}
    chunk = output_head.CHUNK
    try:
        for name, function in changed.items():
            setattr(functional, name, function)
        output_head.CHUNK = output_head.CHUNK_ON_GPU
        yield
    finally:
        output_head.CHUNK = chunk
        for name, function in plain.items():
            setattr(functional, name, function)


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, training)[0] if training and p else input


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attend as FlashAttention and memory-efficient attention do: kept are q, k, v, the output and a number a query.

    Dao et al., "FlashAttention", 2022, section 3.1; a mask stays as large as it is given. One that is learnt, as T5's
    distances are, has a gradient for each pair of tokens, head and row.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    mask = attn_mask.to(query.dtype) if attn_mask is not None else None
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    fixed = mask.detach() if mask is not None else None
    output = attend(query, key, value, 0.0, is_causal, attn_mask=fixed, scale=scale)[0]
    if mask is None or not mask.requires_grad:
        return output
    return _LearntMask.apply(output, mask.expand(*query.shape[:-1], key.shape[-2]))


class _LearntMask(torch.autograd.Function):
    """Lets a mask that attention has added have a gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, mask: Tensor) -> Tensor:
        ctx.shape, ctx.dtype = mask.shape, mask.dtype
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.empty(ctx.shape, dtype=ctx.dtype)
