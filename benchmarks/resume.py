"""From the start of a process that resumes a run to the end of its first step: after 10 steps and after 100,000.

Rows that are all there and a stream, lit-hf and the HF Trainer; each resumes from checkpoints that it wrote itself.
`python -m benchmarks.resume train PEER KIND STEPS FOLDER` trains that far, `... resume ... --started TIME` goes on from
there and prints the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STEPS = (10, 100_000)
KINDS = ("rows", "stream")
PEERS = ("hf_trainer",)
LABELS = ["even", "odd"]
LIMIT = 3600.0
"""Seconds that 100,000 steps, or a resume, may take."""

ROWS = STEPS[-1] + 64
"""So that all steps are of one epoch: batches have one row."""

SHAPE = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}


def prepare(folder: Path) -> None:
    """Write rows and a model so small that 100,000 steps take minutes."""
    from transformers import BertConfig, BertForSequenceClassification, set_seed

    from benchmarks.workloads.models import train_tokenizer

    rows = [{"text": f"number {number}", "label": LABELS[number % 2]} for number in range(ROWS)]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer = train_tokenizer((row["text"] for row in rows[:1000]), 300)
    tokenizer.model_max_length = 64
    set_seed(42)
    ids = {label: index for index, label in enumerate(LABELS)}
    config = BertConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        label2id=ids,
        id2label=dict(enumerate(LABELS)),
    )
    BertForSequenceClassification(config).save_pretrained(folder / "checkpoint")
    tokenizer.save_pretrained(folder / "checkpoint")


def lit_hf(kind: str, steps: int, folder: Path, output: Path) -> None:
    """Run `lit-hf fit`: up to that many steps, from what is in `output`."""
    from lit_hf.cli.main import main

    config = {
        "name": "run",
        "task": {"class_path": "TextClassification", "init_args": {"labels": LABELS}},
        "model": {"checkpoint": str(folder / "checkpoint"), "schedule": {"name": "constant", "warmup": 0}},
        "data": {
            "source": {
                "train": str(folder / "train.jsonl"),
                "validation_share": 0,
                "streaming": kind == "stream",
            },
            "batch_size": 1,
        },
        "trainer": {
            "accelerator": "cpu",
            "max_steps": steps,
            "log_every_n_steps": 1000,
            "enable_progress_bar": False,
        },
    }
    (output / "run.json").write_text(json.dumps(config))
    if main(["fit", "-c", str(output / "run.json"), "--output_dir", str(output)]):
        sys.exit("lit-hf failed")


def hf_trainer(kind: str, steps: int, folder: Path, output: Path) -> None:
    """Do the same as a script with the HF Trainer does it."""
    from datasets import load_dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "checkpoint")
    ids = model.config.label2id

    def encode(examples: dict[str, Any]) -> dict[str, Any]:
        return {**tokenizer(examples["text"], truncation=True), "labels": [ids[name] for name in examples["label"]]}

    files = str(folder / "train.jsonl")
    rows = load_dataset("json", data_files=files, split="train", streaming=kind == "stream")
    rows = rows.map(encode, batched=True, remove_columns=["text", "label"])
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=1,
        max_steps=steps,
        lr_scheduler_type="constant",
        save_strategy="steps",
        save_steps=steps,
        logging_steps=1000,
        disable_tqdm=True,
        use_cpu=True,
        report_to=[],
    )
    collate = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=rows, processing_class=tokenizer)
    checkpoints = sorted(output.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=str(checkpoints[-1]) if checkpoints else None)


def measure(
    folder: Path, count: int, env: dict[str, str], peers: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Train what is not there yet, then resume in turn, and yield each resume's seconds.

    Args:
        folder: Where what they start from is, or will be.
        count: How often each resumes.
        env: The environment of every process.
        peers: Only these beside lit-hf; None takes all.
    """
    chosen = [peer for peer in PEERS if peers is None or peer in peers]
    everybody = [f"{peer} {kind}" for kind in KINDS for peer in ("lit_hf", *chosen)]
    if not (folder / "checkpoint").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _run(env, "prepare", "lit_hf", "rows", "0", str(folder))
    for who in everybody:
        for steps in STEPS:
            if not _trained(folder, *who.split(), steps).is_dir():
                _run(env, "train", *who.split(), str(steps), str(folder))
    turns = [(who, steps) for who in everybody for steps in STEPS]
    for number in range(count):
        for who, steps in turns if number % 2 == 0 else reversed(turns):
            peer, kind = who.split()
            words = _run(env, "resume", peer, kind, str(steps), str(folder), "--started", str(time.time())).split()
            yield {
                "workload": "resume",
                "peer": peer,
                "kind": kind,
                "steps_done": steps,
                "round": number,
                "resume_seconds": float(words[-1]),
                "error": None,
            }


def _trained(folder: Path, peer: str, kind: str, steps: int) -> Path:
    return folder / "trained" / f"{peer}-{kind}-{steps}"


def _run(env: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.resume", *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, errors="replace", timeout=LIMIT)
    if done.returncode:
        sys.exit(f"resume cannot be measured ({' '.join(arguments)}):\n{done.stderr[-3000:]}")
    return done.stdout


def _resume(peer: str, kind: str, steps: int, folder: Path, started: float) -> None:
    """Go on from a copy of what was trained; the end of the first step ends the process."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        output = Path(place) / "output"
        shutil.copytree(_trained(folder, peer, kind, steps), output)

        def stepped(*_: Any) -> None:
            print(f"\n{time.time() - started}", flush=True)
            shutil.rmtree(place, ignore_errors=True)
            os._exit(0)

        register_optimizer_step_post_hook(stepped)
        _TRAIN[peer](kind, steps + 5, folder, output)
    sys.exit("no step was made")


def _train(peer: str, kind: str, steps: int, folder: Path) -> None:
    """Train that far; the folder is there once that is done."""
    output = _trained(folder, peer, kind, steps)
    partial = output.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _TRAIN[peer](kind, steps, folder, partial)
    partial.rename(output)


_TRAIN = {"lit_hf": lit_hf, "hf_trainer": hf_trainer}


def main() -> None:
    """Do one thing, in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["prepare", "train", "resume"])
    parser.add_argument("peer", choices=["lit_hf", *PEERS])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("steps", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--started", type=float, default=0.0, help="when the process was started")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.folder)
    elif options.what == "train":
        _train(options.peer, options.kind, options.steps, options.folder)
    else:
        _resume(options.peer, options.kind, options.steps, options.folder, options.started)


if __name__ == "__main__":
    main()
