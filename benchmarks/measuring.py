"""What is measured inside of a run: when each optimizer step ended, what was trained on, and the peak of memory.

All peers are measured alike: a hook that PyTorch calls after every optimizer's step, whoever makes it.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

WARMUP_STEPS = 3
"""Steps at the start whose time is not measured: compilation, first allocations, threads that start."""


class OutOfTime(BaseException):
    """A run has used up its time; no `Exception`, so that no peer handles it."""


@dataclass(frozen=True)
class Mark:
    """The end of an optimizer step.

    Attributes:
        seconds: The clock.
        tokens: Tokens trained on so far, without padding.
        memory: Peak of memory so far, in bytes, above what was there after the imports.
    """

    seconds: float
    tokens: int
    memory: int


class Memory:
    """The peak of memory since this object was made: what tensors take on a GPU, else the process's resident memory."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        if on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is resident now
        self._base = 0 if on_gpu else self._resident()

    def peak(self) -> int:
        """Return the peak in bytes."""
        if self.on_gpu:
            import torch

            return torch.cuda.max_memory_allocated()
        return self._resident() - self._base

    @staticmethod
    def _resident() -> int:
        if sys.platform == "linux":
            return resident_peak(Path("/proc/self/status").read_text())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def resident_peak(status: str) -> int:
    """Return the peak of resident memory in bytes, from the text of /proc/<process>/status."""
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class StepClock:
    """Notes the end of each optimizer step.

    Args:
        memory: Says how much memory was needed.
        limit: Seconds from the first step's end, after which a run is ended.
        tokens_by_step: Tokens of each step, where they are known beforehand; else they are counted: see `count`.
    """

    def __init__(self, memory: Memory, limit: float, tokens_by_step: Sequence[int] | None = None) -> None:
        self.marks: list[Mark] = []
        self._memory = memory
        self._limit = limit
        self.tokens_by_step = tokens_by_step
        self._tokens = 0

    def start(self) -> Any:
        """Listen to the optimizers of this process, until what is returned is asked to `remove` that."""
        from torch.optim.optimizer import register_optimizer_step_post_hook

        return register_optimizer_step_post_hook(self._stepped)

    def count(self, model: Any) -> None:
        """Count the tokens that a model is trained on; of several inputs, as of an encoder and a decoder, the first."""
        model.register_forward_pre_hook(self._forward, with_kwargs=True)

    def _forward(self, model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        import torch

        if torch.is_grad_enabled():
            ids, mask = kwargs.get("input_ids", args[0] if args else None), kwargs.get("attention_mask")
            self._tokens += int(mask.sum()) if mask is not None and mask.shape == ids.shape else ids.numel()

    def _stepped(self, *_: Any) -> None:
        if self._memory.on_gpu:
            import torch

            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.tokens_by_step is not None:
            self._tokens = sum(self.tokens_by_step[: len(self.marks) + 1])
        self.marks.append(Mark(now, self._tokens, self._memory.peak()))
        if now - self.marks[0].seconds > self._limit:
            raise OutOfTime


def figures(marks: Sequence[Mark]) -> dict[str, Any]:
    """Return a run's figures: from the end of the last step of the warm-up to the end of the last step.

    Args:
        marks: The ends of all steps.

    Returns:
        `steps` and `tokens` of the whole run; `seconds` and `tokens_per_second` of what was measured, and the median
        `step_seconds`, None where nothing was; `memory`, the peak in bytes.
    """
    measured = marks[WARMUP_STEPS - 1 :]
    result: dict[str, Any] = {
        "steps": len(marks),
        "tokens": marks[-1].tokens if marks else 0,
        "memory": marks[-1].memory if marks else None,
        "seconds": None,
        "tokens_per_second": None,
        "step_seconds": None,
    }
    if len(measured) > 1:
        seconds = measured[-1].seconds - measured[0].seconds
        steps = [after.seconds - before.seconds for before, after in pairwise(measured)]
        result["seconds"] = seconds
        result["tokens_per_second"] = (measured[-1].tokens - measured[0].tokens) / seconds or None
        result["step_seconds"] = statistics.median(steps)
    return result
