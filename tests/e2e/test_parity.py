"""The losses of fifty steps equal the Hugging Face Trainer's on the same batches, in float32 without dropout."""

import json
import shutil

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch import Trainer as LightningTrainer
from peft import LoraConfig
from torch.optim import AdamW
from transformers import AutoModelForSequenceClassification, TrainingArguments
from transformers import Trainer as HFTrainer

from lit_hf.data.datamodule import LitDataModule
from lit_hf.data.sources import Source
from lit_hf.models.adapters import add_adapter
from lit_hf.tasks import TextClassification
from lit_hf.training.module import LitModule
from lit_hf.training.optimizers import Schedule

STEPS, BATCH, WARMUP = 50, 8, 5
RATES = {"full": 2e-4, "lora": 5e-3}

SUBJECTS = ["the film", "this long story", "an old song", "every scene", "her first book"]
VERDICTS = {
    "good": ["is a joy", "moves and delights", "could not be better"],
    "bad": ["bores", "is a mess", "drags on"],
}
PLACES = ["", "from start to end", "in a way that one remembers for a long time", "again"]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "train.jsonl"
    lines = [
        json.dumps({"text": f"{subject} {verdict} {place}".strip(), "label": label})
        for subject in SUBJECTS
        for label, verdicts in VERDICTS.items()
        for verdict in verdicts
        for place in PLACES
    ]
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def checkpoint(minilm, tmp_path):
    """The pretrained MiniLM with its dropout set to zero."""
    folder = tmp_path / "model"
    shutil.copytree(minilm, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def adapter_of(method):
    return LoraConfig(r=4, target_modules=["query", "value"], lora_dropout=0.0) if method == "lora" else None


def ours(task, data, checkpoint, method):
    losses = Losses()
    module = LitModule(
        task,
        checkpoint,
        adapter=adapter_of(method),
        optimizer=lambda parameters: AdamW(parameters, lr=RATES[method], weight_decay=0.01),
        schedule=Schedule("linear", warmup=WARMUP),
    )
    trainer = LightningTrainer(
        accelerator="cpu",
        max_steps=STEPS,
        gradient_clip_val=1.0,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    seed_everything(1)
    trainer.fit(module, datamodule=data)
    return losses.values


class BatchReplay(HFTrainer):
    """Trains on given batches, and keeps each step's loss."""

    def __init__(self, batches, **settings):
        super().__init__(**settings)
        self.batches, self.values = batches, []

    def get_train_dataloader(self):
        return self.batches

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.values.append(loss.item())
        return loss


def theirs(task, data, checkpoint, method, folder):
    batches, loader, epoch = [], data.train_dataloader(), 0
    while len(batches) < STEPS:
        loader.sampler.set_epoch(epoch)
        batches += [{name: value for name, value in batch.items() if name != "sizes"} for batch in loader]
        epoch += 1
    seed_everything(1)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32, **task.model_kwargs())
    if (adapter := adapter_of(method)) is not None:
        model = add_adapter(model, adapter, "SEQ_CLS", ["classifier.weight", "classifier.bias"])
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        learning_rate=RATES[method],
        weight_decay=0.01,
        warmup_steps=WARMUP,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        max_grad_norm=1.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = BatchReplay(batches[:STEPS], model=model, args=arguments)
    trainer.train()
    return trainer.values


@pytest.mark.slow
@pytest.mark.parametrize("method", RATES)
def test_fifty_losses_equal_the_hugging_face_trainer_s(rows, checkpoint, method, tmp_path):
    task = TextClassification()
    data = LitDataModule(task, Source(train=rows, validation_share=0.0), checkpoint=checkpoint, batch_size=BATCH)
    data.prepare("fit")
    expected = theirs(task, data, checkpoint, method, tmp_path)
    losses = ours(task, data, checkpoint, method)
    assert len(losses) == len(expected) == STEPS
    assert losses == pytest.approx(expected, abs=1e-5)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])  # and it learns
