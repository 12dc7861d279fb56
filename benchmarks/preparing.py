"""What all peers start from, made once: rows, starting weights, encoded rows, and lit-hf's batches of them."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.workloads.base import Workload

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("input_ids", "token_type_ids", "attention_mask", "labels", "chosen_length", "prompt_length")
"""Encoded columns that peers get; what else lit-hf encodes is for its own metrics."""


class Prepared:
    """The folder of a workload.

    Args:
        folder: Where it is, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.config = folder / "lit_hf.json"
        self._batches = folder / "batches.json"
        self._tokens = folder / "tokens_by_step.json"

    def rows(self, split: str) -> Path:
        """Return the file of a split's rows, JSON lines."""
        return self.folder / f"{split}.jsonl"

    def encoded(self, split: str) -> Dataset:
        """Return a split's encoded rows."""
        from datasets import load_from_disk

        dataset = load_from_disk(str(self.folder / "encoded" / split))
        return dataset.select_columns([name for name in COLUMNS if name in dataset.column_names])

    @property
    def batches(self) -> list[list[int]]:
        """The rows of each batch that lit-hf trains on, in its order."""
        return json.loads(self._batches.read_text())

    @property
    def tokens_by_step(self) -> list[int]:
        """The tokens of each of these batches, without padding."""
        return json.loads(self._tokens.read_text())

    def write_batches(self, batches: list[list[int]], lengths: Sequence[int]) -> None:
        """Write down lit-hf's batches; `lengths` are the tokens of each encoded row."""
        self._batches.write_text(json.dumps(batches))
        self._tokens.write_text(json.dumps([sum(int(lengths[row]) for row in batch) for batch in batches]))


def config_of(workload: Workload, prepared: Prepared) -> dict[str, Any]:
    """Return lit-hf's config of a workload: its defaults, but for what all peers are given alike."""
    optimizer = {"lr": workload.learning_rate, "weight_decay": 0.0}
    model: dict[str, Any] = {
        "checkpoint": str(prepared.checkpoint),
        "dtype": workload.dtype,
        "compile": workload.compile,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
        "schedule": {"name": "constant", "warmup": 0},
    }
    if workload.lora:
        model["adapter"] = {"class_path": "peft.LoraConfig", "init_args": workload.lora}
    if workload.nf4:
        quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": workload.dtype}
        model["quantization"] = {"class_path": "transformers.BitsAndBytesConfig", "init_args": quantization}
    return {
        "task": workload.task,
        "model": model,
        "data": {
            "source": {split: str(prepared.rows(split)) for split in ("train", "validation")},
            "max_length": workload.max_length,
            "batch_size": workload.batch_size,
            **workload.data,
        },
        "seed_everything": 42,
        "trainer": {
            "max_epochs": 1,
            "max_steps": workload.steps or -1,
            # quantized weights have a type of their own
            "precision": "bf16-mixed" if workload.nf4 and workload.precision == "bf16-true" else workload.precision,
            "accelerator": "gpu" if workload.on_gpu else "cpu",
            "devices": workload.ranks,
            "strategy": "ddp" if workload.ranks > 1 else "auto",
            "gradient_clip_val": 1.0,
            # nobody validates while the clock runs, or the memory is watched
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
        },
    }


def prepare(workload: Workload, data: Path, folder: Path, rows: int) -> Prepared:
    """Write everything that the peers of a workload start from, unless it is there.

    Args:
        workload: The work.
        data: Folder of the datasets.
        folder: Where to; it is written anew if the workload's rows have changed.
        rows: Training rows.
    """
    prepared = Prepared(folder)
    splits = workload.read(data, rows, max(workload.validation_rows, 1))
    text = {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in splits[name]) for name in splits}
    changed = any(not prepared.rows(name).is_file() or prepared.rows(name).read_text() != text[name] for name in text)
    if changed:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for split, lines in text.items():
            prepared.rows(split).write_text(lines)
    if changed or not prepared.checkpoint.is_dir():
        workload.checkpoint(prepared.checkpoint, splits)
    prepared.config.write_text(json.dumps(config_of(workload, prepared), indent=2))
    _encode(prepared, workload.batch_size * workload.ranks)
    return prepared


def _encode(prepared: Prepared, batch_size: int) -> None:
    """Encode the rows as lit-hf does it, and write down in which batches, of all ranks together, it trains on them."""
    from lit_hf.cli.trainer import TrainerCLI
    from lit_hf.data.batching import row_lengths

    options = ["--output_dir", str(prepared.folder / "runs"), "--data.batch_size", str(batch_size)]
    cli = TrainerCLI(["-c", str(prepared.config), *options])
    cli.datamodule.prepare("fit")
    for split, encoded in cli.datamodule.encoded.items():
        shutil.rmtree(prepared.folder / "encoded" / split, ignore_errors=True)
        encoded.save_to_disk(str(prepared.folder / "encoded" / split))
    batches = [list(map(int, batch)) for batch in cli.datamodule.train_dataloader().batch_sampler]
    prepared.write_batches(batches, row_lengths(cli.datamodule.encoded["train"]))


def main() -> None:
    """Prepare what the arguments say; in a process of its own, so that the one that measures stays small."""
    from benchmarks.catalog import find

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--folder", type=Path, required=True, help="where to")
    parser.add_argument("--rows", type=int, required=True, help="training rows")
    options = parser.parse_args()
    prepare(find(options.workload), options.data, options.folder, options.rows)


if __name__ == "__main__":
    main()
