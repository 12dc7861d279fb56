from __future__ import annotations

import logging
import math
from itertools import pairwise
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
        tiny_trainer(run.path, callbacks=[Tell()], **settings).fit(OneRank(), Batches(6))

    assert (run.path / "0.txt").read_text().startswith("3 step 3, epoch 1: the training loss of another process")
    assert (run.path / "1.txt").read_text().startswith("3 step 3, epoch 1: the training loss is nan")


class Deferred(StopOnNonFinite):
    """Reads the losses on the CPU as seldom as it would on an accelerator."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        class Accelerated:
            device = torch.device("meta")

        super().on_train_batch_end(trainer, Accelerated(), outputs, batch, batch_idx)  # type: ignore[arg-type]


class Recording(TinyModule):
    """Keeps its weights after each batch."""

    def __init__(self, spoil: Any, **settings: Any) -> None:
        super().__init__(spoil, **settings)
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append(self.layer.weight.detach().clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


def spoil_at(*batches: int, by: float = math.nan) -> Any:
    return lambda index, loss: loss * by if index in batches else loss


def of_level(loss: Tensor) -> Tensor:
    """Return the loss itself, with a gradient that is not finite."""
    return loss.detach() + (loss - loss.detach()).sqrt()


@pytest.mark.parametrize("spoil", [spoil_at(2), spoil_at(2, by=math.inf), lambda i, x: of_level(x) if i == 2 else x])
def test_a_bad_step_is_skipped_and_changes_neither_weights_nor_the_optimizer(run, spoil, caplog) -> None:
    module, stop = Recording(spoil), StopOnNonFinite(skip=1)
    trainer = tiny_trainer(run.path, callbacks=[stop])

    with caplog.at_level(logging.WARNING, logger="lit_hf"):
        trainer.fit(module, Batches(4))

    assert torch.equal(module.weights[1], module.weights[2])
    assert not torch.equal(module.weights[2], module.weights[3])
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {3}
    assert trainer.global_step == 4
    assert stop.skipped == 1
    (line,) = [record.getMessage() for record in caplog.records if record.name == "lit_hf"]
    assert line.startswith("step 3, epoch 1: the ")
    assert line.endswith("The step is skipped: 1 of 1 that may be")


def test_more_bad_steps_than_may_be_skipped_end_the_run(run: RunFolder) -> None:
    module = TinyModule(spoil_at(1, 5, 6))

    with pytest.raises(TrainingError) as caught:
        fit(run, module, StopOnNonFinite(skip=2))

    assert str(caught.value).startswith(
        "step 7, epoch 2: the training loss is nan, and 2 such steps were skipped before (skip_nonfinite)."
    )
    assert_good(run.checkpoint("last"), 4)


def test_a_step_of_several_batches_is_skipped_whole(run: RunFolder) -> None:
    module, stop = Recording(spoil_at(2)), StopOnNonFinite(skip=1)

    tiny_trainer(run.path, callbacks=[stop], accumulate_grad_batches=2).fit(module, Batches(6))

    assert stop.skipped == 1
    assert torch.equal(module.weights[1], module.weights[3])
    assert not torch.equal(module.weights[3], module.weights[5])


def test_the_count_goes_with_the_checkpoint(run: RunFolder) -> None:
    before, after = StopOnNonFinite(skip=1), StopOnNonFinite(skip=1)
    fit(run, TinyModule(spoil_at(2)), before)
    kept = torch.load(run.checkpoint("last"), weights_only=True)["callbacks"]

    after.load_state_dict(kept[before.state_key])

    assert after.skipped == 1


def test_a_run_without_bad_losses_is_the_same_whether_steps_may_be_skipped_or_not(run: RunFolder) -> None:
    weights = []
    for skip in (0, 3):
        torch.manual_seed(0)
        module = Recording(lambda _, loss: loss)
        tiny_trainer(run.path, callbacks=[StopOnNonFinite(skip=skip)], gradient_clip_val=1.0).fit(module, Batches(5))
        weights.append(module.weights[-1])

    assert torch.equal(*weights)


def test_all_ranks_skip_the_step_of_which_one_has_a_bad_loss(run: RunFolder) -> None:
    class OneRank(Recording):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
            losses = super().training_step(batch, batch_idx)
            spoilt = math.nan if self.global_rank == 1 and batch_idx == 2 else 1.0
            return {name: loss * spoilt for name, loss in losses.items()}

        def on_train_end(self) -> None:
            kept = [torch.equal(one, other) for one, other in pairwise(self.weights)]
            skipped = sum(one.skipped for one in self.trainer.callbacks if isinstance(one, StopOnNonFinite))
            (run.path / f"{self.global_rank}.txt").write_text(f"{kept} {skipped}")

    settings = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False, "accumulate_grad_batches": 1}
    trainer = tiny_trainer(run.path, callbacks=[StopOnNonFinite(skip=1)], **settings)
    trainer.fit(OneRank(lambda _, loss: loss), Batches(4))

    expected = "[False, True, False] 1"
    assert [(run.path / f"{rank}.txt").read_text() for rank in range(2)] == [expected, expected]
