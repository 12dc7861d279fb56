"""Small classifiers with weights that matter, for tests of what is done with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from lit_hf.tasks import TextClassification

LABELS = ["bad", "good", "so-so"]
TEXTS = [
    "the film is good",
    "a very bad movie and the plot is dull, not good, not fine, not of any interest at all, and poor acting",
    "great",
    "it was fine",
    "i was of a fine plot and the acting is poor, very poor",
    "x",
]
RECORD: dict[str, Any] = {
    "class_path": "lit_hf.tasks.text_classification.TextClassification",
    "init_args": {"text": "text"},
}


def classifier(base: Path, seed: int = 2) -> tuple[PreTrainedModel, TextClassification]:
    """Return a classifier on a headless base, and its task; other seeds give other answers."""
    model, task = _load(base)
    return _stir(model, seed), task


def adapted(base: Path, adapter: PeftConfig | None = None, seed: int = 2) -> tuple[PreTrainedModel, TextClassification]:
    """Return a classifier with an adapter (LoRA if not given) that makes a difference, and its task."""
    model, task = _load(base)
    adapter = adapter or LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    return _stir(get_peft_model(model, adapter), seed), task


def _load(base: Path) -> tuple[PreTrainedModel, TextClassification]:
    task = TextClassification(text="text")
    task.bind(AutoTokenizer.from_pretrained(base), LABELS)
    return AutoModelForSequenceClassification.from_pretrained(base, **task.model_kwargs()), task


def _stir(model: Any, seed: int) -> Any:
    """Change all weights that train, as training would, but at random."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()
