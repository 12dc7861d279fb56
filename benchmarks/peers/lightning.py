"""Plain Lightning: a module of a few lines, a `DataLoader` that shuffles and a collator that pads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.measuring import StepClock
from benchmarks.peers.models import collator, load_model, trainable, with_adapter
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import Workload


def train(peer: str, workload: Workload, prepared: Prepared, clock: StepClock, folder: Path) -> None:
    """Train with `lightning.Trainer`."""
    import lightning
    from torch.optim import AdamW
    from torch.utils.data import DataLoader

    class Module(lightning.LightningModule):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.model(**batch).loss
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return AdamW(trainable(self.model), lr=workload.learning_rate, weight_decay=0.0)

    lightning.seed_everything(42, verbose=False)
    model = load_model(workload, prepared)
    clock.count(model)
    model = with_adapter(workload, model).train()  # Lightning keeps the mode that it is given
    trainer = lightning.Trainer(
        max_epochs=1,
        max_steps=workload.steps or -1,
        accelerator="gpu" if workload.on_gpu else "cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=folder.parent,
    )
    rows = prepared.encoded("train")
    loader = DataLoader(rows, batch_size=workload.batch_size, shuffle=True, collate_fn=collator(workload, prepared))
    trainer.fit(Module(model), loader)
    model.save_pretrained(folder)
