"""One measure of quality for all: loss and accuracy on the validation rows of what a peer has saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.peers.models import collator, load_model
from benchmarks.peers.pairs import log_probabilities, preference_loss
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import AUTO_CLASSES, Workload

BATCH_SIZE = 8


def quality(workload: Workload, prepared: Prepared, folder: Path) -> dict[str, float | None]:
    """Return the mean `loss` over the targets of the validation rows, in float32, and their `accuracy`.

    Accuracy is the share of targets that the model gives most; None where the loss alone says how good a model is.

    Args:
        workload: Says what a target is: a row, a labelled token, or a pair.
        prepared: Has the rows, and the reference where preferences are learnt.
        folder: The trained model, or its adapter.
    """
    import torch
    import transformers

    auto_class = getattr(transformers, AUTO_CLASSES[workload.kind])
    device = "cuda" if workload.on_gpu else "cpu"
    model = auto_class.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    reference = load_model(workload, prepared).eval() if workload.kind == "preference" else None
    rows, collate = prepared.encoded("validation").to_list(), collator(workload, prepared)
    total, right, targets = 0.0, 0, 0
    for start in range(0, len(rows), BATCH_SIZE):
        batch = {name: value.to(device) for name, value in collate(rows[start : start + BATCH_SIZE]).items()}
        with torch.inference_mode():
            if reference is not None:
                loss, hits, count = _preference(model, reference, batch, workload.task["init_args"]["beta"])
            else:
                loss, hits, count = _summed(model, batch, workload.kind)
        total, right, targets = total + loss, right + hits, targets + count
    is_classification = workload.kind in ("text_classification", "token_classification")
    return {"loss": total / targets, "accuracy": right / targets if is_classification else None}


def _summed(model: Any, batch: dict[str, Any], kind: str) -> tuple[float, int, int]:
    """Return the summed loss of a batch, how many of its targets are right, and how many there are."""
    from torch.nn.functional import cross_entropy

    labels, logits = batch["labels"], model(**batch).logits
    if kind == "causal":
        labels, logits = labels[:, 1:], logits[:, :-1]
    loss = cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), reduction="sum")
    return loss.item(), int((logits.argmax(-1) == labels).sum()), int((labels != -100).sum())


def _preference(model: Any, reference: Any, batch: dict[str, Any], beta: float) -> tuple[float, int, int]:
    loss = preference_loss(log_probabilities(model, batch), log_probabilities(reference, batch), beta)
    pairs = len(batch["input_ids"]) // 2
    return loss.item() * pairs, 0, pairs
