"""Pairs of a preferred and a rejected completion, by hand: their batches, log-probabilities and loss."""

from __future__ import annotations

from typing import Any


def collate_pairs(rows: list[dict[str, Any]], pad: int) -> dict[str, Any]:
    """Pad pairs on the right: the chosen sequences, then the rejected ones.

    Returns:
        `input_ids`, `attention_mask` and `completion` (whether a token is of the completion), of shape [2 * pairs,
        tokens].
    """
    import torch

    sequences = [row["input_ids"][: row["chosen_length"]] for row in rows]
    sequences += [row["input_ids"][row["chosen_length"] :] for row in rows]
    lengths = torch.tensor([len(sequence) for sequence in sequences])[:, None]
    prompts = torch.tensor([row["prompt_length"] for row in rows]).repeat(2)[:, None]
    positions = torch.arange(int(lengths.max()))[None]
    ids = torch.tensor([sequence + [pad] * (positions.shape[1] - len(sequence)) for sequence in sequences])
    real = positions < lengths
    return {"input_ids": ids, "attention_mask": real.long(), "completion": real & (positions >= prompts)}


def log_probabilities(model: Any, batch: Any) -> Any:
    """Return the log-probability of each completion, of shape [2 * pairs]; right padding needs no mask."""
    import torch
    from torch.nn.functional import cross_entropy

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(input_ids=batch["input_ids"], use_cache=False).last_hidden_state[:, :-1]
    labels, counted = batch["input_ids"][:, 1:], batch["completion"][:, 1:]
    losses = cross_entropy(base.lm_head(hidden[counted]).float(), labels[counted], reduction="none")
    return -torch.zeros(len(labels), device=losses.device).index_add(0, counted.nonzero()[:, 0], losses)


def preference_loss(policy: Any, reference: Any, beta: float) -> Any:
    """Return the mean loss of direct preference optimization, of log-probabilities as `log_probabilities` gives."""
    from torch.nn.functional import logsigmoid

    chosen, rejected = (beta * (policy - reference)).chunk(2)
    return -logsigmoid(chosen - rejected).mean()
