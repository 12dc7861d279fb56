"""A config that trains a tiny classifier in seconds, and its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

WORDS = {"good": ["great", "good", "fine", "very good"], "bad": ["bad", "poor", "dull", "very bad"]}


def write(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    """Write `tiny.yaml`, `train.jsonl` and `validation.jsonl` to a folder, and return the config.

    Args:
        folder: Where to.
        model: The checkpoint.
        changes: Values by dotted key, with `__` for the dot.
    """
    for split, repeat in (("train", 3), ("validation", 1)):
        rows = [
            {"text": f"the {thing} was {word}" + " and" * (number % 4), "label": label}
            for number in range(repeat)
            for thing in ("film", "plot")
            for label, words in WORDS.items()
            for word in words
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config: dict[str, Any] = {
        "name": "tiny",
        "task": {"class_path": "TextClassification"},
        "model": {
            "checkpoint": str(model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {"source": {"train": "train.jsonl", "validation": "validation.jsonl"}, "batch_size": 8},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        block = config
        for name in path:
            block = block.setdefault(name, {})
        block[last] = value
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    return config
