import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from tests import tiny_run


@pytest.fixture
def run(folder, messages_restored, tiny_text_model):
    """A run of a tiny classifier, with a split to test on that has other rows than the one to validate on."""
    tiny_run.write(folder, tiny_text_model, data__source__test="test.jsonl")
    rows = [{"text": f"the movie was {word}", "label": label} for word, label in (("fine", "good"), ("not", "good"))]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["fit", "-c", "tiny.yaml", "--trainer.max_epochs", "1"]) == 0
    return RunFolder("runs/tiny")


def plain_scores(export, path):
    """Return accuracy and loss as `transformers` alone computes them of an exported folder."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(export).eval()
    inputs = AutoTokenizer.from_pretrained(export)([row["text"] for row in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([model.config.label2id[row["label"]] for row in rows])
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    return (output.logits.argmax(-1) == labels).float().mean().item(), output.loss.item()


def shown(capsys):
    """Return the numbers of the printed table by their names."""
    lines = (line.strip("│┃ \n").split("│") for line in capsys.readouterr().out.splitlines())
    return {cells[0].strip(): float(cells[1]) for cells in lines if len(cells) == 2 and "/" in cells[0]}


def test_each_verb_takes_its_split_and_the_best_checkpoint(run, folder, capsys):
    for verb, split, prefix in (("validate", "validation", "val"), ("test", "test", "test")):
        capsys.readouterr()
        assert main([verb, "runs/tiny"]) == 0
        values = shown(capsys)
        accuracy, loss = plain_scores(run.export, folder / f"{split}.jsonl")
        assert values[f"{prefix}/accuracy"] == pytest.approx(accuracy, abs=1e-4)
        assert values[f"{prefix}/loss"] == pytest.approx(loss, abs=1e-4)
    assert run.read_record()["state"] == "finished"  # evaluation leaves the run as it is


def test_a_split_that_is_not_there_is_told_before_weights_are_loaded(run, capsys):
    assert main(["test", "runs/tiny", "--data.source.test", "none.jsonl"]) == 2
    assert "data.source.test" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_told(folder, tiny_text_model, messages_restored, capsys):
    assert main(["validate", "runs/none"]) == 2
    assert "no run is here" in capsys.readouterr().err
