"""A forward and a backward pass, with the loss as the model computes it and as we do."""

import torch

from lit_hf.losses.tokens import token_loss


def gradients(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def plain(model, batch, smoothing=0.0, shift=False):
    """Return loss and gradients as the model computes them."""
    model.zero_grad()
    outputs = model(**batch)
    loss = outputs.loss
    if smoothing:
        logits, labels = outputs.logits[:, -batch["labels"].shape[1] :], batch["labels"]
        if shift:
            logits, labels = logits[:, :-1], labels[:, 1:]
        pairs = logits.flatten(0, 1).float(), labels.flatten()
        cross_entropy = torch.nn.functional.cross_entropy
        loss = loss - cross_entropy(*pairs) + cross_entropy(*pairs, label_smoothing=smoothing)
    loss.backward()
    return loss.detach(), gradients(model)


def lean(model, batch, smoothing=0.0, shift=False):
    model.zero_grad()
    loss = token_loss(model, batch, shift=shift, label_smoothing=smoothing).loss
    loss.backward()
    return loss.detach(), gradients(model)
