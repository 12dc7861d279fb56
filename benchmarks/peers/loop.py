"""A loop by hand, as lean as we know: lit-hf's batches, and no arithmetic that the loss does not need."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measuring import StepClock
from benchmarks.peers.models import collator, load_model, trainable, with_adapter
from benchmarks.peers.pairs import log_probabilities, preference_loss
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import Workload


def train(peer: str, workload: Workload, prepared: Prepared, clock: StepClock, folder: Path) -> None:
    """Train on the batches in their order."""
    import torch
    from torch.nn.utils import clip_grad_norm_

    _keep_freed_memory()
    torch.manual_seed(42)
    model = with_adapter(workload, load_model(workload, prepared)).train()
    parameters = trainable(model)
    optimizer = torch.optim.AdamW(parameters, lr=workload.learning_rate, weight_decay=0.0, fused=True)
    loss_of = _loss(workload, model)
    rows, collate = prepared.encoded("train").to_list(), collator(workload, prepared)
    for batch_rows in prepared.batches[: workload.steps]:
        batch = collate([rows[row] for row in batch_rows])
        if workload.on_gpu:
            batch = {name: value.to("cuda", non_blocking=True) for name, value in batch.items()}
        loss_of(batch).backward()
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.save_pretrained(folder)


def _keep_freed_memory() -> None:
    """Set what lit-hf sets: glibc's thresholds for mapping and for trimming."""
    if platform.libc_ver()[0] == "glibc":
        for threshold in (-3, -1):
            ctypes.CDLL(None).mallopt(threshold, 2**31 - 1)


def _loss(workload: Workload, model: Any) -> Callable[[Any], Any]:
    """Return the loss of a batch, by the kind of the workload."""
    if workload.kind == "causal":
        return partial(_causal_loss, model)
    if workload.kind == "preference":
        return partial(_against_base, model, workload.task["init_args"]["beta"])
    return lambda batch: model(**batch).loss


def _causal_loss(model: Any, batch: Any) -> Any:
    """Return the mean loss of the labelled tokens: the head sees them only, and right padding needs no mask."""
    from torch.nn.functional import cross_entropy

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    trained = labels != -100
    return cross_entropy(base.lm_head(hidden[trained]).float(), labels[trained])


def _against_base(model: Any, beta: float, batch: Any) -> Any:
    """Return the loss of pairs; the model without its adapter is the reference."""
    import torch

    policy = log_probabilities(model, batch)
    with torch.no_grad(), model.disable_adapter():
        reference = log_probabilities(model, batch)
    return preference_loss(policy, reference, beta)
