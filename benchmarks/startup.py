"""From the start of the command to the end of the first step, caches warm: lit-hf, and a script with the HF Trainer.

`python -m benchmarks.startup PEER ...` does it once, and prints the seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.interleaving import rounds
from benchmarks.preparing import Prepared

WORKLOAD = "text_classification"
PEERS = ("hf_trainer",)


def lit_hf(prepared: Prepared, output: str) -> None:
    """Run `lit-hf fit`."""
    from lit_hf.cli.main import main

    main(["fit", "-c", str(prepared.config), "--output_dir", output])


def hf_trainer(prepared: Prepared, output: str) -> None:
    """Do the same as a script with the HF Trainer does it: read, tokenize, train."""
    from datasets import load_dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(prepared.checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(prepared.checkpoint)
    ids = model.config.label2id
    files = {split: str(prepared.rows(split)) for split in ("train", "validation")}

    def encode(examples: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer(examples["sentence"], truncation=True), "labels": [ids[name] for name in examples["label"]]}

    rows = load_dataset("json", data_files=files).map(encode, batched=True, remove_columns=["sentence", "label"])
    arguments = TrainingArguments(
        output_dir=output, per_device_train_batch_size=32, num_train_epochs=1, use_cpu=True, report_to=[]
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
    )
    trainer.train()


def measure(prepared: Prepared, count: int, env: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Start lit-hf and the script in turn, once before to warm the caches, and yield each start's seconds."""
    for number, peer in [*((-1, peer) for _, peer in rounds(PEERS, 1)), *rounds(PEERS, count)]:
        started = time.time()
        command = [sys.executable, "-m", "benchmarks.startup", peer, str(prepared.folder), str(started)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=600)
        words = done.stdout.split()
        seconds = float(words[-1]) if done.returncode == 0 and words else None
        if number >= 0:
            error = None if seconds else done.stderr.strip()[-2000:]
            yield {"workload": "start", "peer": peer, "round": number, "start_seconds": seconds, "error": error}


def main() -> None:
    """Start once; the end of the first step ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["lit_hf", *PEERS])
    parser.add_argument("prepared", type=Path)
    parser.add_argument("started", type=float, help="when the process was started")
    options = parser.parse_args()

    from torch.optim.optimizer import register_optimizer_step_post_hook

    def stepped(*_: Any) -> None:
        print(f"\n{time.time() - options.started}", flush=True)
        os._exit(0)

    register_optimizer_step_post_hook(stepped)
    train = lit_hf if options.peer == "lit_hf" else hf_trainer
    with tempfile.TemporaryDirectory(prefix="benchmark-") as output:
        train(Prepared(options.prepared), output)
    sys.exit("no step was made")


if __name__ == "__main__":
    main()
