"""How fast a run trains, and how much memory it needs."""

from __future__ import annotations

import resource
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_hf.task import Sizes
from lit_hf.training.figures import Model, Work, figures, percentiles


class _Mark(NamedTuple):
    """How far the measured training was: seconds, seconds of them that were waited for batches, and work."""

    seconds: float
    waited: float
    work: Work


class Throughput(Callback):
    """Measures training: the time from the end of one batch to the end of the next, loading included.

    The first batches (compilation, allocation), validation, the sanity check and the writing of checkpoints are left
    out, and so is the loading of the batch that follows them. Counting asks nothing of the device; it is waited for
    only where a measured stretch begins or ends. In between the host's clock tells when a step ended: a GPU may lag
    behind it by what is queued, which moves single step times, and no sum.

    Args:
        warmup_batches: Batches at the start whose time is not measured.
        window: Batches that the live figures are of.
        clock: Returns seconds.
    """

    def __init__(
        self, warmup_batches: int = 3, window: int = 50, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.warmup_batches = warmup_batches
        self._clock = clock
        self._window: deque[_Mark] = deque(maxlen=window + 1)
        self._reset()

    def _reset(self) -> None:
        self._batches = 0
        self._all = Work()
        self._measured = _Mark(0.0, 0.0, Work())
        self._summed: tuple[Work, _Mark] | None = None  # over the ranks
        self._world_size = 1
        self._model: Model | None = None
        self._since: float | None = None
        self._loader: Any = None
        self._waited = 0.0  # of what the loader counts, when it was last looked at
        self._steps = array("d")
        self._step = 0
        self._step_began: float | None = None
        self._began = self._ended = 0.0
        self._window.clear()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._reset()
        self._world_size = trainer.world_size
        self._model = Model(pl_module, str(trainer.precision))
        self._loader = trainer.train_dataloader
        self._step = trainer.global_step
        self._began = self._clock()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count what was waited for the batch, or go on measuring after a pause."""
        waited = self._seconds_waited()
        if self._since is not None:
            self._measured = self._measured._replace(waited=self._measured.waited + waited - self._waited)
        elif self._batches >= self.warmup_batches:
            self._since = self._clock()
        self._waited = waited

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        """Count the batch, and the step if it ends one."""
        sizes: Sizes = batch["sizes"]
        self._batches += 1
        self._all = self._all.plus(sizes)
        if self._since is not None:
            self._measured = self._measured._replace(work=self._measured.work.plus(sizes))
        if self._batches == 1 and self._since is None and self._model is not None:
            self._model.measure()  # early in the warm-up, where nobody's clock runs
        if self._batches == self.warmup_batches:
            self._end_warmup(pl_module.device)
        if self._since is not None:
            self._window.append(self._mark())
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._end_step()

    def _end_warmup(self, device: torch.device) -> None:
        _wait_for(device)
        self._since = self._clock()

    def _end_step(self) -> None:
        now = self._elapsed() if self._since is not None else None
        if now is not None and self._step_began is not None:
            self._steps.append(now - self._step_began)
        self._step_began = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop measuring until the next training batch."""
        self._pause(pl_module.device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop measuring until the next training batch."""
        self._pause(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the ranks."""
        if self._world_size == 1:
            return
        _wait_for(pl_module.device)
        seconds, waited, work = self._mark()
        numbers = [*self._all, *work, round(seconds * 1e6), round(waited * 1e6)]
        here = torch.tensor(numbers, dtype=torch.int64, device=pl_module.device)
        everywhere = trainer.strategy.reduce(here, reduce_op="sum")
        assert isinstance(everywhere, torch.Tensor)
        *sums, seconds, waited = everywhere.tolist()
        mean = 1e6 * self._world_size
        self._summed = Work(*sums[:5]), _Mark(seconds / mean, waited / mean, Work(*sums[5:]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop measuring."""
        self._pause(pl_module.device)
        self._ended = self._clock()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop measuring, without waiting for a device that may be what failed."""
        self._pause(torch.device("cpu"))
        self._ended = self._clock()

    def live(self) -> dict[str, Any] | None:
        """Return `figures` of the last batches, with their `padding_share`; None while warming up.

        With several ranks they are this rank's, times the number of ranks where they are sums.
        """
        if len(self._window) < 2:
            return None
        start, end = self._window[0], self._window[-1]
        work, seconds = end.work.since(start.work), end.seconds - start.seconds
        everywhere = Work(*(self._world_size * number for number in work))
        waited = None if self._loader_is_silent else end.waited - start.waited
        told = figures(everywhere, seconds, waited, self._model, self._world_size)
        return {**told, "padding_share": work.padding_share}

    def summary(self) -> dict[str, Any]:
        """Return the figures of this start of the run, summed over the ranks.

        Returns:
            rows, tokens, padded_tokens, targets: What was trained on, warm-up included; `tokens` without padding,
                `padded_tokens` with it, `targets` are labelled tokens, or rows where a row has one label.
            padding_share: The share of `padded_tokens` that is padding.
            measured_seconds: Measured time, the mean over the ranks.
            excluded_seconds: The rest of the time since the training loop began.
            excluded: What that was.
            rows_per_second and so on: See `figures`; what was trained on in the measured time, by that time.
            step_seconds: p50, p90 and p99 of the times of the optimizer steps, on this rank: from the end of one to the
                end of the next, with the loading of its batches, without pauses.
            peak: Of what `mfu` is a share, for one device.

        With several ranks sums are those at the end of the last epoch that came to its end. Figures are None where
        nothing was measured.
        """
        everything, measured = (self._all, self._mark()) if self._world_size == 1 else self._summed or _NOTHING
        waited = None if self._loader_is_silent else measured.waited
        until = self._ended or self._clock()
        return {
            **dict(zip(Work._fields[:4], everything[:4], strict=True)),
            "padding_share": everything.padding_share,
            "measured_seconds": measured.seconds,
            "excluded_seconds": max(0.0, until - self._began - measured.seconds),
            "excluded": f"warm-up ({self.warmup_batches} batches), validation, checkpoints",
            **figures(measured.work, measured.seconds, waited, self._model, self._world_size),
            "step_seconds": percentiles(self._steps),
            "peak": self._model.peak if self._model is not None else None,
        }

    def _mark(self) -> _Mark:
        return self._measured._replace(seconds=self._elapsed())

    def _elapsed(self) -> float:
        return self._measured.seconds + (self._clock() - self._since if self._since is not None else 0.0)

    @property
    def _loader_is_silent(self) -> bool:
        return not hasattr(self._loader, "seconds_waited")

    def _seconds_waited(self) -> float:
        return 0.0 if self._loader_is_silent else self._loader.seconds_waited

    def _pause(self, device: torch.device) -> None:
        if self._since is not None:
            _wait_for(device)
            self._measured = self._mark()
            self._since = None


_NOTHING = (Work(), _Mark(0.0, 0.0, Work()))


def peak_memory(device: torch.device) -> dict[str, int]:
    """Return the most memory this process has had, in bytes.

    Args:
        device: Where the model is.

    Returns:
        `cuda_allocated`, the peak of what tensors took on that GPU; elsewhere `process_resident`, the peak of the
        process's resident memory (its children's not included).
    """
    if device.type == "cuda":
        return {"cuda_allocated": torch.cuda.max_memory_allocated(device)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"process_resident": peak if sys.platform == "darwin" else peak * 1024}


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
