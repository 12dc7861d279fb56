import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lit_hf.training.callbacks.last_validation import ValidateAtLastStep


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.validated_at = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def validation_step(self, batch, batch_idx):
        self.validated_at.append(self.trainer.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def steps_validated(max_steps, batches, accumulate=1):
    model = Line()
    trainer = Trainer(
        max_steps=max_steps,
        callbacks=[ValidateAtLastStep()],
        accumulate_grad_batches=accumulate,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(model, DataLoader(torch.ones(batches, 1)), DataLoader(torch.ones(1, 1)))
    return model.validated_at, trainer.global_step


def test_the_last_step_is_validated_in_the_middle_of_an_epoch():
    assert steps_validated(max_steps=3, batches=10) == ([3], 3)


def test_it_is_validated_once_at_the_end_of_an_epoch():
    assert steps_validated(max_steps=10, batches=5) == ([5, 10], 10)


def test_it_is_validated_with_accumulation():
    assert steps_validated(max_steps=3, batches=10, accumulate=2) == ([3], 3)
