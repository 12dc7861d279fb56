from types import SimpleNamespace

import pytest

from lit_hf.training.callbacks.time_limit import StopOnTime
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 4), (3, 6), (5, 5)])
def test_it_ends_a_run_at_the_end_of_an_optimizer_step(tmp_path, monkeypatch, accumulate, batches):
    module = TinyModule()
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: module.seen))
    trainer = tiny_trainer(
        tmp_path, callbacks=[StopOnTime("00:00:00:04")], accumulate_grad_batches=accumulate, max_epochs=9
    )
    trainer.fit(module, Batches(20))
    assert (module.seen, trainer.global_step) == (batches, batches // accumulate)


def test_the_last_step_of_an_epoch_may_have_fewer_batches(tmp_path, monkeypatch):
    module = TinyModule()
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: module.seen))
    trainer = tiny_trainer(tmp_path, callbacks=[StopOnTime("00:00:00:04")], accumulate_grad_batches=4, max_epochs=9)
    trainer.fit(module, Batches(5))
    assert (module.seen, trainer.global_step) == (4, 1)
