import copy
from itertools import product

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from peft import AdaLoraConfig, AdamssConfig, LoraConfig, get_peft_model
from torch import nn

from lit_hf.errors import InputError
from lit_hf.training.callbacks.budget import STATE, RankBudget, moves_ranks
from tests.training.callbacks.tiny import Batches, tiny_trainer

SETTINGS = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2, "deltaT": 1, "total_step": 2**31}


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = {"model_type": "tiny"}
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, inputs):
        return self.second(self.first(inputs).tanh())


class Adapted(LightningModule):
    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        adapter = AdaLoraConfig(target_modules=["first", "second"], **{**SETTINGS, **settings})
        self.model = get_peft_model(Layers(), adapter)

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.model(batch["inputs"]), batch["targets"])

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.05)

    @property
    def ranks(self):
        return sum(int((value != 0).sum()) for name, value in self.named_parameters() if "lora_E" in name)


def budget_of(module):
    return RankBudget(module.model.peft_config["default"])


def fit(folder, module, budget, batches=6, **settings):
    trainer = tiny_trainer(folder, callbacks=[budget], **{"max_epochs": 2, **settings})
    trainer.fit(module, Batches(batches))
    return trainer


def test_adapters_that_move_ranks_are_known():
    assert moves_ranks(AdaLoraConfig(total_step=1))
    assert moves_ranks(AdamssConfig(use_asa=True))
    assert not moves_ranks(AdamssConfig())
    assert not moves_ranks(LoraConfig())
    assert not moves_ranks(None)


def test_the_adapter_is_told_the_trainer_s_steps_and_shrinks_to_its_target(tmp_path):
    module = Adapted()
    fit(tmp_path, module, budget_of(module))
    assert module.model.peft_config["default"].total_step == 12
    assert module.ranks == 2 * 2


@pytest.mark.parametrize(("accumulate", "calls"), [(1, 12), (2, 6), (3, 4)])
def test_ranks_are_shared_out_once_an_optimizer_step(tmp_path, accumulate, calls):
    module, steps = Adapted(tinit=0, tfinal=1), []
    tuner = module.model.base_model
    share_out = tuner.update_and_allocate
    tuner.update_and_allocate = lambda step: (steps.append(step), share_out(step))
    fit(tmp_path, module, budget_of(module), accumulate_grad_batches=accumulate)
    assert steps == list(range(1, calls + 1))


def test_a_schedule_without_room_or_end_is_told(tmp_path):
    module = Adapted(tinit=10)
    with pytest.raises(InputError, match="10 steps before ranks move and 2 after leave none of the run's 12"):
        fit(tmp_path, module, budget_of(module))
    with pytest.raises(InputError, match="the training has no end"):
        fit(tmp_path, module, budget_of(module), max_epochs=-1)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_any_schedule_that_is_not_refused_trains_and_ends_at_the_target(tmp_path, steps, every):
    refused = set()
    for tinit, tfinal in product(range(4), range(4)):
        module = Adapted(tinit=tinit, tfinal=tfinal, deltaT=every)
        try:
            fit(tmp_path, module, budget_of(module), steps, max_epochs=1)
        except InputError:
            refused.add((tinit, tfinal))
        else:
            assert module.ranks == 2 * 2, (tinit, tfinal)
    assert refused == {(tinit, tfinal) for tinit, tfinal in product(range(4), range(4)) if tinit + tfinal >= steps}


class Keep(Callback):
    """Keeps what the budget would put into a checkpoint after some steps."""

    def __init__(self, budget, steps):
        self.budget, self.steps, self.state = budget, steps, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.steps:
            self.state = copy.deepcopy(self.budget.state_dict())


def test_the_importance_of_weights_comes_back_from_a_checkpoint(tmp_path):
    module = Adapted()
    budget = budget_of(module)
    keep = Keep(budget, steps=6)
    tiny_trainer(tmp_path, callbacks=[budget, keep], max_epochs=2).fit(module, Batches(6))
    kept = keep.state["importance"]
    assert set(kept) == set(STATE)
    assert all(any(value.any() for value in values.values()) for values in kept.values())
    module = Adapted()
    again = budget_of(module)
    again.load_state_dict(keep.state)
    begun = Begun()
    tiny_trainer(tmp_path, callbacks=[again, begun], max_epochs=2).fit(module, Batches(6))
    assert begun.importance.keys() == kept.keys()
    for name, values in kept.items():
        assert all(torch.equal(value, begun.importance[name][key]) for key, value in values.items())


class Begun(Callback):
    """Keeps the importances that the adapter has when its training begins."""

    def on_train_start(self, trainer, pl_module):
        allocator = pl_module.model.base_model.rankallocator
        self.importance = {name: copy.deepcopy(getattr(allocator, name)) for name in STATE}
