"""Which word is said of the film: learnt by a tiny model, exported, and chosen again by plain transformers."""

import csv
import json

import pytest
import torch
import yaml
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from lit_hf.cli.main import main
from lit_hf.run import RunFolder

PAIRS = [("good", "great"), ("bad", "poor"), ("fine", "good"), ("dull", "bad")]


def write_rows(path, repeat):
    rows = [
        {"sent1": f"the film was {said}", "sent2": "very", "ending0": choices[0], "ending1": choices[1], "label": place}
        for _ in range(repeat)
        for said, _ in PAIRS
        for place, choices in enumerate([(said, "plot"), ("movie", said)])
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_text_model):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", 8)
    write_rows(tmp_path / "validation.jsonl", 1)
    columns = {"context": "sent1", "question": "sent2", "choices": ["ending0", "ending1"]}
    config = {
        "name": "endings",
        "task": {"class_path": "MultipleChoice", "init_args": columns},
        "model": {
            "checkpoint": str(tiny_text_model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {"source": {"train": "train.jsonl", "validation": "validation.jsonl"}, "batch_size": 8},
        "trainer": {"max_epochs": 4, "accelerator": "cpu"},
    }
    (tmp_path / "endings.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.parametrize("adapter", [None, "peft.LoraConfig"])
def test_endings_are_learnt_exported_and_chosen_again(folder, capsys, adapter):
    (folder / "adapter.yaml").write_text(yaml.safe_dump({"model": {"adapter": adapter and {"class_path": adapter}}}))
    assert main(["fit", "-c", "endings.yaml", "-c", "adapter.yaml", "--name", "endings", "--merge", "true"]) == 0
    run = RunFolder("runs/endings")
    with run.metrics.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < losses[0]
    assert run.read_record()["best"]["metric"] == "val/accuracy"
    assert run.read_record()["best"]["value"] > 0.8
    capsys.readouterr()

    assert main(["predict", "runs/endings", "--input", "validation.jsonl"]) == 0
    predicted = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(run.export)
    model = AutoModelForMultipleChoice.from_pretrained(run.export).eval()
    for row in predicted:
        endings = [row["ending0"], row["ending1"]]
        pair = tokenizer([row["sent1"]] * 2, [f"{row['sent2']} {ending}" for ending in endings], return_tensors="pt")
        with torch.inference_mode():
            logits = model(**{name: values[None] for name, values in pair.items()}).logits[0]
        assert row["scores"] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
        assert row["text"] == endings[row["choice"]]


def test_rows_with_other_numbers_of_choices_are_named(folder, capsys):
    rows = [
        {"sent1": "the film", "options": ["good", "bad"], "answer": "A"},
        {"sent1": "the plot", "options": ["good", "bad", "fine"], "answer": "B"},
        {"sent1": "the plot", "options": ["good", "bad"], "answer": "C"},
    ]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = ["--task.choices", "options", "--task.label", "answer", "--task.question", "null"]
    assert main(["fit", "-c", "endings.yaml", *columns, "--name", "bad"]) == 2
    told = capsys.readouterr().err
    assert "train.jsonl:2: column 'options': the row has 3 choices, most rows have 2." in told
    assert "validation.jsonl:3: column 'answer': 'C' is none of the 2 choices." in told
