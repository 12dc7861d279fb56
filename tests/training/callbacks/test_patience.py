import math

import pytest
import torch

from lit_hf.training.callbacks.patience import StopOnPatience
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


def fit(tmp_path, val_losses, stopping, max_epochs=9):
    trainer = tiny_trainer(tmp_path, callbacks=[stopping], max_epochs=max_epochs)
    trainer.fit(TinyModule(val_losses=val_losses), Batches(2), Batches(1))
    return trainer.global_step // 2


def test_the_count_goes_on_and_the_patience_is_the_config_s():
    before = StopOnPatience("val/loss", 1, "min")
    before.wait_count, before.best_score = 1, torch.tensor(0.5)
    now = StopOnPatience("val/loss", 3, "min")
    now.load_state_dict(before.state_dict())
    assert (now.patience, now.wait_count, float(now.best_score)) == (3, 1, 0.5)


def test_a_stop_is_told_with_its_reason(tmp_path, caplog):
    with caplog.at_level("INFO", "lit_hf"):
        assert fit(tmp_path, [0.5, 0.4, 0.6, 0.45, 0.1], StopOnPatience("val/loss", 2, "min")) == 4
    assert "patience: loss was not better than 0.4 in 2 validations" in caplog.messages


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_not_finite_is_no_better_one_and_no_end(tmp_path, mode):
    losses = [math.nan, 0.5, math.nan, 0.5, 0.5]
    stopping = StopOnPatience("val/loss", 3, mode)
    assert fit(tmp_path, losses, stopping) == 5
    assert float(stopping.best_score) == 0.5


def test_a_run_that_had_come_to_its_end_does_not_train_on(tmp_path):
    ended, goes_on = StopOnPatience("val/loss", 2, "min"), StopOnPatience("val/loss", 3, "min")
    for stopping in (ended, goes_on):
        stopping.wait_count, stopping.best_score = 2, torch.tensor(0.0)
    assert fit(tmp_path, [0.5], ended) == 0
    assert fit(tmp_path, [0.5], goes_on) == 1
