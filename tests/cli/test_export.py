from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from lit_hf.checkpoints import MANIFEST, STATE, folder_name, found
from lit_hf.cli.main import main
from lit_hf.inference.predictor import Predictor
from tests.classifiers import TEXTS

ROWS = [
    {"text": f"the {noun} is {word}", "label": label}
    for noun in ("film", "plot", "movie", "acting")
    for label, words in {"bad": ("bad", "poor", "dull"), "good": ("good", "great", "fine")}.items()
    for word in words
]


@pytest.fixture(scope="module")
def trained(tiny_text_model, tmp_path_factory):
    """A run with a LoRA adapter, and its export."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = {
        "name": "tiny",
        "output_dir": str(folder),
        "task": {"class_path": "TextClassification"},
        "model": {"checkpoint": str(tiny_text_model), "adapter": {"class_path": "peft.LoraConfig"}},
        "data": {"source": {"train": str(folder / "rows.jsonl")}, "batch_size": 4, "num_workers": 0},
        "trainer": {"max_steps": 6, "accelerator": "cpu"},
    }
    (folder / "tiny.yaml").write_text(json.dumps(config))
    assert main(["fit", "-c", str(folder / "tiny.yaml")]) == 0
    return folder / "tiny"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "tiny")


def scores(folder) -> list[dict[str, float]]:
    rows = Predictor.from_folder(folder, device="cpu").predict({"text": text} for text in TEXTS)
    return [row["scores"] for row in rows]


def test_the_export_of_a_run_can_be_made_again(run, capsys):
    before = scores(run / "export")
    shutil.rmtree(run / "export")
    assert main(["export", str(run)]) == 0
    assert scores(run / "export") == before
    assert f"Exported to {run / 'export'}" in capsys.readouterr().out


def test_merged_it_is_what_pipeline_loads(run, tmp_path):
    assert main(["export", "--run", str(run), "--merge", "--output", str(tmp_path / "merged")]) == 0
    answers = pipeline("text-classification", str(tmp_path / "merged"), top_k=None)(TEXTS)
    for answer, expected in zip(answers, scores(run / "export"), strict=True):
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(expected, abs=1e-4)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").config.id2label == {
        0: "bad",
        1: "good",
    }


def test_predict_exports_a_run_that_has_none(run, capsys):
    expected = scores(run / "export")[0]
    shutil.rmtree(run / "export")
    capsys.readouterr()
    assert main(["predict", str(run), "--text", TEXTS[0]]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["scores"] == pytest.approx(expected, abs=1e-6)
    assert "has no export yet; making it" in captured.err


def test_predict_answers_with_the_best_checkpoint_of_a_run_that_was_killed_after_it_got_better(run, capsys):
    (newest,) = found(run / "checkpoints")
    better = shutil.copytree(newest, newest.with_name(folder_name(7)))
    manifest = json.loads((better / MANIFEST).read_text())
    (better / MANIFEST).write_text(json.dumps({**manifest, "best": {"name": better.name, "value": 1.0}}))
    capsys.readouterr()
    assert main(["predict", str(run), "--text", TEXTS[0]]) == 0
    assert "has no export of its best checkpoint, step-00000007; making it" in capsys.readouterr().err
    assert main(["predict", str(run), "--text", TEXTS[0]]) == 0
    assert "making it" not in capsys.readouterr().err


def test_predict_finds_the_run_of_a_config(trained, capsys):
    assert main(["predict", "-c", str(trained.parent / "tiny.yaml"), "--text", TEXTS[0]]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == TEXTS[0]


@pytest.fixture
def spoiled(run):
    """The run with an older best checkpoint, whose state is cut off."""
    checkpoints = run / "checkpoints"
    newest, *_ = found(checkpoints)
    older = checkpoints / folder_name(1)
    shutil.copytree(newest, older)
    (older / STATE).write_bytes(b"cut")
    manifest = json.loads((newest / MANIFEST).read_text())
    (newest / MANIFEST).write_text(json.dumps({**manifest, "best": {"name": older.name, "value": 1.0}}))
    return run


def test_the_last_checkpoint_is_exported_where_it_is_asked_for(spoiled, tmp_path):
    run = spoiled
    assert main(["export", str(run), "--checkpoint", "last", "--output", str(tmp_path / "last")]) == 0
    assert (tmp_path / "last" / "adapter_model.safetensors").is_file()


def test_a_run_without_a_valid_best_checkpoint_is_told(spoiled, capsys):
    assert main(["export", str(spoiled)]) == 2
    assert "no valid best checkpoint" in (told := capsys.readouterr().err) and "--checkpoint last" in told


def test_a_folder_that_is_no_run_is_told(tmp_path, capsys):
    assert main(["export", str(tmp_path)]) == 2
    assert "no run is here" in capsys.readouterr().err
