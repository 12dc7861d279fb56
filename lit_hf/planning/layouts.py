"""How several devices share a model: bytes on each of them, and bytes that go between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from lit_hf.models.layers import layer_stacks
from lit_hf.planning.rehearsal import Peaks

ALONE, DDP, FSDP2, TENSOR_PARALLEL = "one device", "DDP", "FSDP2", "tensor parallel"

SHARED_BY_TENSORS = 24 / 34
"""Part of a layer's activations that tensor parallelism divides, attention's own matrix left out: of 34 bytes a token
and unit of width, 10 stay whole (Korthikanti et al., "Reducing Activation Recomputation", 2022, equations 1 and 2)."""


@dataclass(frozen=True)
class Layout:
    """Bytes on each device, and bytes that each sends in a step.

    Attributes:
        name: What it is called.
        weights: Parameters and buffers.
        gradients: Their gradients.
        optimizer: The optimizer's state.
        activations: Activations and intermediate results.
        buffers: What the way of sharing takes for itself.
        sent_a_batch: Bytes that each device sends for a batch; of several batches a step, for each.
        sent_a_step: Bytes that each device sends once an optimizer step.
        overlaps: Whether computing goes on while they are sent.
        within_machine: Whether they are sent to devices of the same machine only.
    """

    name: str
    weights: float
    gradients: float
    optimizer: float
    activations: float
    buffers: float = 0
    sent_a_batch: float = 0
    sent_a_step: float = 0
    overlaps: bool = True
    within_machine: bool = False

    @property
    def total(self) -> float:
        """Bytes on each device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


@dataclass(frozen=True)
class Dimensions:
    """What of a model is gathered at once where its weights are shared out.

    Attributes:
        layer: Bytes of the largest layer as it is gathered.
        rest: Those of what is in no layer: embeddings, head, last norm.
        layer_gradients: Bytes of the gradients of that layer.
        width: Bytes of a token's hidden state.
        layers: Layers of all stacks.
        matrices: Share of the weights that tensor parallelism divides: those in layers, and the head.
    """

    layer: float
    rest: float
    layer_gradients: float
    width: float
    layers: int
    matrices: float


def dimensions(model: nn.Module, bytes_a_value: int) -> Dimensions:
    """Measure a model on the meta device.

    Args:
        model: The model, with its adapter.
        bytes_a_value: Of the type that it computes in.
    """
    stacks = layer_stacks(model)
    layers = [layer for stack in stacks.values() for layer in stack]
    largest = max(layers, key=_count, default=None)
    total, inside = _count(model), sum(map(_count, layers))
    config: Any = getattr(model, "config", None)
    width = config.get_text_config().hidden_size if config is not None else 0
    trained = sum(part.numel() for part in largest.parameters() if part.requires_grad) if largest is not None else 0
    layer = _count(largest) if largest is not None else total
    rest = (total - inside) * bytes_a_value
    return Dimensions(
        layer * bytes_a_value, rest, trained * bytes_a_value, width * bytes_a_value, len(layers), inside / max(total, 1)
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def alone(peaks: Peaks) -> Layout:
    """Return the layout of one device that has all."""
    return Layout(ALONE, peaks.weights, peaks.gradients, peaks.optimizer, peaks.activations)


def ddp(peaks: Peaks, devices: int) -> Layout:
    """Return what replicas take: all of the model on each, and the buckets in which gradients are summed.

    The buckets are as large as the gradients (`torch.nn.parallel.DistributedDataParallel`, `gradient_as_bucket_view`).
    A ring sends 2 (n - 1) / n of them from each device (Patarasu and Yuan, "Bandwidth optimal all-reduce", 2009).
    """
    ring = (devices - 1) / devices
    return Layout(
        DDP,
        peaks.weights,
        peaks.gradients,
        peaks.optimizer,
        peaks.activations,
        buffers=peaks.gradients,
        sent_a_step=2 * ring * peaks.gradients,
    )


def fsdp(peaks: Peaks, activations: float, size: Dimensions, devices: int) -> Layout:
    """Return what is left where weights, gradients and optimizer state are shared out, and layers gathered in turn.

    Gathered at once are what is in no layer, which stays from forward to backward, a layer, and the next one, which is
    fetched meanwhile; and a layer's gradients until they are summed (`torch.distributed.fsdp.fully_shard`). Weights are
    gathered for forward and for backward, gradients are summed once: (n - 1) / n of each from each device (Rajbhandari
    et al., "ZeRO", 2020, section 7.2.2: half as much again as DDP).

    Args:
        peaks: Of one device.
        activations: Bytes of activations where the weights are of the type that is computed in.
        size: Of the model.
        devices: Among which everything is shared out.
    """
    ring = (devices - 1) / devices
    gathered = size.layer * size.layers + size.rest
    return Layout(
        FSDP2,
        peaks.weights / devices,
        peaks.gradients / devices,
        peaks.optimizer / devices,
        activations,
        buffers=size.rest + 2 * size.layer + size.layer_gradients,
        sent_a_batch=ring * (2 * gathered + size.layer_gradients * size.layers),
    )


def tensor_parallel(peaks: Peaks, size: Dimensions, devices: int, tokens: float) -> Layout:
    """Return what is left where the matrices of each layer are divided among devices, which all see the same batch.

    A layer's matrices, their gradients and their states are divided, embeddings and norms are not; of the activations
    `SHARED_BY_TENSORS`. Each layer sums its output four times, twice forward and twice backward (Shoeybi et al.,
    "Megatron-LM", 2019, section 3), and nothing can be computed meanwhile.

    Args:
        peaks: Of one device.
        size: Of the model.
        devices: Among which each matrix is divided: those of one machine.
        tokens: Of a batch, padding included.
    """
    kept = size.matrices / devices + 1 - size.matrices
    ring = 2 * (devices - 1) / devices
    return Layout(
        TENSOR_PARALLEL,
        peaks.weights * kept,
        peaks.gradients * kept,
        peaks.optimizer * kept,
        peaks.activations * (1 - SHARED_BY_TENSORS + SHARED_BY_TENSORS / devices),
        sent_a_batch=4 * size.layers * ring * tokens * size.width,
        overlaps=False,
        within_machine=True,
    )
