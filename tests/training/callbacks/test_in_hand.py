import pytest

from lit_hf.training.callbacks.in_hand import BatchInHand
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


class StopError(Exception):
    pass


class Stopping(TinyModule):
    """Stops in a hook, at a call of it."""

    def __init__(self, hook: str, call: int) -> None:
        super().__init__()
        self.left = call
        original = getattr(self, hook)

        def stop(*args):
            self.left -= 1
            if self.left == 0:
                raise StopError
            return original(*args)

        setattr(self, hook, stop)


@pytest.mark.parametrize(
    ("hook", "call", "now"),
    [
        ("configure_optimizers", 1, "loading the model"),
        ("training_step", 2, "training batch 2 of epoch 1, step 2 (inputs 4 x 4, targets 4 x 1)"),
        ("training_step", 5, "training batch 2 of epoch 2, step 5 (inputs 4 x 4, targets 4 x 1)"),
        ("validation_step", 2, "validation batch 2 (inputs 4 x 4, targets 4 x 1)"),
        ("on_train_epoch_start", 2, "going on after the validation"),
    ],
)
def test_it_knows_the_batch_and_its_shapes(tmp_path, hook, call, now):
    in_hand = BatchInHand()
    with pytest.raises(StopError):
        tiny_trainer(tmp_path, callbacks=[in_hand], max_epochs=2).fit(Stopping(hook, call), Batches(3), Batches(2))
    assert str(in_hand.now) == now
    assert in_hand.evaluates == (hook == "validation_step")


def test_between_batches_it_is_the_next_one_that_is_made(tmp_path):
    class Broken(Batches):
        def __iter__(self):
            yield from Batches(2)
            raise StopError

    in_hand = BatchInHand()
    with pytest.raises(StopError):
        tiny_trainer(tmp_path, callbacks=[in_hand]).fit(TinyModule(), Broken(3))
    assert str(in_hand.now) == "making the batch after training batch 2 of epoch 1"
