from __future__ import annotations

import json
import sys

import pytest
from transformers import AutoModelForSequenceClassification

from lit_hf.errors import InputError
from lit_hf.export.package import export
from lit_hf.inference.manifest import read_task
from lit_hf.tasks import TextClassification
from tests.classifiers import LABELS, RECORD, classifier


@pytest.fixture
def folder(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, {**RECORD, "init_args": {"text": ["title", "body"]}}, tmp_path / "export")
    return tmp_path / "export"


def rewrite(folder, **changes):
    path = folder / "lit_hf.json"
    manifest = json.loads(path.read_text())
    manifest["task"] |= changes
    path.write_text(json.dumps(manifest))


def test_the_task_comes_back_with_its_labels_and_columns(folder):
    task = read_task(folder)
    assert type(task) is TextClassification
    assert task.input_columns == ["title", "body"]
    assert task.labels == LABELS


def test_the_callers_task_gets_the_labels(folder):
    task = TextClassification(text="sentence")
    assert read_task(folder, task) is task
    assert task.labels == LABELS


@pytest.mark.parametrize(
    "class_path",
    ["os.system", "evil_task.Evil", "lit_hf.tasksevil.Evil", "lit_hf.cli.main.main", "Evil", ""],
)
def test_other_classes_are_not_even_imported(folder, tmp_path, monkeypatch, class_path):
    (tmp_path / "evil_task.py").write_text("raise SystemExit('this ran')")
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(folder, class_path=class_path, init_args={})
    with pytest.raises(InputError, match="may not run code of its choice"):
        read_task(folder)
    assert "evil_task" not in sys.modules


@pytest.mark.parametrize(
    "class_path",
    ["lit_hf.tasks.text_classification.Nothing", "lit_hf.tasks.os.system", "lit_hf.tasks.text_classification.Task"],
)
def test_names_that_are_no_task_are_told(folder, class_path):
    rewrite(folder, class_path=class_path, init_args={})
    with pytest.raises(InputError, match="cannot be made"):
        read_task(folder)


def test_functions_beside_the_tasks_are_not_called(folder):
    rewrite(folder, class_path="lit_hf.tasks.text_classification.raise_problems", init_args={"problems": []})
    with pytest.raises(InputError):
        read_task(folder)


def test_arguments_of_a_newer_version_are_told(folder):
    rewrite(folder, init_args={"colour": "red"})
    with pytest.raises(InputError, match="colour"):
        read_task(folder)


def test_a_trusted_class_is_imported(folder, tmp_path, monkeypatch):
    code = "from lit_hf.tasks import TextClassification\nclass Mine(TextClassification): pass\n"
    (tmp_path / "my_trusted_task.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    rewrite(folder, class_path="my_trusted_task.Mine")
    assert type(read_task(folder, trust_remote_code=True)).__name__ == "Mine"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"task": 3}', '{"task": {"class_path": "x"}}'])
def test_a_damaged_manifest_is_named(folder, text):
    (folder / "lit_hf.json").write_text(text)
    with pytest.raises(InputError, match=r"lit_hf\.json: the file is damaged"):
        read_task(folder)


@pytest.mark.parametrize(
    "settings, kind, labels",
    [
        ({"num_labels": 3, "id2label": dict(enumerate("xyz"))}, "single_label", ["x", "y", "z"]),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, "multi_label", ["LABEL_0", "LABEL_1"]),
        ({"num_labels": 1}, "regression", None),
    ],
)
def test_the_task_of_a_foreign_classifier_is_guessed(tiny_text_model, tmp_path, settings, kind, labels):
    AutoModelForSequenceClassification.from_pretrained(tiny_text_model, **settings).save_pretrained(tmp_path)
    task = read_task(tmp_path)
    assert (task.input_columns, task.kind, task.labels) == (["text"], kind, labels)


def test_the_task_of_another_foreign_model_is_not_guessed(tiny_text_model):
    with pytest.raises(InputError, match="BertModel is not a text classifier"):
        read_task(tiny_text_model)
