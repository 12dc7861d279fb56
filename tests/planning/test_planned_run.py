import inspect
from dataclasses import asdict

from lightning.pytorch import Trainer

from lit_hf.planning.planned_run import TrainerSettings


def test_the_settings_have_lightning_s_names_and_defaults():
    of_lightning = inspect.signature(Trainer.__init__).parameters
    defaults = {name: of_lightning[name].default for name in asdict(TrainerSettings())}
    # None leaves it to Lightning, where these are the same
    assert {**defaults, "accumulate_grad_batches": 1} == {**asdict(TrainerSettings()), "limit_train_batches": None}


def test_what_is_learnt_is_what_the_module_learns(planned):
    run = planned()
    assert run.task is run.module.task is run.data.task
