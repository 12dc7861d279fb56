import torch

from lit_hf.run import RunFolder
from lit_hf.training.callbacks.checkpoints import BestAndLast
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


def steps_kept(tmp_path, val_losses, **settings):
    """Return the steps of the best and the last checkpoint after that many validations; an epoch is two steps."""
    run = RunFolder(tmp_path)
    callbacks = [BestAndLast(run, "val/loss", "min")]
    epochs = settings.pop("max_epochs", len(val_losses))
    trainer = tiny_trainer(tmp_path, max_epochs=epochs, enable_checkpointing=True, callbacks=callbacks, **settings)
    trainer.fit(TinyModule(val_losses=val_losses), Batches(2), Batches(1))
    return [torch.load(path, weights_only=True)["global_step"] for path in (run.best, run.last)]


def test_the_last_checkpoint_is_that_of_the_last_validation_whether_it_was_the_best_or_not(tmp_path):
    assert steps_kept(tmp_path, [0.5, 0.4, 0.6, 0.7]) == [4, 8]


def test_it_is_so_where_an_epoch_is_validated_more_than_once(tmp_path):
    assert steps_kept(tmp_path, [0.5, 0.6, 0.4, 0.7], max_epochs=2, val_check_interval=0.5) == [3, 4]
