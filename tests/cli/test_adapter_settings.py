from jsonargparse import Namespace

from lit_hf.cli.adapter_settings import UNKNOWN_STEPS, complete


def adapter(**settings):
    return Namespace(class_path="peft.LoraConfig", init_args=Namespace(**settings))


def test_steps_are_the_trainer_s(caplog):
    caplog.set_level("INFO")
    given = adapter(total_step=None, init_r=4)
    complete(given)
    assert given.init_args == Namespace(total_step=UNKNOWN_STEPS, init_r=4)
    assert caplog.messages == []
    given = adapter(total_step=100)
    complete(given)
    assert given.init_args.total_step == UNKNOWN_STEPS
    assert caplog.messages == ["model.adapter.init_args.total_step: 100 is not used; it follows the run's steps"]


def test_settings_of_loftq_stay_only_beside_loftq():
    given = adapter(init_lora_weights="loftq", loftq_config=Namespace(loftq_bits=4))
    complete(given)
    assert given.init_args.loftq_config == Namespace(loftq_bits=4)
    given = adapter(init_lora_weights=True, loftq_config=Namespace(loftq_bits=4))
    complete(given)
    assert "loftq_config" not in given.init_args
    given = adapter(init_lora_weights="eva", loftq_config=None)
    complete(given)
    assert given.init_args.loftq_config is None


def test_without_an_adapter_or_its_settings_there_is_nothing_to_do():
    complete(None)
    bare = Namespace(class_path="peft.LoraConfig")
    complete(bare)
    assert bare == Namespace(class_path="peft.LoraConfig")
