from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.multiprocessing import ProcessRaisedException

from lit_hf.errors import TrainingError
from lit_hf.run import RunFolder
from lit_hf.training.callbacks.checkpoints import RunCheckpoints
from lit_hf.training.callbacks.nonfinite import StopOnNonFinite
from lit_hf.training.saving import CheckpointFiles, Writer
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


def spoil_from(first: int, value: float) -> Any:
    return lambda index, loss: loss * value if index >= first else loss


def fit(run: RunFolder, module: TinyModule, callback: Callback | None, **checkpoints: Any) -> None:
    """Train with checkpoints at the end of each epoch, whatever the metrics say, unless told otherwise."""
    best = RunCheckpoints(run, writer := Writer(), checkpoints.pop("monitor", None), "min", **checkpoints)
    callbacks = [best] if callback is None else [callback, best]
    settings = {"enable_checkpointing": True, "max_epochs": 3, "plugins": [CheckpointFiles(writer)]}
    trainer = tiny_trainer(run.path, callbacks=callbacks, **settings)
    trainer.fit(module, Batches(4), Batches(2))


def assert_good(path: Path, step: int) -> None:
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["global_step"] == step
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_at_that_step(run: RunFolder, value: float) -> None:
    module = TinyModule(spoil_from(6, value))

    with pytest.raises(TrainingError) as caught:
        fit(run, module, StopOnNonFinite())

    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert module.seen == 7
    assert message.startswith(f"step 7, epoch 2: the training loss is {value}.")
    assert "model.optimizer.init_args.lr" in message and "trainer.precision" in message
    assert_good(run.checkpoint("best"), 4)
    assert_good(run.checkpoint("last"), 4)


def test_without_it_the_spoilt_weights_would_have_been_saved(run: RunFolder) -> None:
    fit(run, TinyModule(spoil_from(6, math.nan)), None)

    assert not torch.load(run.checkpoint("last"), weights_only=True)["state_dict"]["layer.weight"].isfinite().all()


def test_weights_that_one_step_spoils_are_not_saved(run: RunFolder) -> None:
    # The loss of the last step of the epoch is finite, its gradient is not: only the weights show it.
    def spoil(index: int, loss: Tensor) -> Tensor:
        return (loss - loss.detach()).sqrt() if index == 7 else loss

    with pytest.raises(TrainingError, match="step 8, epoch 2: the weights are no longer finite"):
        fit(run, TinyModule(spoil), StopOnNonFinite())

    assert_good(run.checkpoint("best"), 4)
    assert_good(run.checkpoint("last"), 4)


def test_losses_that_were_not_read_yet_are_read_before_a_checkpoint(run: RunFolder) -> None:
    with pytest.raises(TrainingError, match="step 3, epoch 1: the training loss is nan"):
        fit(run, TinyModule(spoil_from(2, math.nan)), Deferred(), every=1)

    assert_good(run.checkpoint("best"), 2)
    assert_good(run.checkpoint("last"), 2)


def test_losses_that_were_not_read_yet_are_read_before_validation(run: RunFolder) -> None:
    module = TinyModule(spoil_from(2, math.nan), val_losses=[0.5])

    with pytest.raises(TrainingError, match="step 3, epoch 1: the training loss is nan"):
        fit(run, module, Deferred())

    assert module.val_losses == [0.5]
    assert run.checkpoint("last") is None


def test_losses_that_were_not_read_yet_are_read_at_the_end_of_an_epoch(run: RunFolder) -> None:
    trainer = tiny_trainer(run.path, callbacks=[Deferred()])

    with pytest.raises(TrainingError, match="step 4, epoch 1"):
        trainer.fit(TinyModule(spoil_from(3, math.inf)), Batches(4))


def test_an_accelerator_is_asked_only_every_n_batches(run: RunFolder) -> None:
    module = TinyModule(spoil_from(2, math.nan))
    trainer = tiny_trainer(run.path, callbacks=[Deferred(every_n_batches=4)])

    with pytest.raises(TrainingError, match="step 3, epoch 1: the training loss is nan"):
        trainer.fit(module, Batches(20))

    assert module.seen == 4


def test_a_validation_loss_that_is_not_finite_is_warned_of(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lit_hf"):
        fit(run, TinyModule(val_losses=[0.5, math.nan, 0.4]), StopOnNonFinite(), monitor="val/loss")

    (record,) = [record for record in caplog.records if record.name == "lit_hf"]
    assert record.getMessage().startswith("the validation loss is nan in epoch 2, step 8, although the weights are")
    assert_good(run.checkpoint("best"), 12)


def test_a_good_run_is_left_alone(run: RunFolder) -> None:
    module = TinyModule()

    fit(run, module, StopOnNonFinite())

    assert module.seen == 12
    assert_good(run.checkpoint("last"), 12)


def test_all_ranks_stop_when_one_has_a_bad_loss(run: RunFolder) -> None:
    class OneRank(TinyModule):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
            losses = super().training_step(batch, batch_idx)
            spoilt = math.nan if self.global_rank == 1 and batch_idx == 2 else 1.0
            return {name: loss * spoilt for name, loss in losses.items()}

    class Tell(StopOnNonFinite):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            try:
                super().on_train_batch_end(trainer, pl_module, *args)
            except TrainingError as error:
                (run.path / f"{trainer.global_rank}.txt").write_text(f"{pl_module.seen} {error}")
                trainer.strategy.barrier()
                raise

    settings = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    with pytest.raises(ProcessRaisedException, match="TrainingError"):
        tiny_trainer(run.path, callbacks=[Tell(run)], **settings).fit(OneRank(), Batches(6))

    assert (run.path / "0.txt").read_text().startswith("3 step 3, epoch 1: the training loss of another process")
    assert (run.path / "1.txt").read_text().startswith("3 step 3, epoch 1: the training loss is nan")


class Deferred(StopOnNonFinite):
    """Reads the losses on the CPU as seldom as it would on an accelerator."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        class Accelerated:
            device = torch.device("meta")

        super().on_train_batch_end(trainer, Accelerated(), outputs, batch, batch_idx)  # type: ignore[arg-type]
