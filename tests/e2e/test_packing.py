"""Packed training rows: the same loss and gradients as apart, and a run from a config file."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_hf.cli.main import main
from lit_hf.data.datamodule import LitDataModule
from lit_hf.data.sources import Source
from lit_hf.data.tokenization import TokenizerSettings
from lit_hf.models.packed_attention import PACKED
from lit_hf.run import RunFolder
from lit_hf.task import Task
from lit_hf.tasks import CausalLM, Chat, Preference
from tests import preferences
from tests.conversations import save_chat_model


def sentence(words: random.Random, longest: int) -> str:
    return " ".join(words.choices(preferences.WORDS, k=words.randint(1, longest)))


def texts(count: int) -> list[dict[str, Any]]:
    words = random.Random(0)
    columns = {"prompt": 4, "chosen": 9, "rejected": 9, "completion": 9, "text": 50}
    return [{name: sentence(words, longest) for name, longest in columns.items()} for _ in range(count)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    preferences.tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, texts(40))))
    return tmp_path


def model_with(attention: str | None, lora: bool) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**preferences.MODEL, vocab_size=len(preferences.tokenizer()))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    if not lora:
        return model.train()
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    return adapted.train()


def batches(task: Task, reference: bool = False, **settings: Any) -> Iterator[dict[str, Any]]:
    """Return the training batches of an epoch, with made-up log-probabilities of a reference model where asked."""
    source, tokenizer = Source(train="train.jsonl", validation_share=0), TokenizerSettings(checkpoint="tokenizer")
    data = LitDataModule(task, source, tokenizer=tokenizer, batch_size=4, **settings)
    data.prepare("fit")
    if reference:
        rows = data.encoded["train"].add_column("reference_chosen", [-9.0 - row for row in range(40)])
        data.encoded["train"] = rows.add_column("reference_rejected", [-12.0] * 40)
    yield from data.train_dataloader()


def epoch(model: Any, task: Task, **settings: Any) -> tuple[int, float, dict[str, torch.Tensor], list[Any]]:
    """Return the targets of an epoch, its mean loss and the gradients of that, and what the batches held."""
    targets, total, sizes = 0, 0.0, []
    reference = bool(task.reference_columns) and not isinstance(model, peft.PeftModel)
    for batch in batches(task, reference, **settings):
        sizes.append(batch.pop("sizes"))
        loss = task.forward(model, batch).loss * sizes[-1].targets
        loss.backward()
        total += loss.item()
        targets += sizes[-1].targets
    gradients = {name: weight.grad / targets for name, weight in model.named_parameters() if weight.grad is not None}
    return targets, total / targets, gradients, sizes


TASKS = {
    "chat": (lambda: Chat(prompt="prompt", completion="completion"), False),
    "chat_lora": (lambda: Chat(prompt="prompt", completion="completion", train_on="last"), True),
    "causal_lm": (lambda: CausalLM(), False),
    "dpo": (lambda: Preference(), False),
    "dpo_lora": (lambda: Preference(), True),
    "ipo": (lambda: Preference(loss="ipo"), True),
    "orpo": (lambda: Preference(loss="orpo"), False),
    "simpo": (lambda: Preference(loss="simpo"), False),
}


@pytest.mark.parametrize("name", TASKS)
def test_an_epoch_of_packed_rows_has_the_loss_and_gradients_of_the_rows_apart(name: str, folder: Path) -> None:
    make, lora = TASKS[name]
    apart = make()
    apart.keep_documents()

    targets, loss, gradients, sizes = epoch(model_with(PACKED, lora), make(), packing=True, batch_tokens=200)
    expected_targets, expected_loss, expected, expected_sizes = epoch(model_with(None, lora), apart)

    assert targets == expected_targets
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for weight, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[weight], rtol=1e-5, atol=1e-5 * largest)
    assert sum(one.rows for one in sizes) == sum(one.rows for one in expected_sizes)
    assert all(one.tokens == one.padded_tokens <= 200 for one in sizes)
    assert len(sizes) <= 1.1 * sum(one.tokens for one in sizes) / 200 + 1


def test_documents_of_a_language_model_stay_whole_up_to_the_limit(folder: Path) -> None:
    rows = [row["text"].split() for row in texts(40)]
    ids = preferences.tokenizer().convert_tokens_to_ids
    found: list[list[int]] = []
    for batch in batches(CausalLM(), packing=True):
        bounds = batch["cu_seq_lens_q"].tolist()
        found += [batch["input_ids"][0, start:end].tolist() for start, end in pairwise(bounds)]

    documents = [[*ids(row), ids("</s>")] for row in rows]
    blocks = [document[start : start + 32] for document in documents for start in range(0, len(document), 32)]
    assert sorted(found) == sorted(block for block in blocks if len(block) > 1)


def test_without_a_number_of_tokens_a_batch_has_those_of_the_longest_rows(folder: Path) -> None:
    sizes = [batch["sizes"] for batch in batches(CausalLM(), packing=True)]

    assert max(one.tokens for one in sizes) <= 4 * 32
    assert sum(one.tokens for one in sizes) / len(sizes) > 0.9 * 4 * 32


@pytest.fixture
def config(folder: Path) -> dict[str, Any]:
    save_chat_model(folder / "model")
    words = random.Random(1)
    colours = {"red": "A colour.", "blue": "Another colour.", "night": "It is dark. " * 4}
    rows = [{"prompt": f"What is {name}?", "completion": colours[name]} for name in words.choices(list(colours), k=48)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "name": "packed",
        "task": {"class_path": "Chat", "init_args": {"prompt": "prompt", "completion": "completion"}},
        "model": {
            "checkpoint": "model",
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "schedule": {"name": "constant", "warmup": 0},
        },
        "data": {
            "source": {"train": "chats.jsonl", "validation": "chats.jsonl"},
            "packing": True,
            "batch_tokens": 256,
        },
        "trainer": {"max_epochs": 6, "accelerator": "cpu", "log_every_n_steps": 1},
    }


def fit(config: dict[str, Any], *options: str) -> int:
    Path("packed.yaml").write_text(yaml.safe_dump(config))
    return main(["fit", "-c", "packed.yaml", *options])


def losses(name: str = "packed", column: str = "train/loss") -> list[float]:
    with RunFolder(f"runs/{name}").metrics.open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def test_a_run_on_packed_chats_has_no_padding_and_learns(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    assert fit(config) == 0

    told = capsys.readouterr().err
    assert "batches of up to 256 tokens, padding 0.0%" in told
    record = json.loads(Path("runs/packed/run.json").read_text())
    assert record["throughput"]["padding_share"] == 0
    assert losses()[-1] < losses()[0] / 3
    exported = json.loads(Path("runs/packed/export/config.json").read_text())
    assert PACKED not in json.dumps(exported)
    assert main(["predict", "runs/packed", "--text", "What is red?"]) == 0
    assert json.loads(capsys.readouterr().out)["generated_text"] == "A colour."


def test_a_packed_run_goes_on_where_it_ended(config: dict[str, Any]) -> None:
    assert fit(config, "--name", "whole", "--trainer.max_epochs", "4") == 0
    assert fit(config, "--trainer.max_epochs", "2") == 0
    assert fit(config, "--trainer.max_epochs", "4") == 0

    assert losses(column="val/loss")[-1] == pytest.approx(losses("whole", "val/loss")[-1], rel=1e-5)
    assert losses() == pytest.approx(losses("whole"), rel=1e-5)


def test_packed_pairs_are_compared_with_the_reference_of_the_rows(folder: Path) -> None:
    config = {
        "name": "pairs",
        "task": {"class_path": "Preference"},
        "model": {"config": preferences.MODEL},
        "data": {
            "source": preferences.write(folder, preferences.texts(24)),
            "tokenizer": {"checkpoint": "tokenizer"},
            "batch_size": 4,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    packed = {**config, "name": "packed_pairs", "data": {**config["data"], "packing": True, "batch_tokens": 120}}

    assert fit(config) == fit(packed) == 0

    # before the first step model and reference are the same, however their rows are batched
    assert losses("pairs")[0] == pytest.approx(losses("packed_pairs")[0], abs=1e-6) == pytest.approx(0.693147, abs=1e-5)


def test_what_cannot_be_packed_is_refused_at_once(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    config["data"] |= {"group_by_length": False, "pad_to_multiple_of": 8}
    config["task"] = {"class_path": "TextClassification", "init_args": {"text": "prompt", "label": "completion"}}

    assert fit(config) == 2

    told = capsys.readouterr().err
    assert "data.packing: TextClassification has no rows that can be packed." in told
    assert "data.group_by_length: false does not go with data.packing" in told
    assert "data.pad_to_multiple_of: packed rows are not padded" in told


def test_models_and_adapters_that_cannot_read_packed_rows_are_refused_before_they_load(
    config: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    config["model"]["adapter"] = {"class_path": "peft.PromptTuningConfig", "init_args": {"num_virtual_tokens": 4}}
    assert fit(config) == 2
    assert "data.packing: a learnt prompt stands before a row" in capsys.readouterr().err

    config["model"] = {"config": {"model_type": "gemma2", "hidden_size": 32, "num_hidden_layers": 2}}
    config["data"]["tokenizer"] = {"checkpoint": "model"}
    assert fit(config) == 2
    assert "data.packing: a 'gemma2' model's attention has soft caps" in capsys.readouterr().err


def test_a_row_that_no_batch_has_room_for_is_refused(config: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    config["data"]["batch_tokens"] = 20

    assert fit(config) == 2

    assert "data.batch_tokens: the longest training row takes" in capsys.readouterr().err
