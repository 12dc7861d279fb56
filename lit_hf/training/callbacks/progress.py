"""What a user sees of a running job: a live line on a terminal, plain lines in a file."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TextIO

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn

from lit_hf.training.callbacks.checkpoints import RunCheckpoints
from lit_hf.training.callbacks.throughput import Throughput

_LOSSES = 20  # batches that the loss shown is a mean over
_REFRESH_CPU, _REFRESH_ACCELERATOR = 0.1, 0.5  # seconds; reading the loss makes an accelerator wait

_SHARES = {"padding": "padding_share", "waiting": "data_wait_share", "mfu": "mfu"}
"""Names on the line, and of the live figures."""


class Progress(ProgressBar):
    """Shows epoch, step, loss, learning rate, speed and the time left, and the metrics of each validation.

    The speed is in tokens without padding; after it come the shares of padding in the batches, of the time that was
    waited for data, and of what the device can do (MFU).

    On a terminal one line is rewritten in place. Anywhere else only whole lines are written, free of control codes: at
    most one an interval, one at the end of each epoch, and one for each validation. Only rank zero writes.

    Args:
        throughput: Knows the live figures.
        interval: Seconds between two lines where there is no terminal.
        stream: Where to write; standard error where it is left out.
        clock: Returns seconds.
    """

    def __init__(
        self,
        throughput: Throughput,
        interval: float = 10.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.throughput = throughput
        self.interval = interval
        self._clock = clock
        self._stream = stream
        self._enabled = True
        self._line: LiveLine | PlainLines = PlainLines(stream or sys.stderr)
        self._refresh = interval
        self._drawn_at = -math.inf
        self._losses: deque[torch.Tensor] = deque(maxlen=_LOSSES)
        self._total_steps = math.inf
        self._start = (0.0, 0)

    @property
    def is_enabled(self) -> bool:
        """Whether anything is written; Lightning asks."""
        return self._enabled

    def disable(self) -> None:
        """Write nothing from here on."""
        self._enabled = False

    def enable(self) -> None:
        """Write again."""
        self._enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print a line that stays."""
        self._keep(sep.join(map(str, args)))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out where the lines go."""
        super().setup(trainer, pl_module, stage)
        stream = self._stream or sys.stderr
        live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._line = LiveLine(stream) if live else PlainLines(stream)
        self._refresh = self.interval
        if live:
            on_cpu = trainer.strategy.root_device.type == "cpu"
            self._refresh = _REFRESH_CPU if on_cpu else _REFRESH_ACCELERATOR
        self._drawn_at = -math.inf if live else self._clock()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the terminal clean."""
        self._line.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal clean."""
        self._line.close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where training starts."""
        steps = trainer.estimated_stepping_batches
        self._total_steps = steps if steps > 0 else math.inf
        self._start = (self._clock(), trainer.global_step)
        self._losses.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, if it is time to."""
        self._losses.append(outputs["mean_loss"])
        ends = trainer.is_last_batch or trainer.global_step == trainer.max_steps
        self._draw(lambda: self._training_line(trainer), force=ends)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show validation as a phase."""
        self._draw_phase(trainer, batch_idx, dataloader_idx, trainer.num_val_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a line of the metrics."""
        if not trainer.sanity_checking:
            self._keep_metrics(trainer, "val/")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the test as a phase."""
        self._draw_phase(trainer, batch_idx, dataloader_idx, trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a line of the metrics."""
        self._keep_metrics(trainer, "test/")

    def _training_line(self, trainer: Trainer) -> str:
        step, total = trainer.global_step, self._total_steps
        parts = [_epoch(trainer), f"step {step}" if math.isinf(total) else f"step {step}/{total:.0f}"]
        if self._losses:
            parts.append(f"loss {_number(torch.stack(list(self._losses)).mean().item())}")
        if trainer.optimizers:
            parts.append(f"lr {float(trainer.optimizers[0].param_groups[0]['lr']):.3g}")
        live = self.throughput.live() or {}
        if (speed := live.get("tokens_per_second")) is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        if (left := self._seconds_left(step)) is not None:
            parts.append(f"eta {_duration(left)}")
        for name, key in _SHARES.items():  # last, as a narrow terminal cuts them off
            if (share := live.get(key)) is not None:
                parts.append(f"{name} {share:.0%}")
        return "  ".join(parts)

    def _seconds_left(self, step: int) -> float | None:
        """Estimate from the whole time since the start, validation included, as it will come again."""
        started, first = self._start
        if step <= first or math.isinf(self._total_steps):
            return None
        return (self._clock() - started) / (step - first) * (self._total_steps - step)

    def _draw_phase(
        self, trainer: Trainer, batch_idx: int, dataloader_idx: int, batches: int | float | list[int | float]
    ) -> None:
        if trainer.sanity_checking:
            batches = trainer.num_sanity_val_batches
        total = batches[dataloader_idx] if isinstance(batches, list) else batches
        of = f"/{total:.0f}" if math.isfinite(total) else ""
        self._draw(lambda: f"{_phase(trainer)} {batch_idx + 1}{of}")

    def _keep_metrics(self, trainer: Trainer, prefix: str) -> None:
        metrics = {
            name.removeprefix(prefix): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(prefix)
        }
        if metrics:
            shown = "  ".join(f"{name} {_number(value)}" for name, value in metrics.items())
            self._keep(f"{_phase(trainer)}  {shown}{'  (best so far)' if _is_best(trainer) else ''}")

    def _draw(self, text: Callable[[], str], force: bool = False) -> None:
        now = self._clock()
        if self._enabled and (force or now - self._drawn_at >= self._refresh):
            self._drawn_at = now
            self._line.draw(text())

    def _keep(self, text: str) -> None:
        if self._enabled:
            self._drawn_at = self._clock()
            self._line.keep(text)


class LiveLine:
    """A line of a terminal that is rewritten in place.

    Args:
        stream: The terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = False

    def draw(self, text: str) -> None:
        """Replace the line, cut to the terminal's width."""
        self._write(f"\r{text[: self._width() - 1]}\x1b[K")
        self._drawn = True

    def keep(self, text: str) -> None:
        """Replace the line by one that stays."""
        self._write(f"\r{text}\x1b[K\n")
        self._drawn = False

    def close(self) -> None:
        """Leave the line as it is and go to the next."""
        if self._drawn:
            self._write("\n")
            self._drawn = False

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80


class PlainLines:
    """Lines for a file: nothing is taken back, so all stay.

    Args:
        stream: The file.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def draw(self, text: str) -> None:
        """Write a line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    keep = draw

    def close(self) -> None:
        """Do nothing; the last line has its end."""


def _epoch(trainer: Trainer) -> str:
    bounded = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if bounded else "")


def _phase(trainer: Trainer) -> str:
    if trainer.sanity_checking:
        return "sanity check"
    if trainer.state.fn == TrainerFn.FITTING:
        return f"{_epoch(trainer)}  validation"
    return "test" if trainer.state.fn == TrainerFn.TESTING else "validation"


def _is_best(trainer: Trainer) -> bool:
    """Say whether the checkpoint callback, which runs after this one, will find this validation the best."""
    checkpoints = trainer.checkpoint_callback
    if trainer.state.fn != TrainerFn.FITTING or not isinstance(checkpoints, RunCheckpoints) or not checkpoints.monitor:
        return False
    value = trainer.callback_metrics.get(checkpoints.monitor)
    if value is None or value.isnan():
        return False
    return checkpoints.is_better(float(value))


def _number(value: float) -> str:
    small = value != 0 and abs(value) < 1e-3
    return f"{value:.2e}" if small else f"{value:.4f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
