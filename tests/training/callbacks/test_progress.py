from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from lit_hf.run import RunFolder
from lit_hf.training.callbacks.checkpoints import RunCheckpoints
from lit_hf.training.callbacks.progress import Progress
from lit_hf.training.callbacks.throughput import Throughput
from lit_hf.training.saving import CheckpointFiles, Writer
from tests.training.callbacks.tiny import Batches, Clock, Stream, TinyModule, tiny_trainer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Seconds(Callback):
    """Lets each batch take some seconds."""

    def __init__(self, clock: Clock, training: float = 1, validation: float = 0) -> None:
        self.clock = clock
        self.training = training
        self.validation = validation

    def on_train_batch_start(self, *args: Any) -> None:
        self.clock.now += self.training

    def on_validation_batch_start(self, *args: Any) -> None:
        self.clock.now += self.validation

    def on_predict_batch_start(self, *args: Any) -> None:
        self.clock.now += self.training


def show(
    folder: Path,
    stream: io.StringIO,
    module: TinyModule | None = None,
    *,
    batches: Any = None,
    val_batches: int = 2,
    seconds: dict[str, float] | None = None,
    interval: float = 1000,
    **settings: Any,
) -> list[str]:
    """Train and return the lines that were written."""
    clock = Clock()
    throughput = Throughput(warmup_batches=1, clock=clock)
    progress = Progress(throughput, interval=interval, stream=stream, clock=clock)
    callbacks = [throughput, progress, *settings.pop("callbacks", []), Seconds(clock, **(seconds or {}))]
    trainer = tiny_trainer(folder, callbacks=callbacks, enable_progress_bar=True, **settings)
    trainer.fit(module or TinyModule(), Batches(6) if batches is None else batches, Batches(val_batches))
    return stream.getvalue().splitlines()


def test_a_log_has_a_line_for_each_epoch_and_each_validation(tmp_path: Path) -> None:
    best = RunCheckpoints(RunFolder(tmp_path), writer := Writer(), "val/accuracy", "max")
    module = TinyModule(lambda _, loss: loss * 0 + 0.5, val_losses=[0.6, 0.2, 0.4])

    lines = show(
        tmp_path, io.StringIO(), module, callbacks=[best], enable_checkpointing=True, max_epochs=3,
        num_sanity_val_steps=1, plugins=[CheckpointFiles(writer)],
    )  # fmt: skip

    assert lines == [
        "epoch 1/3  step 6/18  loss 0.5000  lr 0.01  10 tokens/s  eta 0:12  padding 26%",
        "epoch 1/3  validation  loss 0.6000  accuracy 0.7000  (best so far)",
        "epoch 2/3  step 12/18  loss 0.5000  lr 0.01  10 tokens/s  eta 0:06  padding 28%",
        "epoch 2/3  validation  loss 0.2000  accuracy 0.9000  (best so far)",
        "epoch 3/3  step 18/18  loss 0.5000  lr 0.01  10 tokens/s  eta 0:00  padding 28%",
        "epoch 3/3  validation  loss 0.4000  accuracy 0.8000",
    ]


def test_the_best_is_the_least_where_less_is_better(tmp_path: Path) -> None:
    best = RunCheckpoints(RunFolder(tmp_path), writer := Writer(), "val/loss", "min")
    module = TinyModule(val_losses=[0.6, 0.2, 0.4])

    settings = {"enable_checkpointing": True, "max_epochs": 3, "plugins": [CheckpointFiles(writer)]}
    lines = show(tmp_path, io.StringIO(), module, callbacks=[best], **settings)

    assert [line.endswith("(best so far)") for line in lines[1::2]] == [True, True, False]


def test_a_log_has_no_control_characters(tmp_path: Path) -> None:
    stream = io.StringIO()

    show(tmp_path, stream, max_epochs=2, interval=0, num_sanity_val_steps=1)

    assert len(stream.getvalue().splitlines()) == 2 * (6 + 2 + 1) + 1
    assert stream.getvalue().replace("\n", "").isprintable()


def test_a_log_has_at_most_one_line_an_interval(tmp_path: Path) -> None:
    lines = show(tmp_path, io.StringIO(), batches=Batches(35), interval=10)

    assert [re.findall(r"step \d+/35", line) for line in lines] == [
        ["step 10/35"], ["step 20/35"], ["step 30/35"], ["step 35/35"], [],
    ]  # fmt: skip


def test_a_long_validation_is_shown_in_a_log(tmp_path: Path) -> None:
    lines = show(tmp_path, io.StringIO(), val_batches=25, seconds={"validation": 1}, interval=10)

    assert lines[1:3] == ["epoch 1/1  validation 10/25", "epoch 1/1  validation 20/25"]


def test_the_loss_is_a_mean_over_the_last_batches_that_accumulation_does_not_divide(tmp_path: Path) -> None:
    module = TinyModule(lambda index, loss: loss * 0 + index)

    lines = show(tmp_path, io.StringIO(), module, batches=Batches(40), accumulate_grad_batches=2)

    assert lines[0].startswith(f"epoch 1/1  step 20/20  loss {sum(range(20, 40)) / 20:.4f}  ")


def test_the_loss_is_read_only_when_a_line_is_drawn(tmp_path: Path) -> None:
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += operation is torch.ops.aten._local_scalar_dense.default
            return operation(*args, **(kwargs or {}))

    with Reads() as seldom:
        lines = show(tmp_path, io.StringIO(), batches=Batches(35), limit_val_batches=0)
    with Reads() as often:
        more_lines = show(tmp_path, io.StringIO(), batches=Batches(35), limit_val_batches=0, interval=1)

    assert (len(lines), len(more_lines)) == (1, 35)
    assert often.count - seldom.count == 34


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (
            {"max_steps": 4, "max_epochs": -1},
            "epoch 1  step 4/4  loss 1.0000  lr 0.01  10 tokens/s  eta 0:00  padding 29%",
        ),
        (
            {"max_steps": 9, "max_epochs": 2},
            "epoch 2/2  step 9/9  loss 1.0000  lr 0.01  10 tokens/s  eta 0:00  padding 27%",
        ),
        (
            {"max_epochs": 1, "limit_train_batches": 5},
            "epoch 1/1  step 5/5  loss 1.0000  lr 0.01  11 tokens/s  eta 0:00  padding 29%",
        ),
    ],
)
def test_all_ways_to_limit_a_run_are_shown(tmp_path: Path, limits: dict[str, Any], line: str) -> None:
    lines = show(tmp_path, io.StringIO(), TinyModule(lambda _, loss: loss * 0 + 1), **limits)

    assert line in lines


def test_a_stream_without_a_length_is_shown(tmp_path: Path) -> None:
    module = TinyModule(lambda _, loss: loss * 0 + 1)
    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)

    lines = show(tmp_path, io.StringIO(), module, batches=loader, max_steps=4, max_epochs=-1, limit_val_batches=0)

    assert lines == ["epoch 1  step 4/4  loss 1.0000  lr 0.01  10 tokens/s  eta 0:00  padding 29%"]


def test_a_run_without_an_end_has_no_eta(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 12

    module = TinyModule(lambda _, loss: loss * 0 + 1)

    lines = show(tmp_path, io.StringIO(), module, max_epochs=-1, limit_val_batches=0, callbacks=[Stop()])

    assert lines == [
        "epoch 1  step 6  loss 1.0000  lr 0.01  10 tokens/s  padding 26%",
        "epoch 2  step 12  loss 1.0000  lr 0.01  10 tokens/s  padding 28%",
    ]


def test_a_terminal_has_one_live_line_and_keeps_the_validations(tmp_path: Path) -> None:
    terminal = Terminal()
    module = TinyModule(lambda _, loss: loss * 0 + 0.5, val_losses=[0.6])

    show(tmp_path, terminal, module, num_sanity_val_steps=1, seconds={"validation": 1})

    live = terminal.getvalue().split("\r")
    assert live[1] == "sanity check 1/1\x1b[K"
    assert live[2] == "epoch 1/1  step 1/6  loss 0.5000  lr 0.01  eta 0:05\x1b[K"
    assert live[3] == "epoch 1/1  step 2/6  loss 0.5000  lr 0.01  14 tokens/s  eta 0:04  padding 30%\x1b[K"
    assert live[8] == "epoch 1/1  validation 1/2\x1b[K"
    assert live[10:] == ["epoch 1/1  validation  loss 0.6000  accuracy 0.7000\x1b[K\n"]


def test_a_terminal_is_drawn_ten_times_a_second_at_most(tmp_path: Path) -> None:
    terminal = Terminal()

    show(tmp_path, terminal, batches=Batches(100), seconds={"training": 0.03}, limit_val_batches=0)

    assert 25 <= terminal.getvalue().count("\r") <= 31


def test_a_live_line_is_cut_to_the_width_of_the_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 30, 0, 0))
    with os.fdopen(slave, "w") as terminal:
        progress = Progress(Throughput(), stream=terminal)
        trainer = tiny_trainer(tmp_path, callbacks=[progress], enable_progress_bar=True, limit_val_batches=0)
        progress.throughput.on_train_start(trainer, TinyModule())
        trainer.fit(TinyModule(), Batches(1))
        shown = ""
        while not shown.endswith("\n"):
            shown += os.read(master, 10_000).decode()
    os.close(master)

    assert shown.startswith("\repoch 1/1  step 1/1  loss ")
    assert [len(line) for line in re.findall(r"\r([^\x1b\r\n]+)", shown)] == [29]
    assert shown.endswith("\x1b[K\r\n")


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()

    show(tmp_path, terminal)

    assert terminal.getvalue().replace("\n", "").isprintable()


def test_an_error_leaves_the_live_line_and_starts_a_new_one(tmp_path: Path) -> None:
    terminal = Terminal()

    class Fail(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        show(tmp_path, terminal, callbacks=[Fail()])

    assert terminal.getvalue().endswith("eta 0:03  padding 23%\x1b[K\n")


def test_test_and_validate_are_shown(tmp_path: Path) -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(Throughput(), interval=1, stream=stream, clock=clock)
    trainer = tiny_trainer(tmp_path, callbacks=[Seconds(clock), progress], enable_progress_bar=True)

    trainer.test(TinyModule(), Batches(2), verbose=False)
    trainer.validate(TinyModule(val_losses=[0.25]), Batches(2), verbose=False)

    lines = stream.getvalue().splitlines()
    assert re.fullmatch(r"test  loss \d+\.\d{4}", lines[0])
    assert lines[1:] == ["validation  loss 0.2500  accuracy 0.8750"]


def test_small_and_missing_numbers_can_be_told_from_zero(tmp_path: Path) -> None:
    module = TinyModule(lambda _, loss: loss * 0 + 2.5e-5, val_losses=[float("nan")])

    lines = show(tmp_path, io.StringIO(), module)

    assert "  loss 2.50e-05  " in lines[0]
    assert lines[1] == "epoch 1/1  validation  loss nan  accuracy nan"


def test_only_rank_zero_writes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        progress = Progress(Throughput(), stream=stream)
        settings = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
        callbacks = [progress.throughput, progress]
        trainer = tiny_trainer(tmp_path, callbacks=callbacks, enable_progress_bar=True, max_epochs=2, **settings)
        trainer.fit(TinyModule(val_losses=[0.5, 0.25]), Batches(6), Batches(2))

    assert [line.split("  ")[:2] for line in path.read_text().splitlines()] == [
        ["epoch 1/2", "step 6/12"],
        ["epoch 1/2", "validation"],
        ["epoch 2/2", "step 12/12"],
        ["epoch 2/2", "validation"],
    ]


def test_what_the_module_prints_is_a_line_of_its_own(tmp_path: Path) -> None:
    class Talks(TinyModule):
        def on_train_end(self) -> None:
            self.print("that", "was it")

    terminal = Terminal()

    show(tmp_path, terminal, Talks(), limit_val_batches=0)

    assert terminal.getvalue().endswith("\rthat was it\x1b[K\n")
