from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_hf.training.callbacks.throughput import Throughput, peak_memory
from tests.training.callbacks.tiny import SIZES, Batches, Clock, TinyModule, tiny_trainer


class Time(Callback):
    """Lets a training batch take a second, and validation and checkpoints an hour."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *args: Any) -> None:
        self.clock.now += 1

    def on_validation_batch_start(self, *args: Any) -> None:
        self.clock.now += 3600

    def on_save_checkpoint(self, *args: Any) -> None:
        self.clock.now += 3600


def train(folder: Path, throughput: Throughput, clock: Clock, **settings: Any) -> TinyModule:
    module = TinyModule()
    callbacks = [throughput, Time(clock), *settings.pop("callbacks", [])]
    trainer = tiny_trainer(folder, callbacks=callbacks, **settings)
    trainer.fit(module, Batches(6), Batches(2))
    return module


def test_figures_are_what_was_trained_on_by_the_time_of_training_alone(tmp_path: Path) -> None:
    clock = Clock()
    throughput = Throughput(warmup_batches=1, clock=clock)
    checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1)

    train(
        tmp_path,
        throughput,
        clock,
        callbacks=[checkpoints],
        enable_checkpointing=True,
        max_epochs=2,
        num_sanity_val_steps=1,
        val_check_interval=3,
    )

    rows, tokens, padded, targets = (2 * 2 * sum(sizes[index] for sizes in SIZES) for index in range(4))
    everything = (rows, tokens, padded, targets)
    measured = [value - first for value, first in zip(everything, SIZES[0], strict=False)]
    summary = throughput.summary()
    assert summary == {
        "rows": rows,
        "tokens": tokens,
        "padded_tokens": padded,
        "targets": targets,
        "padding_share": 1 - tokens / padded,
        "measured_seconds": 11,
        "excluded_seconds": summary["excluded_seconds"],
        "excluded": "warm-up (1 batches), validation, checkpoints",
        "rows_per_second": measured[0] / 11,
        "tokens_per_second": measured[1] / 11,
        "padded_tokens_per_second": measured[2] / 11,
        "targets_per_second": measured[3] / 11,
        "data_wait_share": None,
        "mfu": None,
        "step_seconds": {"p50": 1, "p90": 1, "p99": 1},
        "peak": None,
    }
    assert summary["excluded_seconds"] % 3600 == 1  # the batch of the warm-up
    assert summary["excluded_seconds"] > 6 * 3600


def test_without_pauses_every_second_after_the_warm_up_counts(tmp_path: Path) -> None:
    clock = Clock()
    throughput = Throughput(warmup_batches=2, clock=clock)

    train(tmp_path, throughput, clock, limit_val_batches=0)

    assert throughput.summary()["measured_seconds"] == 4
    assert throughput.summary()["tokens_per_second"] == (6 + 10 + 14 + 6) / 4


def test_live_figure_is_of_the_last_batches_only(tmp_path: Path) -> None:
    clock = Clock()
    throughput = Throughput(warmup_batches=1, window=2, clock=clock)
    seen: list[float | None] = []

    class Look(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append((throughput.live() or {}).get("tokens_per_second"))

    train(tmp_path, throughput, clock, callbacks=[Look()], limit_val_batches=0)

    assert seen == [None, 14, (14 + 6) / 2, (6 + 10) / 2, (10 + 14) / 2, (14 + 6) / 2]


def test_a_run_shorter_than_the_warm_up_has_counts_but_no_speed(tmp_path: Path) -> None:
    clock = Clock()
    throughput = Throughput(warmup_batches=9, clock=clock)

    train(tmp_path, throughput, clock)

    summary = throughput.summary()
    assert (summary["tokens"], summary["tokens_per_second"], summary["measured_seconds"]) == (60, None, 0)
    assert throughput.live() is None


def test_figures_of_an_interrupted_run_are_those_up_to_there(tmp_path: Path) -> None:
    clock = Clock()
    throughput = Throughput(warmup_batches=1, clock=clock)

    class Fail(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        train(tmp_path, throughput, clock, callbacks=[Fail()])
    clock.now += 1000

    assert throughput.summary()["measured_seconds"] == 2
    assert throughput.summary()["tokens_per_second"] == (14 + 6) / 2


class WaitingBatches(Batches):
    """Says how long it was waited for: a quarter of a second a batch, and 100 seconds for the one after a pause."""

    def __init__(self, number: int, clock: Clock, slow: int | None = None) -> None:
        super().__init__(number)
        self.clock = clock
        self.slow = slow
        self.seconds_waited = 0.0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, batch in enumerate(super().__iter__()):
            seconds = 100 if index == self.slow else 0.25
            self.clock.now += seconds
            self.seconds_waited += seconds
            yield batch


def test_waiting_for_data_is_a_share_of_the_measured_time(tmp_path: Path) -> None:
    clock = Clock()
    throughput = Throughput(warmup_batches=2, window=2, clock=clock)
    live: list[Any] = []

    class Look(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            live.append(throughput.live())

    trainer = tiny_trainer(tmp_path, callbacks=[throughput, Time(clock), Look()], val_check_interval=4)
    trainer.fit(TinyModule(), WaitingBatches(6, clock, slow=4), Batches(1))

    # batches 3 and 4 with loading, 5 (whose loading follows a validation) without, 6 with it
    summary = throughput.summary()
    assert summary["measured_seconds"] == 1.25 + 1.25 + 1 + 1.25
    assert summary["data_wait_share"] == 0.75 / 4.75
    assert live[-1]["data_wait_share"] == 0.25 / 2.25
    assert live[-1]["padding_share"] == 1 - (14 + 6) / (20 + 6)


def test_steps_are_timed_from_end_to_end_whatever_their_number_of_batches(tmp_path: Path) -> None:
    clock = Clock()
    throughput = Throughput(warmup_batches=2, clock=clock)

    class Slow(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            clock.now += 10 if batch_idx == 20 else 0

    callbacks = [throughput, Time(clock), Slow()]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks, accumulate_grad_batches=2, val_check_interval=7)
    trainer.fit(TinyModule(), Batches(41), Batches(1))

    # 21 steps: the first is warm-up, the last has one batch, one takes 10 seconds longer
    times = [2.0] * 18 + [12.0] + [1.0]
    assert throughput.summary()["step_seconds"] == {
        f"p{share}": pytest.approx(float(np.percentile(times, share))) for share in (50, 90, 99)
    }


class Save(Callback):
    """Writes the summary of the rank that it is on."""

    def __init__(self, folder: Path, throughput: Throughput) -> None:
        self.folder = folder
        self.throughput = throughput

    def on_train_end(self, trainer: Any, module: Any) -> None:
        torch.save(self.throughput.summary(), self.folder / f"{trainer.global_rank}.pt")


def test_two_ranks_are_summed(tmp_path: Path) -> None:
    clock = Clock()
    throughput = Throughput(warmup_batches=1, clock=clock)

    train(
        tmp_path,
        throughput,
        clock,
        callbacks=[Save(tmp_path, throughput)],
        devices=2,
        limit_val_batches=0,
        strategy="ddp_fork",
        use_distributed_sampler=False,
    )

    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second
    assert (first["tokens"], first["measured_seconds"]) == (2 * 60, 5)
    assert first["tokens_per_second"] == 2 * 50 / 5


def test_peak_memory_is_that_of_the_process_on_the_cpu() -> None:
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(64 * 1024 * 1024)  # 256 MiB
    after = peak_memory(torch.device("cpu"))

    assert list(before) == ["process_resident"]
    assert block.numel() * 4 <= after["process_resident"] < 64 * 2**30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_is_that_of_the_tensors_on_a_gpu() -> None:
    torch.cuda.reset_peak_memory_stats()
    block = torch.ones(1024, device="cuda")

    assert peak_memory(block.device)["cuda_allocated"] >= 4096
