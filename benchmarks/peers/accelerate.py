"""Accelerate: the loop of its documentation, a `DataLoader` that shuffles and a collator that pads."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measuring import StepClock
from benchmarks.peers.models import collator, load_model, trainable, with_adapter
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import Workload


def train(peer: str, workload: Workload, prepared: Prepared, clock: StepClock, folder: Path) -> None:
    """Train with `accelerate.Accelerator`."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from torch.optim import AdamW
    from torch.utils.data import DataLoader

    set_seed(42)
    accelerator = Accelerator(cpu=not workload.on_gpu)
    model = load_model(workload, prepared)
    clock.count(model)
    model = with_adapter(workload, model).train()
    optimizer = AdamW(trainable(model), lr=workload.learning_rate, weight_decay=0.0)
    loader = DataLoader(
        prepared.encoded("train"),
        batch_size=workload.batch_size,
        shuffle=True,
        collate_fn=collator(workload, prepared),
    )
    prepared_model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for step, batch in enumerate(loader):
        if step == workload.steps:
            break
        loss = prepared_model(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared_model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    accelerator.unwrap_model(prepared_model).save_pretrained(folder)
