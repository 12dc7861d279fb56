"""Names of people and places are learnt by a tiny model; the export tags text by itself, as lit-hf does."""

import csv
import json

import pytest
import yaml
from transformers import pipeline

from lit_hf.cli.main import main
from lit_hf.run import RunFolder

PEOPLE, PLACES = ["ann", "bob ann", "nab"], ["turku", "key city", "rig"]


def tagged(words, kind):
    return [(word, f"{'I' if number else 'B'}-{kind}") for number, word in enumerate(words.split())]


def write_rows(path, repeat):
    rows = []
    for _ in range(repeat):
        for person in PEOPLE:
            for place in PLACES:
                pairs = [("the", "O"), ("film", "O"), *tagged(person, "PER"), ("was", "O"), *tagged(place, "LOC")]
                words, tags = zip(*pairs, strict=True)
                rows.append({"tokens": words, "ner_tags": tags})
    path.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_text_model):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", 6)
    write_rows(tmp_path / "validation.jsonl", 1)
    config = {
        "name": "names",
        "task": {"class_path": "TokenClassification", "init_args": {"align": "all"}},
        "model": {
            "checkpoint": str(tiny_text_model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}},
        },
        "data": {"source": {"train": "train.jsonl", "validation": "validation.jsonl"}, "batch_size": 6},
        "trainer": {"max_epochs": 5, "accelerator": "cpu"},
    }
    (tmp_path / "names.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_names_are_learnt_exported_and_found_again(folder, capsys):
    assert main(["fit", "-c", "names.yaml"]) == 0
    run = RunFolder("runs/names")
    with run.metrics.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < 0.5 * losses[0]
    assert run.read_record()["best"]["metric"] == "val/f1"
    assert run.read_record()["best"]["value"] > 0.8
    shown = capsys.readouterr().out
    assert "entities: type and all words must be right" in shown
    assert shown.count("LOC") == 1 + shown.count("f1_LOC")

    text = "the film ann was key city"
    assert main(["predict", "runs/names", "--text", text]) == 0
    row = json.loads(capsys.readouterr().out)
    assert len(row["tags"]) == 6
    assert [(entity["type"], entity["text"]) for entity in row["entities"]] == [("PER", "ann"), ("LOC", "key city")]

    # `simple` joins pieces, `first` joins words by their first piece, as lit-hf does
    for strategy in ("simple", "first"):
        found = pipeline("token-classification", str(run.export), aggregation_strategy=strategy)(text)
        assert [(entity["entity_group"], text[entity["start"] : entity["end"]]) for entity in found] == [
            (entity["type"], entity["text"]) for entity in row["entities"]
        ]
    assert [entity["score"] for entity in found] == pytest.approx(
        [entity["score"] for entity in row["entities"]], abs=1e-5
    )


def test_faults_of_the_rows_are_told_at_once(folder, capsys):
    rows = [
        {"tokens": ["the", "film"], "ner_tags": ["O"]},
        {"tokens": [], "ner_tags": []},
        {"tokens": ["ann"], "ner_tags": ["B-PER"]},
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = ["--task.labels", "[O, B-LOC, I-LOC]", "--name", "bad"]
    assert main(["fit", "-c", "names.yaml", *settings]) == 2
    told = capsys.readouterr().err
    assert "train.jsonl:1: column 'ner_tags': the row has 2 words, but 1 tags." in told
    assert "train.jsonl:2: column 'tokens': the row has no words." in told
    assert "train.jsonl:3: column 'ner_tags': 'B-PER' is not a tag." in told
