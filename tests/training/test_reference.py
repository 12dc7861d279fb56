import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lit_hf.tasks import Preference
from lit_hf.training.module import LitModule
from lit_hf.training.reference import reference_key, run_reference
from tests import preferences

ROWS = {
    "prompt": ["say it to me", "is it night"],
    "chosen": ["yes good day", "yes"],
    "rejected": ["no", "no bad poor night"],
}


@pytest.fixture
def task():
    task = Preference()
    task.bind(preferences.tokenizer())
    return task


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        **preferences.MODEL, vocab_size=len(preferences.tokenizer()), attention_dropout=0.5, pad_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def trainer(precision="32-true"):
    return Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)


def test_columns_are_the_task_s_without_dropout_and_the_model_is_left_to_train(task, checkpoint):
    module = LitModule(task, checkpoint=str(checkpoint))
    encoded = task.encode(ROWS)
    rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    columns = run_reference(module, trainer(), [task.collator()([row]) for row in rows])
    assert module.model.training
    plain = AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = task.reference(plain, task.collator()(rows))
    assert set(columns) == set(expected)
    for name, values in expected.items():
        assert columns[name] == pytest.approx(values.tolist(), abs=1e-4)


def test_the_key_changes_with_weights_precision_and_the_seed_of_random_weights(task, checkpoint):
    module = LitModule(task, checkpoint=str(checkpoint))
    key = reference_key(module, trainer(), 1)
    assert reference_key(LitModule(task, checkpoint=str(checkpoint)), trainer(), 2) == key
    assert reference_key(module, trainer("bf16-mixed"), 1) != key
    (checkpoint / "model.safetensors").touch()
    moved = checkpoint.rename(checkpoint.with_name("moved"))
    module = LitModule(task, checkpoint=str(moved))
    assert reference_key(module, trainer(), 1) == key
    weights = load_file(moved / "model.safetensors")
    weights["lm_head.weight"] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert reference_key(module, trainer(), 1) != key
    scratch = LitModule(task, config=preferences.MODEL)
    assert reference_key(scratch, trainer(), 1) != reference_key(scratch, trainer(), 2)
