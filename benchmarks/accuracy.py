"""Fine-tune a checkpoint on local JSON lines with several seeds and print the mean of the best validation metric.

Example:
    python benchmarks/accuracy.py sst2 --data DATA --checkpoint FOLDER --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

DATASETS: dict[str, dict[str, Any]] = {
    "sst2": {"task": {"text": "sentence"}, "validation": "validation.jsonl"},
    "ag_news": {"task": {"text": ["title", "description"]}, "validation": "test.jsonl"},
    "klue_nli": {"task": {"text": ["premise", "hypothesis"]}, "validation": "validation.jsonl"},
    "klue_sts": {
        "task": {"text": ["sentence1", "sentence2"], "label": "score", "kind": "regression"},
        "validation": "validation.jsonl",
    },
}
"""Text classification data by folder name: the task's settings and the file to validate on."""


def config_of(name: str, data: Path, checkpoint: str, output: Path) -> Path:
    """Write the config of a dataset: one epoch, batches of 32, learning rate 1e-4, 20 warm-up steps, bfloat16."""
    settings = DATASETS[name]
    config = {
        "task": {"class_path": "TextClassification", "init_args": settings["task"]},
        "model": {
            "checkpoint": checkpoint,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4, "weight_decay": 0.0}},
            "schedule": {"name": "linear", "warmup": 20},
        },
        "data": {
            "source": {
                "train": str(data / name / "train.jsonl"),
                "validation": str(data / name / settings["validation"]),
            },
            "batch_size": 32,
        },
        "output_dir": str(output),
        "trainer": {"max_epochs": 1, "precision": "bf16-mixed", "accelerator": "cpu"},
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{name}.json"
    path.write_text(json.dumps(config, indent=2))
    return path


def main() -> None:
    """Train with each seed, in a process of its own, and print one JSON line per run and their mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets, <name>/<split>.jsonl")
    parser.add_argument("--checkpoint", required=True, help="pretrained model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy"))
    options = parser.parse_args()
    config = config_of(options.dataset, options.data, options.checkpoint, options.output)
    values = []
    for seed in options.seeds:
        name = f"{options.dataset}-{seed}"
        command = [
            sys.executable,
            "-m",
            "lit_hf",
            "fit",
            "-c",
            str(config),
            "--name",
            name,
            "--seed_everything",
            str(seed),
        ]
        subprocess.run(command, check=True)
        record = json.loads((options.output / name / "run.json").read_text())
        best = record["best"]
        values.append(best["value"])
        print(json.dumps({"run": name, **best, "seconds": record["seconds"]}), flush=True)
    print(
        f"{options.dataset}: mean of the best validation metric over {len(values)} seeds: {statistics.mean(values):.4f}"
    )


if __name__ == "__main__":
    main()
