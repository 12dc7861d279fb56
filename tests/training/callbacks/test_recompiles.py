import logging

import pytest
import torch
import torch._dynamo
from torch._dynamo.callback import callback_handler

from lit_hf.training.callbacks.recompiles import WarnOnRecompiles
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, inputs):
        return self.linear(inputs)


@pytest.fixture
def module():
    """A module whose layer is traced again for each number of rows: without code generation, which takes long."""
    torch._dynamo.reset()
    module = TinyModule()
    module.layer = Layer()  # a bare layer of torch would not be traced
    module.layer.compile(backend="eager", dynamic=False)
    return module


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if "torch.compile" in record.getMessage()]


def fit(module, callback, tmp_path, batches, validation=0):
    loaders = [Batches(batches)] + [Batches(validation)] * bool(validation)
    tiny_trainer(tmp_path, callbacks=[callback]).fit(module, *loaders)


def test_recompilations_are_counted_and_told(module, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    callback = WarnOnRecompiles(free=0)
    fit(module, callback, tmp_path, batches=6)  # of 4, 4, 2, 4, 4 and 2 rows: one shape more than the first
    assert callback.recompiles == 1
    (told,) = warnings(caplog)
    assert "compiled 1 times again by step 3" in told
    assert "data.pad_to_multiple_of" in told


def test_a_few_recompilations_are_not_worth_a_word(module, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    callback = WarnOnRecompiles()
    fit(module, callback, tmp_path, batches=6)
    assert callback.recompiles == 1
    assert warnings(caplog) == []


def test_evaluation_compiles_nothing_and_training_goes_on_compiled(module, tmp_path):
    callback = WarnOnRecompiles()
    compiled = []
    start = callback_handler.register_start_callback(lambda _: compiled.append(module.training))
    try:
        fit(module, callback, tmp_path, batches=6, validation=3)
    finally:
        callback_handler.remove_start_callback(start)
    assert compiled == [True, True]


def test_nothing_is_counted_after_the_training(module, tmp_path):
    callback = WarnOnRecompiles()
    fit(module, callback, tmp_path, batches=3)
    module.layer(torch.zeros(7, 4))
    assert callback.recompiles == 1
    assert callback_handler.start_callbacks == []
