import torch

from lit_hf.training.callbacks.patience import StopOnPatience


def test_the_count_goes_on_and_the_patience_is_the_config_s():
    before = StopOnPatience("val/loss", patience=1)
    before.wait_count, before.best_score = 1, torch.tensor(0.5)
    now = StopOnPatience("val/loss", patience=3)
    now.load_state_dict(before.state_dict())
    assert (now.patience, now.wait_count, float(now.best_score)) == (3, 1, 0.5)
