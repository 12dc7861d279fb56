from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lit_hf.training.callbacks.spikes import FEWEST, LossSpikes
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


class Level(TinyModule):
    """Its losses are given."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__(lambda index, loss: 0 * loss + losses[index])


def fit(folder: Path, losses: list[float], spikes: LossSpikes, **settings: Any) -> None:
    trainer = tiny_trainer(folder, callbacks=[spikes], **settings)
    trainer.fit(Level(losses), Batches(len(losses)))


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "lit_hf"]


@pytest.fixture(autouse=True)
def warnings_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="lit_hf")


def test_a_loss_far_above_the_median_is_warned_of_and_the_training_goes_on(tmp_path, caplog):
    spikes = LossSpikes(3)

    fit(tmp_path, [1.0] * 30 + [3.1, 2.9, 1.0, 500.0], spikes)

    assert told(caplog) == [
        "step 31, epoch 1, batch 31: the training loss jumped to 3.1, 3.1 times the usual 1 (loss_spike: 3).",
        "step 34, epoch 1, batch 34: the training loss jumped to 500, 500.0 times the usual 1 (loss_spike: 3).",
    ]
    assert spikes.count == 2


def test_the_usual_loss_must_be_known_first_and_goes_with_the_training(tmp_path, caplog):
    early = [1.0] * (FEWEST - 1) + [99.0]
    falling = [100 * 0.97**step for step in range(150)]
    spikes = LossSpikes(3)

    fit(tmp_path, early, spikes)
    fit(tmp_path, [*falling, 100.0], LossSpikes(3))

    assert spikes.count == 0
    assert [line.split(":")[0] for line in told(caplog)] == ["step 151, epoch 1, batch 151"]


def test_losses_that_are_not_finite_do_not_shift_the_usual_one(tmp_path, caplog):
    fit(tmp_path, [1.0] * 20 + [float("nan")] * 5 + [4.0], LossSpikes(3))

    assert [line.split(":")[0] for line in told(caplog)] == ["step 26, epoch 1, batch 26"]


def test_a_resumed_run_knows_the_usual_loss(tmp_path, caplog):
    before, after = LossSpikes(3), LossSpikes(3)
    fit(tmp_path, [1.0] * 25 + [9.0], before)

    after.load_state_dict(before.state_dict())
    fit(tmp_path, [9.0], after)

    assert after.count == 2
    assert len(told(caplog)) == 2


def test_losses_are_read_together_on_an_accelerator(tmp_path, caplog):
    reads = []

    class Deferred(LossSpikes):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            class Accelerated:
                device = torch.device("meta")

            super().on_train_batch_end(trainer, Accelerated(), outputs, batch, batch_idx)

        def _read(self, trainer):
            reads.append(len(self._unread))
            super()._read(trainer)

    fit(tmp_path, [1.0] * 24 + [5.0], Deferred(3, every_n_batches=10))

    assert reads == [10, 10, 5]
    assert [line.split(":")[0] for line in told(caplog)] == ["step 25, epoch 1, batch 25"]


def test_what_counts_is_the_mean_over_the_ranks(tmp_path):
    class OneRank(TinyModule):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
            losses = super().training_step(batch, batch_idx)
            level = 9.0 if self.global_rank == 1 and batch_idx == 24 else 1.0
            return {name: 0 * loss + level for name, loss in losses.items()}

    class Tell(LossSpikes):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            (tmp_path / f"{trainer.global_rank}.txt").write_text(f"{self.count} {max(self._window)}")

    settings = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    tiny_trainer(tmp_path, callbacks=[Tell(3)], **settings).fit(OneRank(), Batches(25))

    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["1 5.0", "1 5.0"]


def test_a_checkpoint_knows_the_losses_that_the_device_was_not_asked_for_yet(tmp_path):
    spikes, saved = LossSpikes(3, every_n_batches=50), []

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 32:
                trainer.save_checkpoint(tmp_path / "at.ckpt")
                saved.append(torch.load(tmp_path / "at.ckpt", weights_only=True)["callbacks"][spikes.state_key])

    trainer = tiny_trainer(tmp_path, callbacks=[spikes, Save()])
    trainer.fit(Level([1.0] * 30 + [9.0, 1.0, 1.0]), Batches(33))

    assert saved[0]["count"] == 1
    assert len(saved[0]["window"]) == 32
