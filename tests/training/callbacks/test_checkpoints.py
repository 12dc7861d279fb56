import os
import shutil
import threading

import pytest
import torch
from lightning.pytorch import Callback

import lit_hf.training.callbacks.checkpoints
from lit_hf.checkpoints import STATE, Best, found, newest_valid, read_manifest, verify
from lit_hf.errors import TrainingError
from lit_hf.run import RunFolder
from lit_hf.training.callbacks.checkpoints import RunCheckpoints
from lit_hf.training.callbacks.last_validation import ValidateAtLastStep
from lit_hf.training.saving import CheckpointFiles, Writer
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


class Steps(RunCheckpoints):
    """Notes at which steps something was published, and which one was the best then."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.published = []

    def _publish(self, folder, manifest):
        super()._publish(folder, manifest)
        self.published.append((manifest.step, int(manifest.best.name[5:])))


def fit(
    tmp_path,
    val_losses=(),
    monitor="val/loss",
    mode="min",
    every=None,
    batches=2,
    resume=None,
    writer=None,
    callbacks=(),
    **settings,
):
    run, writer = RunFolder(tmp_path), writer or Writer()
    checkpoints = Steps(run, writer, monitor, mode, every)
    trainer = tiny_trainer(
        tmp_path,
        callbacks=[ValidateAtLastStep(), checkpoints, *callbacks],
        enable_checkpointing=True,
        plugins=[CheckpointFiles(writer)],
        **{"max_epochs": len(val_losses) or 1} | settings,
    )
    trainer.fit(
        TinyModule(val_losses=val_losses), Batches(batches), Batches(1) if val_losses else None, ckpt_path=resume
    )
    return checkpoints


def test_the_newest_and_the_best_are_kept(tmp_path):
    checkpoints = fit(tmp_path, [0.5, 0.4, 0.6, 0.7])
    assert checkpoints.published == [(2, 2), (4, 4), (6, 4), (8, 4)]
    assert [path.name for path in found(tmp_path / "checkpoints")] == ["step-00000008", "step-00000004"]
    newest = newest_valid(tmp_path / "checkpoints").folder
    assert verify(newest).best == Best("step-00000004", pytest.approx(0.4))
    assert torch.load(newest / STATE, weights_only=True)["global_step"] == 8


def test_more_may_be_better(tmp_path):
    checkpoints = fit(tmp_path, [0.5, 0.4, 0.6], monitor="val/accuracy", mode="max")
    assert checkpoints.published[-1] == (6, 4)


def test_without_a_metric_the_newest_is_the_best(tmp_path):
    assert fit(tmp_path, monitor=None, max_epochs=2).published == [(2, 2), (4, 4)]
    assert [path.name for path in found(tmp_path / "checkpoints")] == ["step-00000004"]


def test_between_validations_it_is_saved_every_so_many_optimizer_steps(tmp_path):
    checkpoints = fit(tmp_path, [0.5, 0.6], every=2, batches=10, accumulate_grad_batches=2)
    # an epoch has five steps; the last one is saved after its validation, once; until then the newest is the best
    assert checkpoints.published == [(2, 2), (4, 4), (5, 5), (6, 5), (8, 5), (10, 5)]


def test_before_a_validation_nothing_is_saved(tmp_path):
    checkpoints = fit(tmp_path, [0.5, 0.6], every=1, batches=4, max_epochs=1, val_check_interval=2)
    assert [step for step, _ in checkpoints.published] == [1, 2, 3, 4]
    assert checkpoints.published[1] == (2, 2)
    stopped = fit(tmp_path / "stopped", [0.5], every=3, batches=9, max_epochs=1, max_steps=6)
    assert stopped.published == [(3, 3), (6, 6)]


class AskToStop(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.step


def test_a_stop_within_an_epoch_is_saved_where_it_comes(tmp_path):
    assert fit(tmp_path / "one", monitor=None, batches=8, callbacks=[AskToStop(3)]).published == [(3, 3)]
    waited = fit(tmp_path / "two", monitor=None, batches=8, callbacks=[AskToStop(3)], min_steps=6, min_epochs=0)
    assert waited.published == [(6, 6)]


class Waiting(Writer):
    """Writes the first checkpoint only once a step was reached, as a slow disk would."""

    def __init__(self):
        super().__init__()
        self.reached = threading.Event()

    def submit(self, work):
        super().submit(lambda: (self.reached.wait(5), work()))


class Reach(Callback):
    def __init__(self, event, step):
        self.event, self.step = event, step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:  # which it would never be if the training waited
            self.event.set()


def test_training_goes_on_while_a_slow_disk_writes_and_what_is_due_meanwhile_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lit_hf.training.callbacks.checkpoints, "PATIENCE", 0.01)
    writer = Waiting()
    with caplog.at_level("WARNING", "lit_hf"):
        checkpoints = fit(
            tmp_path, every=1, batches=8, writer=writer, monitor=None, callbacks=[Reach(writer.reached, 5)]
        )
    steps = [step for step, _ in checkpoints.published]
    assert steps[0] == 1 and not {2, 3, 4, 5} & set(steps)
    assert steps[-1] == 8
    assert caplog.text.count("checkpoints are left out") == 1


def test_what_was_best_is_known_after_a_resume(tmp_path):
    fit(tmp_path, [0.5, 0.6])
    state = newest_valid(tmp_path / "checkpoints").folder / STATE
    resumed = fit(tmp_path, [0.7], resume=state, max_epochs=3)
    assert resumed.published == [(6, 2)]
    assert [path.name for path in found(tmp_path / "checkpoints")] == ["step-00000006", "step-00000002"]


def test_a_run_that_is_moved_finds_its_best_again(tmp_path):
    fit(tmp_path / "before", [0.5, 0.6])
    shutil.move(tmp_path / "before", tmp_path / "after")
    state = newest_valid(tmp_path / "after" / "checkpoints").folder / STATE
    assert fit(tmp_path / "after", [0.7], resume=state, max_epochs=3).best == Best("step-00000002", pytest.approx(0.5))


def test_an_old_checkpoint_that_cannot_be_removed_is_told_and_tried_again(tmp_path, monkeypatch, caplog):
    refused, rmtree = [], shutil.rmtree

    def refuse_once(folder, *arguments, **settings):
        if folder.name == "step-00000002" and not refused:
            refused.append(folder)
            raise OSError(39, "Directory not empty", str(folder))
        rmtree(folder, *arguments, **settings)

    monkeypatch.setattr(shutil, "rmtree", refuse_once)
    with caplog.at_level("WARNING", "lit_hf"):
        checkpoints = fit(tmp_path, [0.5, 0.4, 0.3])
    assert checkpoints.published == [(2, 2), (4, 4), (6, 6)]
    assert "step-00000002 could not be removed: [Errno 39] Directory not empty" in caplog.text
    assert [path.name for path in found(tmp_path / "checkpoints")] == ["step-00000006"]


def test_a_state_that_cannot_be_written_stops_the_training_and_the_older_checkpoint_stays(tmp_path, monkeypatch):
    written, save = [], torch.save

    def fails_later(state, path):
        written.append(path)
        if len(written) > 1:
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", fails_later)
    with pytest.raises(TrainingError, match="No space left on device") as error:
        fit(tmp_path, [0.5, 0.4, 0.3, 0.2])
    assert "goes on from the checkpoint before it" in str(error.value)
    assert len(written) == 2
    assert read_manifest(newest_valid(tmp_path / "checkpoints").folder).step == 2


def test_what_was_logged_is_on_the_disk_before_a_checkpoint_is(tmp_path, monkeypatch):
    (tmp_path / "metrics.csv").write_text("step,epoch\n")
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_ino), fsync(handle)))
    fit(tmp_path, [0.5, 0.4])
    metrics = (tmp_path / "metrics.csv").stat().st_ino
    newest = newest_valid(tmp_path / "checkpoints").folder
    assert synced.count(metrics) == 2
    last = max(index for index, inode in enumerate(synced) if inode == metrics)
    assert last < synced.index((newest / STATE).stat().st_ino)
