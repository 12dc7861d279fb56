"""What some adapters add to the loss of every optimizer step."""

from __future__ import annotations

from typing import Any

import torch
from peft import AdaLoraModel, LoraModel, PeftModel
from torch import Tensor


def regularization(model: Any) -> Tensor | None:
    """Return what the adapter adds to a step's loss, a scalar; None where it adds nothing.

    AdaLoRA keeps its factors orthogonal (Zhang et al. 2023, equation 4); KaSA and MonteCLoRA have terms of their own,
    which PEFT leaves to the training loop.
    """
    tuner: Any = model.base_model if isinstance(model, PeftModel) else None
    if isinstance(tuner, AdaLoraModel):
        return _orthogonality(tuner)
    config = tuner.peft_config[tuner.active_adapters[0]] if isinstance(tuner, LoraModel) else None
    if getattr(config, "kasa_config", None) is not None:
        return tuner._get_kasa_loss()
    if getattr(config, "monteclora_config", None) is not None:
        return tuner._get_monteclora_loss()
    return None


def _orthogonality(tuner: AdaLoraModel) -> Tensor:
    """Return the mean distance of the factors' Gram matrices from the identity, by the config's weight."""
    name = tuner.trainable_adapter_name
    distances = []
    for key, factor in tuner.model.named_parameters():
        if name in key and ("lora_A" in key or "lora_B" in key):
            gram = factor @ factor.T if "lora_A" in key else factor.T @ factor
            distances.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)))
    config: Any = tuner.peft_config[name]
    return config.orth_reg_weight * torch.stack(distances).mean()


def leave_loss_alone(model: PeftModel) -> None:
    """Have the model return its own loss only.

    AdaLoRA adds its regularization in `forward`: it would be missing where a task computes the loss itself, be there
    twice where a task calls the model twice, and make validation losses incomparable. The training step adds it.
    """
    tuner: Any = model.base_model
    if tuner.__class__ is AdaLoraModel:
        vars(tuner)["forward"] = tuner.model.forward
