"""A run that is killed, anywhere, and started again by the same command ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path

import datasets
import pytest
import yaml
from transformers import AutoModel, AutoTokenizer

from lit_hf.checkpoints import found
from lit_hf.training.callbacks.exact_resume import ExactResume
from tests.conversations import save_chat_model
from tests.killing import Moment, digest, run

pytestmark = pytest.mark.slow

LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}}
NF4 = {"class_path": "transformers.BitsAndBytesConfig", "init_args": {"load_in_4bit": True}}
ADAM = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
ALONE = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1, "max_epochs": 2}


SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def write_rows(folder: Path) -> None:
    words = random.Random(0)
    nouns, moods = ("film", "plot", "movie"), {"good": ("great", "good", "fine"), "bad": ("bad", "poor", "dull")}
    for split, count in {"train": 42, "more": 30, "validation": 12}.items():
        rows = []
        for _ in range(count):
            label = words.choice(list(moods))
            text = f"the {words.choice(nouns)} was {words.choice(moods[label])}" + " indeed" * words.randint(0, 5)
            rows.append({"text": text, "label": label, "prompt": text, "completion": label * words.randint(1, 4)})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    contrary = [{**row, "label": {"good": "bad", "bad": "good"}[row["label"]]} for row in rows]
    (folder / "contrary.jsonl").write_text("\n".join(map(json.dumps, contrary)))


def config(scenario: str, encoder: str, decoder: str) -> dict:
    """Return a scenario's config. Among them they have all that a resume must bring back."""
    classify = {"class_path": "TextClassification", "init_args": {"text": "text", "label": "label"}}
    source = {"train": "train.jsonl", "validation": "validation.jsonl"}
    scenarios = {
        # dropout, batches of like length, accumulation, checkpoints between validations, early stopping
        "accumulated": {
            "task": classify,
            "model": {"checkpoint": encoder},
            "data": {"source": source, "batch_size": 4},
            "trainer": {"accumulate_grad_batches": 2},
            "patience": 3,
            "checkpoint_every": 2,
        },
        # masks drawn in two worker processes, sources mixed by weights, shuffled, validated within an epoch
        "mixed": {
            "task": {"class_path": "MaskedLM", "init_args": {"text": "text"}},
            "model": {"checkpoint": encoder},
            "data": {
                "source": [{**source, "weight": 2.0}, {"train": "more.jsonl", "validation_share": 0, "weight": 1.0}],
                "mixing": "interleave",
                "batch_size": 4,
                "group_by_length": False,
                "num_workers": 2,
            },
            "trainer": {"val_check_interval": 5},
            "checkpoint_every": 3,
        },
        # documents packed into rows, an adapter whose checkpoints leave the base out
        "packed": {
            "task": {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}},
            "model": {"checkpoint": decoder, "adapter": LORA},
            "data": {"source": source, "packing": True, "batch_tokens": 128},
            "checkpoint_every": 1,
        },
        # from scratch, with a tokenizer of its own; nothing is in the cache when it is killed
        "scratch": {
            "task": classify,
            "model": {"config": {"model_type": "bert", **SHAPE}},
            "data": {"source": source, "batch_size": 8, "tokenizer": {"train": {"vocab_size": 300}}},
            "checkpoint_every": 2,
        },
        # an adapter on weights of 4 bits
        "quantized": {
            "task": classify,
            "model": {"checkpoint": encoder, "adapter": LORA, "quantization": NF4},
            "data": {"source": source, "batch_size": 8},
            "checkpoint_every": 2,
        },
        # two ranks that hold half of the weights and of the optimizer's state each, or all of it
        **{
            name: {
                "task": classify,
                "model": {"checkpoint": encoder},
                "data": {"source": source, "batch_size": 2},
                "trainer": {"accumulate_grad_batches": 2, "devices": 2, "strategy": strategy},
                "checkpoint_every": 2,
            }
            for name, strategy in (("sharded", "fsdp2"), ("ddp", "ddp"))
        },
        # what it learns is wrong by the validation: it is stopped long before its last epoch
        "stopped": {
            "task": classify,
            "model": {"checkpoint": encoder},
            "data": {"source": {**source, "validation": "contrary.jsonl"}, "batch_size": 4},
            "trainer": {"max_epochs": 9},
            "patience": 2,
            "checkpoint_every": 2,
        },
    }
    chosen = scenarios[scenario]
    chosen["model"]["optimizer"] = ADAM
    chosen["trainer"] = ALONE | chosen.get("trainer", {})
    return chosen


RANKS = {"sharded": 2, "ddp": 2}
"""Scenarios of more than one process; each in its turn is killed first."""


@pytest.fixture(scope="module")
def models(tiny_text_model, tmp_path_factory):
    """An encoder with dropout, and a decoder."""
    folder = tmp_path_factory.mktemp("models")
    encoder = AutoModel.from_pretrained(tiny_text_model, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    encoder.save_pretrained(folder / "encoder")
    AutoTokenizer.from_pretrained(tiny_text_model).save_pretrained(folder / "encoder")
    return str(folder / "encoder"), str(save_chat_model(folder / "decoder"))


@pytest.fixture(scope="module")
def whole(models, tmp_path_factory):
    """By scenario: its folder, what an uninterrupted run left, and how many calls of each phase each rank made."""
    endings = {}

    def get(scenario: str):
        if scenario not in endings:
            folder = tmp_path_factory.mktemp(scenario)
            write_rows(folder)
            (folder / "run.yaml").write_text(yaml.safe_dump(config(scenario, *models)))
            sabotage = use_cache_in(folder / "whole-cache") if scenario == "scratch" else None
            endings[scenario] = (folder, *fit(folder, "whole", sabotage=sabotage, ranks=RANKS.get(scenario, 1)))
        return endings[scenario]

    return get


def fit(folder: Path, name: str, kill_at: Moment | None = None, sabotage=None, ranks: int = 1):
    """Run the scenario in its folder; return the digest of the run (None if it was killed) and its calls."""
    os.chdir(folder)
    ending = run(["fit", "-c", "run.yaml", "--name", name], kill_at, sabotage, ranks)
    if kill_at is not None and ending.code == -signal.SIGKILL:
        return None, []
    assert ending.code == 0, (folder / "log.txt").read_text()[-3000:]
    return digest(folder / "runs" / name), ending.calls


def use_cache_in(folder: Path):
    """Return what has a process find nothing in the cache."""
    return partial(_use_cache, folder)


def _use_cache(folder: Path) -> None:
    datasets.config.HF_DATASETS_CACHE = folder


KILLS = {"accumulated": 8, "mixed": 6, "packed": 6, "quantized": 4, "sharded": 3, "ddp": 4}
PHASES = ("step", "validation", "save", "export")
CASES = [(scenario, number) for scenario, kills in KILLS.items() for number in range(kills)]


@pytest.fixture(autouse=True)
def folder_of_before():
    before = Path.cwd()
    yield
    os.chdir(before)


@pytest.mark.parametrize(("scenario", "number"), CASES)
def test_a_killed_run_ends_as_if_it_had_not_been(whole, scenario, number):
    folder, expected, calls = whole(scenario)
    phase = PHASES[number % len(PHASES)]
    ranks = RANKS.get(scenario, 1)
    rank = (number + 1) % ranks
    moment = Moment(phase, random.Random(f"{scenario}-{number}").randint(1, calls[rank][phase]), rank)
    name = f"killed-{number}"
    killed, _ = fit(folder, name, kill_at=moment, ranks=ranks)
    assert killed is None, f"{moment} was not reached"
    resumed, _ = fit(folder, name, ranks=ranks)
    assert resumed == expected, moment
    shutil.rmtree(folder / "runs" / name)


@pytest.mark.parametrize(("phase", "number"), [("data", 0), ("data", 1), ("data", 2), ("log", 0), ("log", 1)])
def test_a_run_that_is_killed_while_it_prepares_or_logs_ends_as_if_it_had_not_been(whole, phase, number):
    """Rows are read, a tokenizer is trained, the cache is written; and `metrics.csv`, `run.json`, `config.yaml` are."""
    folder, expected, calls = whole("scratch")
    name = f"killed-{phase}-{number}"
    cache = use_cache_in(folder / f"{name}-cache")
    moment = Moment(phase, random.Random(name).randint(1, calls[0][phase]))
    killed, _ = fit(folder, name, kill_at=moment, sabotage=cache)
    assert killed is None, f"{moment} was not reached"
    resumed, _ = fit(folder, name, sabotage=cache)
    assert resumed == expected, moment


@pytest.mark.parametrize(("phase", "share"), [("step", 0.85), ("save", 0.99), ("export", 0.3)])
def test_a_run_that_is_stopped_early_stops_at_the_same_step(whole, phase, share):
    """It is killed after a validation that was not better, while the last checkpoint is written, and after the stop."""
    folder, expected, calls = whole("stopped")
    _, steps, epochs, *_ = json.loads(expected["results"])
    assert epochs == 3  # of nine: the first is the best one, the next two are not better
    name = f"killed-{phase}"
    killed, _ = fit(folder, name, kill_at=Moment(phase, int(share * calls[0][phase])))
    assert killed is None
    newest, *_ = found(folder / "runs" / name / "checkpoints")
    assert int(newest.name.removeprefix("step-")) >= steps * 2 // 3
    resumed, _ = fit(folder, name)
    assert resumed == expected


def forget_random_numbers():
    ExactResume.on_train_batch_start = lambda *_: None


def forget_position():
    ExactResume.on_train_start = lambda *_: None


@pytest.mark.parametrize("sabotage", [forget_random_numbers, forget_position])
def test_the_harness_finds_what_is_not_exact(whole, sabotage):
    folder, _, calls = whole("accumulated")
    expected, _ = fit(folder, f"whole-{sabotage.__name__}", sabotage=sabotage)
    fit(folder, sabotage.__name__, kill_at=Moment("step", calls[0]["step"] * 17 // 20), sabotage=sabotage)
    resumed, _ = fit(folder, sabotage.__name__, sabotage=sabotage)
    assert resumed["weights"] != expected["weights"]
