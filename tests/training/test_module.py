import copy

import pytest
import torch
from lightning.pytorch import Trainer
from peft import LoraConfig, PromptTuningConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.task import Sizes
from lit_hf.tasks import TextClassification
from lit_hf.training.module import LitModule
from lit_hf.training.optimizers import Rates, Schedule

TEXTS = ["good film", "bad plot and very dull", "great", "not good", "poor"]
LABELS = [1, 0, 1, 0, 0]


def batches(task, sizes, filler=False, step=False):
    """Batches as our loader makes them; the last may be a filler."""
    encoded = task.encode({"text": TEXTS, "label": LABELS})
    rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    made, start = [], 0
    for size in sizes:
        made.append(
            {
                **task.collator()(rows[start : start + size]),
                "sizes": Sizes(size, 0, 0, size, sum(sizes) if step else size),
            }
        )
        start += size
    if filler:
        made.append({**made[0], "sizes": Sizes(0, 0, 0, 0, 0)})
    return torch.utils.data.DataLoader(made, batch_size=None)


@pytest.fixture
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


def trainer(**settings):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def validated(task, folder, sizes, filler=False):
    torch.manual_seed(0)
    module = LitModule(task, str(folder))
    return trainer().validate(module, batches(task, sizes, filler), verbose=False)[0]


def test_the_validation_loss_is_the_mean_over_rows_whatever_the_batches(task, tiny_text_model):
    whole = validated(task, tiny_text_model, [5])
    assert validated(task, tiny_text_model, [2, 2, 1]) == pytest.approx(whole, abs=1e-6)
    assert whole["val/accuracy"] * 5 == pytest.approx(round(whole["val/accuracy"] * 5))


def test_a_filler_batch_counts_nowhere(task, tiny_text_model):
    assert validated(task, tiny_text_model, [2, 3], filler=True) == validated(task, tiny_text_model, [2, 3])


def test_training_lowers_the_loss_in_training_mode(task, tiny_text_model):
    module = LitModule(task, str(tiny_text_model), optimizer=lambda p: torch.optim.AdamW(p, lr=0.02))
    modes = []
    module.training_step, step = lambda *a: (modes.append(module.model.training), step(*a))[1], module.training_step
    before = validated(task, tiny_text_model, [5])["val/loss"]
    run = trainer(max_epochs=10)
    run.fit(module, batches(task, [3, 2]), batches(task, [5]))
    assert run.callback_metrics["val/loss"].item() < before / 2
    assert modes == [True] * 20


def test_the_learning_rate_is_that_of_the_step(task, tiny_text_model):
    module = LitModule(task, str(tiny_text_model), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    run = trainer(max_steps=3)
    run.fit(module, batches(task, [2, 3]))
    # linear, warm-up of a tenth of three steps is one step: 0, then 0.1, then half of it
    assert run.callback_metrics["train/lr"].item() == pytest.approx(0.05)


def test_labels_travel_in_the_checkpoint(task, tiny_text_model, tmp_path):
    module = LitModule(task, str(tiny_text_model))
    run = trainer()
    run.validate(module, batches(task, [5]), verbose=False)
    run.save_checkpoint(tmp_path / "a.ckpt")
    other = TextClassification()
    LitModule(other, str(tiny_text_model)).on_load_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert other.labels == ["bad", "good"]


def test_problems_of_all_parts_are_found_before_weights_load(task, tiny_text_model):
    task.tokenizer.model_max_length = 65
    module = LitModule(task, str(tiny_text_model))
    module.schedule.warmup = -1
    assert [problem.where for problem in module.check()] == ["model.schedule.warmup", "data.max_length"]
    module.schedule.warmup = 0.1
    task.tokenizer.model_max_length = 64
    module = LitModule(task, str(tiny_text_model), adapter=LoraConfig(target_modules=["absent"]))
    assert [problem.where for problem in module.check()] == ["model.adapter.init_args.target_modules"]
    assert module.model is None


def test_an_adapter_that_changes_the_base_is_no_reference(task, tiny_text_model):
    module = LitModule(task, str(tiny_text_model), adapter=LoraConfig(target_modules=["query"], bias="all"))
    assert module.check() == []
    task.reference_columns = ("reference",)
    assert [problem.where for problem in module.check()] == ["model.adapter.init_args.bias"]


def test_virtual_tokens_take_their_part_of_the_positions(task, tiny_text_model):
    assert LitModule(task, str(tiny_text_model)).longest_input == 64
    adapter = PromptTuningConfig(num_virtual_tokens=10)
    assert LitModule(task, str(tiny_text_model), adapter=adapter).longest_input == 54


def test_the_skeleton_counts_like_the_model(task, tiny_text_model):
    module = LitModule(task, str(tiny_text_model), adapter=LoraConfig(r=2))
    skeleton = module.skeleton()
    module.configure_model()
    assert sum(p.numel() for p in skeleton.parameters()) == sum(p.numel() for p in module.model.parameters())


@pytest.mark.parametrize("sizes", [[5], [2, 2, 1], [1, 4], [3, 1, 1]])
def test_accumulated_batches_of_unequal_sizes_give_the_gradients_of_one(task, tiny_text_model, sizes):
    def gradients(sizes):
        torch.manual_seed(0)
        module = LitModule(task, str(tiny_text_model), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        kept = {}
        module.on_before_zero_grad = lambda _: kept.update(
            {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}
        )
        trainer(max_epochs=1, accumulate_grad_batches=len(sizes)).fit(module, batches(task, sizes, step=True))
        return kept or {name: p.grad for name, p in module.model.named_parameters()}

    expected = gradients([5])
    assert expected
    for name, gradient in gradients(sizes).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def fitted(task, folder, steps=4, **settings):
    torch.manual_seed(0)
    module = LitModule(task, str(folder), **{"optimizer": lambda p: torch.optim.SGD(p, lr=0.1), **settings})
    assert module.check() == []
    run = trainer(max_steps=steps)
    run.fit(module, batches(task, [3, 2]))
    return module, run


def test_frozen_weights_stay_as_they_are_and_the_others_train(task, tiny_text_model):
    module, _ = fitted(task, tiny_text_model, freeze=["embeddings", r"layer\.0\."])
    before = AutoModelForSequenceClassification.from_pretrained(tiny_text_model).state_dict()
    after = module.model.state_dict()
    same = {name for name in after if torch.equal(after[name], before[name])}
    assert {name for name in same if "embeddings" in name or "layer.0." in name} == same
    assert len(same) == sum("embeddings" in name or "layer.0." in name for name in after)
    skeleton = LitModule(task, str(tiny_text_model), freeze=["embeddings", r"layer\.0\."]).skeleton()
    assert {name for name, p in skeleton.named_parameters() if not p.requires_grad} == {
        name for name, p in module.model.named_parameters() if not p.requires_grad
    }


def test_layers_train_at_their_own_rates_and_the_base_rate_is_logged(task, tiny_text_model):
    module, run = fitted(task, tiny_text_model, rates=Rates(layer_decay=0.5), schedule=Schedule("constant", warmup=0))
    rates = {id(p): group["lr"] for group in run.optimizers[0].param_groups for p in group["params"]}
    assert rates[id(module.model.bert.embeddings.word_embeddings.weight)] == pytest.approx(0.1 / 8)
    assert rates[id(module.model.classifier.weight)] == pytest.approx(0.1)
    assert run.callback_metrics["train/lr"].item() == pytest.approx(0.1)


@pytest.mark.parametrize("adapter", [None, LoraConfig(target_modules=["query"], init_lora_weights=False)])
def test_checkpointing_trains_to_the_same_weights(task, tiny_text_model, adapter):
    plain, _ = fitted(task, tiny_text_model, adapter=copy.deepcopy(adapter))
    saving, _ = fitted(task, tiny_text_model, adapter=copy.deepcopy(adapter), gradient_checkpointing=True)
    expected = plain.model.state_dict()
    for name, value in saving.model.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("chosen", [None, True, False])
def test_an_optimizer_is_fused_unless_the_config_says_otherwise_and_its_gradients_are_clipped(
    task, tiny_text_model, precision, chosen
):
    torch.manual_seed(0)
    module = LitModule(task, str(tiny_text_model), optimizer=lambda p: torch.optim.SGD(p, lr=1.0, fused=chosen))
    module.schedule = Schedule("constant", warmup=0)
    module.configure_model()
    before = [p.detach().clone() for p in module.model.parameters()]
    run = trainer(max_steps=1, precision=precision, gradient_clip_val=1e-3)
    run.fit(module, batches(task, [5]))
    assert run.optimizers[0].defaults["fused"] is (chosen is not False)
    change = torch.nn.utils.get_total_norm([a - b for a, b in zip(module.model.parameters(), before, strict=True)])
    assert change.item() == pytest.approx(1e-3, rel=1e-2)


def test_switches_that_do_not_fit_are_found_together_before_weights_load(task, tiny_text_model):
    module = LitModule(task, str(tiny_text_model), freeze=["absent"], rates=Rates(lora_b=16), liger=True)
    found = {problem.where for problem in module.check()}
    assert {"model.freeze[0]", "model.rates.lora_b"} <= found
    assert "model.liger" in found or torch.cuda.is_available()
    assert module.model is None
    (problem,) = LitModule(task, str(tiny_text_model), attention="flash").check()
    assert problem.where == "model.attention"


def test_weights_that_train_in_16_bits_are_told(task, tiny_text_model, caplog):
    fitted(task, tiny_text_model, steps=1, dtype="bfloat16")
    assert "weights train in bfloat16, and so does the optimizer's state" in caplog.text
    caplog.clear()
    fitted(task, tiny_text_model, steps=1)
    assert "bfloat16" not in caplog.text
