"""A task from outside the package: one file on the Python path, used by its class_path in every verb."""

import csv
import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.cli.main import main
from lit_hf.errors import InputError
from lit_hf.run import RunFolder

SOURCE = '''
from lit_hf.task import RowProblem, Task


class Grade(Task):
    """Give a text a grade.

    Args:
        text: Column with the text.
        grade: Column with the grade.
        highest: The best grade; 0 is the worst.
    """

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    peft_task_type = "SEQ_CLS"
    monitors = {"error": "min"}

    def __init__(self, text: str = "text", grade: str = "grade", highest: int = 10) -> None:
        self.text, self.grade, self.highest = text, grade, highest

    @property
    def input_columns(self):
        return [self.text]

    @property
    def target_columns(self):
        return [self.grade]

    def check(self, rows):
        grades = rows[self.grade] if self.grade in rows.column_names else []
        if wrong := [row for row, grade in enumerate(grades) if not 0 <= grade <= self.highest]:
            yield RowProblem(wrong, self.grade, f"the grade is not in 0 to {self.highest}.", "Mend task.highest.")

    def encode(self, examples):
        encoded = dict(self.tokenizer(examples[self.text], truncation=True))
        if self.grade in examples:
            encoded["labels"] = [grade / self.highest for grade in examples[self.grade]]
        return encoded

    def model_kwargs(self):
        return {"num_labels": 1, "problem_type": "regression"}

    def metrics(self):
        from torchmetrics import MeanAbsoluteError, MetricCollection

        return MetricCollection({"error": MeanAbsoluteError()})

    def update(self, metrics, outputs, batch):
        metrics.update(outputs.logits.squeeze(-1) * self.highest, batch["labels"] * self.highest)

    def predict(self, model, batch):
        return [{"grade": score * self.highest} for score in model(**batch).logits.squeeze(-1).tolist()]
'''

GRADES = {"great": 20, "good": 16, "fine": 12, "poor": 4, "bad": 0}


def rows(repeat):
    return [
        {"body": f"the {thing} was {word}" + " indeed" * (number % 3), "points": points}
        for number in range(repeat)
        for thing in ("film", "plot", "movie")
        for word, points in GRADES.items()
    ]


def write(path, content):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_text_model):
    """A working directory with the task's own file beside it, and a config that names the class."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_grades.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.jsonl", rows(9))
    write(tmp_path / "validation.jsonl", rows(2))
    config = {
        "name": "grades",
        "task": {
            "class_path": "my_grades.Grade",
            "init_args": {"text": "body", "grade": "points", "highest": 20},
        },
        "model": {
            "checkpoint": str(tiny_text_model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {"source": {"train": "train.jsonl", "validation": "validation.jsonl"}, "batch_size": 16},
        "trainer": {"max_epochs": 4, "accelerator": "cpu"},
    }
    (tmp_path / "grades.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    yield tmp_path
    sys.modules.pop("my_grades", None)


def plain_grades(export, texts):
    """Return the grades that `transformers` alone computes from an exported folder."""
    model = AutoModelForSequenceClassification.from_pretrained(export).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    return (logits.squeeze(-1) * 20).tolist()


def test_every_verb_takes_a_task_from_outside_the_package(folder, capsys):
    assert main(["fit", "-c", "grades.yaml"]) == 0

    run = RunFolder("runs/grades")
    assert run.read_config()["task"]["class_path"] == "my_grades.Grade"
    with run.metrics.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[-1] < 0.5 * losses[0]
    content = rows(2)
    grades = plain_grades(run.export, [row["body"] for row in content])
    error = sum(abs(grade - row["points"]) for grade, row in zip(grades, content, strict=True)) / len(content)
    best = run.read_record()["best"]
    assert best["metric"] == "val/error"
    assert best["value"] == pytest.approx(error, abs=1e-3)
    assert error < 5  # always to say 10.4 is wrong by 6.7

    capsys.readouterr()
    assert main(["validate", "runs/grades"]) == 0
    assert f"{best['value']:.4f}" in capsys.readouterr().out

    assert main(["export", "runs/grades", "--output", "moved"]) == 0
    weights, again = (load_file(path / "model.safetensors") for path in (run.export, folder / "moved"))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weight, again[name]) for name, weight in weights.items())

    write(folder / "new.jsonl", [{"body": "the plot was great", "id": 7}, {"body": "the movie was bad", "id": 8}])
    command = ["predict", "moved", "--input", "new.jsonl", "--output", "out.jsonl", "--trust_remote_code"]
    assert main(command) == 0
    predicted = [json.loads(line) for line in (folder / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in predicted] == [7, 8]
    expected = plain_grades(folder / "moved", ["the plot was great", "the movie was bad"])
    assert [row["grade"] for row in predicted] == pytest.approx(expected, abs=1e-3)
    assert predicted[0]["grade"] > predicted[1]["grade"]


def test_an_exported_folder_runs_no_task_that_nobody_trusts(folder, capsys):
    assert main(["fit", "-c", "grades.yaml", "--trainer.max_steps", "1"]) == 0
    capsys.readouterr()

    assert main(["predict", "runs/grades", "--text", "the plot was great"]) == InputError.exit_code

    told = capsys.readouterr()
    assert "my_grades.Grade is not one of lit-hf's own" in told.err
    assert "--trust_remote_code" in told.err
    assert not told.out


def test_faults_that_an_own_task_finds_are_told_with_their_lines(folder, capsys):
    write(folder / "validation.jsonl", [*rows(1), {"body": "the film was great", "points": 21}])

    assert main(["fit", "-c", "grades.yaml", "--task.heighest", "20"]) == InputError.exit_code
    assert "Did you mean 'highest'?" in capsys.readouterr().err

    assert main(["fit", "-c", "grades.yaml"]) == InputError.exit_code
    assert "validation.jsonl:16: column 'points': the grade is not in 0 to 20." in capsys.readouterr().err


def test_the_help_knows_an_own_task(folder, capsys):
    with pytest.raises(SystemExit) as left:
        main(["fit", "--task.help", "my_grades.Grade"])

    assert not left.value.code
    page = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert "my_grades.Grade: Give a text a grade" in page
    assert "--task.highest" in page and "The best grade; 0 is the worst (int, default 10)" in page
