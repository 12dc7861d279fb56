import torch
from lightning.pytorch import callbacks

from lit_hf.training.callbacks.patience import EarlyStopping


def test_the_count_goes_on_and_the_patience_is_the_config_s():
    before = EarlyStopping("val/loss", patience=1)
    before.wait_count, before.best_score = 1, torch.tensor(0.5)
    now = EarlyStopping("val/loss", patience=3)
    now.load_state_dict(before.state_dict())
    assert (now.patience, now.wait_count, float(now.best_score)) == (3, 1, 0.5)


def test_its_state_is_found_under_the_name_of_lightning_s():
    assert EarlyStopping("val/loss").state_key == callbacks.EarlyStopping("val/loss").state_key
