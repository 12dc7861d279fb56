"""Two processes give the metrics of one."""

import json
import subprocess
import sys

import pytest
import yaml

from lit_hf.run import RunFolder

WORDS = {"good": ["great", "good", "fine", "very good"], "bad": ["bad", "poor", "dull", "very bad"]}


@pytest.fixture
def folder(tmp_path, tiny_text_model):
    rows = [
        {"text": f"the {thing} was {word}" + " indeed" * number, "label": label}
        for number in range(3)
        for thing in ("film", "plot", "movie")
        for label, words in WORDS.items()
        for word in words
    ]
    for split, part in {"train": rows[:-5], "validation": rows[-37:]}.items():
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    config = {
        "task": {"class_path": "TextClassification"},
        "model": {
            "checkpoint": str(tiny_text_model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "source": {"train": "train.jsonl", "validation": "validation.jsonl"},
            "eval_batch_size": 3,
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def fit(folder, name, *options):
    command = [sys.executable, "-m", "lit_hf", "fit", "-c", "tiny.yaml", "--name", name, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "runs" / name), done.stderr


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(folder):
    # the same global batch: 67 rows are four batches of 16 and one of 3
    one, _ = fit(folder, "one", "--data.batch_size", "16", "--trainer.devices", "1")
    two, told = fit(folder, "two", "--data.batch_size", "8", "--trainer.devices", "2")
    first, second = one.read_record(), two.read_record()
    assert second["hardware"]["world_size"] == 2
    assert second["steps"] == first["steps"] == 10
    assert second["metrics"] == pytest.approx(first["metrics"], abs=1e-4)
    assert told.count("model: ") == 1  # one voice for all ranks
