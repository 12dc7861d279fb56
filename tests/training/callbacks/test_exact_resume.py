from collections.abc import Iterator

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lit_hf.training.callbacks.exact_resume import ExactResume
from tests.training.callbacks.tiny import Batches, TinyModule, batch, tiny_trainer


class Unsized:
    """Batches of two epochs, all different, that can be started anywhere; notes which ones were made."""

    def __init__(self, number=6):
        self.number = number
        self.start = 0
        self.made = []
        self.epoch = 0
        self.sampler = self.batch_sampler = self

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict]:
        start, self.start = self.start, 0
        for index in range(start, self.number):
            self.made.append((self.epoch, index))
            yield batch(100 * self.epoch + index)


class Seekable(Unsized):
    """The same, and it says how many they are."""

    def __len__(self):
        return self.number


class Noisy(TinyModule):
    """Its loss has dropout in it."""

    def _loss(self, batch):
        outputs = torch.nn.functional.dropout(self.layer(batch["inputs"]), 0.5, training=self.training)
        return torch.nn.functional.mse_loss(outputs, batch["targets"])


class Killed(Exception):
    pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise Killed


def fit(folder, *, resume=None, kill_at=None, seed=42, exact=True, kind=Seekable, **settings):
    """Return the weights after two epochs, and the batches that were made."""
    torch.manual_seed(0)
    module, loader = Noisy(), kind()
    callbacks = [
        ModelCheckpoint(folder, filename="at", every_n_train_steps=1, save_top_k=1, enable_version_counter=False)
    ]
    callbacks += [ExactResume(seed)] * exact + [StopAt(kill_at)] * (kill_at is not None)
    trainer = tiny_trainer(folder, max_epochs=2, callbacks=callbacks, enable_checkpointing=True, **settings)
    try:
        trainer.fit(module, loader, Batches(1), ckpt_path=resume)
    except Killed:
        assert kill_at is not None
    return torch.cat([value.flatten() for value in module.state_dict().values()]), loader.made


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_resumed_run_ends_with_the_same_weights_and_makes_no_batch_twice(tmp_path, killed_at, accumulate):
    settings = {"accumulate_grad_batches": accumulate}
    whole, all_batches = fit(tmp_path / "whole", **settings)
    fit(tmp_path / "part", kill_at=killed_at, **settings)
    resumed, made = fit(tmp_path / "part", resume=tmp_path / "part" / "at.ckpt", **settings)
    assert torch.equal(resumed, whole)
    assert made == all_batches[killed_at * accumulate :]


def test_an_epoch_s_end_is_no_place_in_an_epoch(tmp_path):
    whole, all_batches = fit(tmp_path / "whole")
    fit(tmp_path / "part", kill_at=6)
    resumed, made = fit(tmp_path / "part", resume=tmp_path / "part" / "at.ckpt")
    assert torch.equal(resumed, whole)
    assert made == all_batches[6:]


@pytest.mark.parametrize("killed_at", [1, 3, 5, 7, 8])
def test_a_loader_without_a_length_is_gone_on_with_alike(tmp_path, killed_at):
    settings = {"kind": Unsized, "max_steps": 12}
    whole, all_batches = fit(tmp_path / "whole", **settings)
    fit(tmp_path / "part", kill_at=killed_at, **settings)
    resumed, made = fit(tmp_path / "part", resume=tmp_path / "part" / "at.ckpt", **settings)
    assert torch.equal(resumed, whole)
    # Lightning reads the first one before the position is known
    assert made[1:] == all_batches[killed_at:]


def test_without_it_the_weights_differ(tmp_path):
    whole, _ = fit(tmp_path / "whole", exact=False)
    fit(tmp_path / "part", kill_at=3, exact=False)
    resumed, _ = fit(tmp_path / "part", resume=tmp_path / "part" / "at.ckpt", exact=False)
    assert not torch.equal(resumed, whole)


def test_another_seed_draws_other_numbers(tmp_path):
    assert not torch.equal(fit(tmp_path / "one", seed=1)[0], fit(tmp_path / "other", seed=2)[0])


@pytest.mark.parametrize(("share", "steps"), [(0.5, [2, 4]), (0.1, [1, 2, 3, 4, 5])])
def test_a_share_of_an_epoch_ends_with_an_optimizer_step(tmp_path, share, steps):
    validated = []

    class Note(Callback):
        def on_validation_end(self, trainer, pl_module):
            assert trainer.fit_loop.epoch_loop.batch_progress.current.ready % 2 == 0
            validated.append(trainer.global_step)

    trainer = tiny_trainer(
        tmp_path, callbacks=[ExactResume(1), Note()], accumulate_grad_batches=2, val_check_interval=share
    )
    trainer.fit(Noisy(), Seekable(10), Batches(1))
    assert validated == steps
