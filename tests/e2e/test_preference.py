"""Preference optimization and reward models, from a config file to predictions of the export."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from tests import preferences


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    preferences.tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def write_config(folder: Path, task: dict[str, Any], rows: list[dict[str, Any]], **model: Any) -> None:
    config = {
        "name": "tiny",
        "task": task,
        "model": {
            "config": preferences.MODEL,
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            **model,
        },
        "data": {
            "source": preferences.write(folder, rows),
            "tokenizer": {"checkpoint": "tokenizer"},
            "batch_size": 4,
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))


def fit(*options: str) -> int:
    return main(["fit", "-c", "tiny.yaml", *options])


def metrics(name: str = "tiny") -> list[dict[str, str]]:
    with RunFolder(f"runs/{name}").metrics.open() as file:
        return list(csv.DictReader(file))


def column(name: str) -> list[float]:
    return [float(row[name]) for row in metrics() if row[name]]


PREFERENCE = {"class_path": "Preference", "init_args": {"generation": {"max_new_tokens": 5, "do_sample": False}}}
CONVERSATIONS = {"class_path": "Preference", "init_args": {"prompt": None, "loss": "dpo"}}


def test_dpo_of_all_weights_learns_and_is_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(folder, PREFERENCE, preferences.texts(24))
    assert fit() == 0
    assert column("train/loss")[0] == pytest.approx(0.6931, abs=1e-3)  # log 2: nothing differs from the reference yet
    assert column("val/loss")[-1] < 0.5
    assert column("val/accuracy")[-1] == 1.0
    assert column("train/margin")[0] == pytest.approx(0, abs=1e-4) and column("train/margin")[-1] > 0.5

    capsys.readouterr()
    assert main(["validate", "runs/tiny"]) == 0
    assert f"{min(column('val/loss')):.4f}" in capsys.readouterr().out

    assert main(["predict", "runs/tiny", "--text", "say it to me"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    export = RunFolder("runs/tiny").export
    words = AutoTokenizer.from_pretrained(export)
    model = AutoModelForCausalLM.from_pretrained(export)
    prompt = words("say it to me", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=5, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert json.loads(line)["generated_text"] == words.decode(tokens, skip_special_tokens=True)


def test_a_resumed_run_takes_the_untouched_model_s_reference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(folder, PREFERENCE, preferences.texts(24))
    assert fit("--name", "whole") == 0
    assert "computed with the model as it is before training" in capsys.readouterr().err
    (folder / "cache" / "lit_hf" / "precomputed").rename(folder / "gone")
    assert fit("--trainer.max_epochs", "1") == 0
    assert "computed with the model as it is before training" in capsys.readouterr().err
    assert fit() == 0
    told = capsys.readouterr().err
    assert "resuming" in told and "reference_rejected reused from the cache" in told
    files = [
        {file.name: file.read_text() for file in at.glob("*.json")}
        for at in (folder / "gone", folder / "cache" / "lit_hf" / "precomputed")
    ]
    assert files[0] == files[1] and len(files[0]) == 1  # both splits have the same rows


def test_dpo_with_an_adapter_needs_no_computed_reference(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}}
    write_config(folder, CONVERSATIONS, preferences.conversations(24), adapter=adapter)
    assert fit("--merge", "true", "--trainer.max_epochs", "4") == 0
    assert "before training" not in capsys.readouterr().err
    assert column("train/loss")[0] == pytest.approx(0.6931, abs=1e-3)
    assert column("val/loss")[-1] < 0.65
    assert column("val/accuracy")[-1] == 1.0
    assert main(["predict", "runs/tiny", "--text", "say it to me"]) == 0


@pytest.mark.parametrize("loss", ["ipo", "orpo", "simpo"])
def test_the_other_losses_fall(folder: Path, loss: str) -> None:
    write_config(folder, {"class_path": "Preference", "init_args": {"loss": loss}}, preferences.texts(12))
    assert fit("--trainer.max_epochs", "3") == 0
    losses = column("val/loss")
    assert losses[-1] < 0.9 * column("train/loss")[0]


def test_a_reward_model_learns_and_its_export_gives_the_same_scores(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(folder, {"class_path": "RewardModel"}, preferences.texts(24))
    assert fit() == 0
    assert column("val/loss")[-1] < 0.3
    assert column("val/accuracy")[-1] == 1.0
    capsys.readouterr()
    assert main(["predict", "runs/tiny", "--text", "yes good", "--text", "no bad poor"]) == 0
    good, bad = (json.loads(line)["score"] for line in capsys.readouterr().out.splitlines())
    assert good > bad
    export = RunFolder("runs/tiny").export
    words, model = AutoTokenizer.from_pretrained(export), AutoModelForSequenceClassification.from_pretrained(export)
    with torch.inference_mode():
        assert model(**words("yes good", return_tensors="pt")).logits.item() == pytest.approx(good, abs=1e-5)
    classifier = pipeline("text-classification", model=str(export), device="cpu")
    assert classifier("no bad poor")[0]["score"] == pytest.approx(bad, abs=1e-5)


def test_faults_are_told_with_their_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = preferences.texts(6)
    rows[1]["chosen"] = rows[1]["rejected"]
    rows[2]["rejected"] = ""
    rows[4]["prompt"] = ""
    write_config(folder, PREFERENCE, rows)
    assert fit() == 2
    told = capsys.readouterr().err
    assert "train.jsonl:3: column 'rejected': the text is missing or empty." in told
    assert "train.jsonl:5: column 'prompt': the text is missing or empty." in told
    assert "1 pairs of 6 are twice the same text" in told
