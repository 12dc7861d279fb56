"""How fast a run trains, and how much memory it needs."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_hf.task import Sizes


class _Sums(NamedTuple):
    """Sums over batches: all of them, and those whose time was measured."""

    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    measured_rows: int = 0
    measured_tokens: int = 0
    measured_padded_tokens: int = 0
    microseconds: int = 0


class Throughput(Callback):
    """Measures training: the time from the end of one batch to the end of the next, loading included.

    The first batches (compilation, allocation), validation, the sanity check and the writing of checkpoints are left
    out. Counting asks nothing of the device; it is waited for only where a measured stretch begins or ends.

    Args:
        warmup_batches: Batches at the start whose time is not measured.
        window: Batches that the live figure is a mean over.
        clock: Returns seconds.
    """

    def __init__(
        self, warmup_batches: int = 3, window: int = 50, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.warmup_batches = warmup_batches
        self._clock = clock
        self._window: deque[tuple[float, int]] = deque(maxlen=window + 1)
        self._reset()

    def _reset(self) -> None:
        self._batches = 0
        self._sums = _Sums()
        self._global = self._sums
        self._world_size = 1
        self._seconds = 0.0
        self._since: float | None = None
        self._window.clear()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._reset()
        self._world_size = trainer.world_size

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Go on measuring after a pause."""
        if self._since is None and self._batches >= self.warmup_batches:
            self._since = self._clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Mapping[str, Any], batch_idx: int
    ) -> None:
        """Count the batch."""
        sizes: Sizes = batch["sizes"]
        self._batches += 1
        measured = self._since is not None
        self._sums = _Sums(
            self._sums.rows + sizes.rows,
            self._sums.tokens + sizes.tokens,
            self._sums.padded_tokens + sizes.padded_tokens,
            self._sums.measured_rows + sizes.rows * measured,
            self._sums.measured_tokens + sizes.tokens * measured,
            self._sums.measured_padded_tokens + sizes.padded_tokens * measured,
        )
        if self._batches == self.warmup_batches:
            _wait_for(pl_module.device)
            self._since = self._clock()
        if self._since is not None:
            self._window.append((self._elapsed(), self._sums.measured_tokens))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop measuring until the next training batch."""
        self._pause(pl_module.device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Stop measuring until the next training batch."""
        self._pause(pl_module.device)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the ranks."""
        _wait_for(pl_module.device)
        sums = self._local_sums()
        if self._world_size > 1:
            here = torch.tensor(sums, dtype=torch.int64, device=pl_module.device)
            everywhere = trainer.strategy.reduce(here, reduce_op="sum")
            assert isinstance(everywhere, torch.Tensor)
            sums = _Sums(*everywhere.tolist())
        self._global = sums

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop measuring."""
        self._pause(pl_module.device)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop measuring, without waiting for a device that may be what failed."""
        self._pause(torch.device("cpu"))

    @property
    def live_tokens_per_second(self) -> float | None:
        """Tokens that are not padding, a second, over the last batches; None while warming up.

        With several ranks it is this rank's figure times their number.
        """
        if len(self._window) < 2:
            return None
        (start, tokens_before), (end, tokens_after) = self._window[0], self._window[-1]
        return self._world_size * (tokens_after - tokens_before) / (end - start) if end > start else None

    def summary(self) -> dict[str, float | int | None]:
        """Return the figures of this start of the run, summed over the ranks.

        Returns:
            rows, tokens, padded_tokens: What was trained on, warm-up included; `tokens` without padding,
                `padded_tokens` with it.
            padding_share: The share of `padded_tokens` that is padding.
            measured_seconds: Measured time, the mean over the ranks.
            rows_per_second, tokens_per_second, padded_tokens_per_second: What was trained on in the measured time, by
                that time. None where nothing was measured.

        With several ranks the figures are those at the end of the last epoch that came to its end.
        """
        sums = self._global if self._world_size > 1 else self._local_sums()
        seconds = sums.microseconds / 1e6 / self._world_size
        return {
            "rows": sums.rows,
            "tokens": sums.tokens,
            "padded_tokens": sums.padded_tokens,
            "padding_share": 1 - sums.tokens / sums.padded_tokens if sums.padded_tokens else None,
            "measured_seconds": seconds,
            "rows_per_second": sums.measured_rows / seconds if seconds else None,
            "tokens_per_second": sums.measured_tokens / seconds if seconds else None,
            "padded_tokens_per_second": sums.measured_padded_tokens / seconds if seconds else None,
        }

    def _elapsed(self) -> float:
        return self._seconds + (self._clock() - self._since if self._since is not None else 0.0)

    def _local_sums(self) -> _Sums:
        return self._sums._replace(microseconds=round(self._elapsed() * 1e6))

    def _pause(self, device: torch.device) -> None:
        if self._since is not None:
            _wait_for(device)
            self._seconds = self._elapsed()
            self._since = None


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
