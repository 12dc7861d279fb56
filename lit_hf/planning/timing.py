"""How long a planned run takes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lit_hf.models.flops import flop_costs
from lit_hf.planning.layouts import Layout
from lit_hf.planning.machine import Machine
from lit_hf.planning.planned_run import TrainerSettings
from lit_hf.planning.workload import Workload
from lit_hf.training.settings import epochs

RECOMPUTED = 4 / 3
"""Work of a step with gradient checkpointing: forward, a third of it, is done twice (Chen et al., "Training Deep Nets
with Sublinear Memory Cost", 2016)."""


@dataclass(frozen=True)
class Time:
    """How long a run takes.

    Attributes:
        flops: Operations of an optimizer step, on all devices; what checkpointing computes again is left out.
        computing: Seconds of it.
        sending: Seconds that a step's communication takes.
        step: Seconds of a step.
        steps: Steps of an epoch; None where the rows are not known.
        total_steps: Steps of the run.
    """

    flops: float
    computing: float
    sending: float
    step: float
    steps: int | None
    total_steps: int | None

    @property
    def total(self) -> float | None:
        """Seconds of the run."""
        return self.step * self.total_steps if self.total_steps is not None else None


def estimate_time(
    model: nn.Module, way: Layout, work: Workload, machine: Machine, trainer: TrainerSettings, recomputes: bool
) -> Time:
    """Return how long a run takes.

    Args:
        model: The model, on the meta device.
        way: How the devices share it.
        work: What it trains on.
        machine: Where.
        trainer: How the trainer is set.
        recomputes: Whether backward computes activations again.
    """
    batches = trainer.accumulate_grad_batches
    flops = batches * flop_costs(model).step(work.tokens, work.attended, work.trained_tokens, work.decoder_tokens)
    computing = flops * (RECOMPUTED if recomputes else 1) / (machine.flops * machine.efficiency)
    sending = (batches * way.sent_a_batch + way.sent_a_step) / machine.bandwidth(way.within_machine)
    step = max(computing, sending) if way.overlaps else computing + sending
    steps = None
    if work.batches is not None:
        shared = -(-work.batches // machine.world)
        steps = -(-_limited(shared, trainer.limit_train_batches) // batches)
    return Time(flops * machine.world, computing, sending, step, steps, _total_steps(steps, trainer))


def _total_steps(steps: int | None, trainer: TrainerSettings) -> int | None:
    most = trainer.max_steps if trainer.max_steps != -1 else None
    limit = epochs(trainer.max_epochs, trainer.max_steps)
    in_epochs = steps * limit if steps is not None and limit is not None and limit != -1 else None
    return min((value for value in (most, in_epochs) if value is not None), default=None)


def _limited(batches: int, limit: int | float | None) -> int:
    """Return what Lightning's `limit_train_batches` leaves: a share, or a number."""
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)
