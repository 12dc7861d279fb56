import csv
import json

import pytest
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from lit_hf.cli.main import main
from lit_hf.evaluation.generation import text_scores
from lit_hf.run import RunFolder

WORDS = {"one": "eins", "two": "zwei", "red": "rot", "blue": "blau", "dog": "Hund", "cat": "Katze"}
PAIRS = [f"{first} {second}" for first in WORDS for second in WORDS]


def german(text):
    return " ".join(WORDS[word] for word in text.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with a run that has learnt to copy and translate two words."""
    folder = tmp_path_factory.mktemp("seq2seq")
    rows = [{"translation": {"en": text, "de": german(text)}} for text in PAIRS]
    references = [[german(text), german(text).upper()] for text in PAIRS[:8]]
    few = [{**row, "references": texts} for row, texts in zip(rows, references, strict=False)]
    for name, split in {"train": rows * 16, "validation": few, "test": few}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, split)))
    settings = {"source": "translation.en", "target": "translation.de", "references": "references"}
    generation = {"num_beams": 2, "max_new_tokens": 12}
    config = {
        "name": "tiny",
        "task": {
            "class_path": "Seq2Seq",
            "init_args": {
                **settings,
                "kind": "translation",
                "metrics": ["chrf", "rouge"],
                "generation": generation,
            },
        },
        "model": {
            "config": {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "source": {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")},
            "tokenizer": {"train": {"vocab_size": 300}},
            "batch_size": 16,
        },
        "output_dir": str(folder / "runs"),
        "trainer": {"max_epochs": 4, "accelerator": "cpu"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", str(folder / "tiny.yaml")]) == 0
    return folder


def generate(folder, texts, **settings):
    """What anyone gets from the export with plain transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokens = [model.generate(**tokenizer(text, return_tensors="pt"), **settings)[0] for text in texts]
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)


def predicted(capsys, run, *options):
    capsys.readouterr()
    assert main(["predict", str(run), *options]) == 0
    return [json.loads(line)["generated_text"] for line in capsys.readouterr().out.splitlines()]


def test_the_loss_falls_and_the_best_chrf_is_kept(folder):
    run = RunFolder(folder / "runs" / "tiny")
    with run.metrics.open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert losses[-1] < losses[0] / 2
    assert run.read_record()["best"]["value"] == max(float(row["val/chrf"]) for row in rows if row["val/chrf"])


def test_the_export_generates_what_predict_writes(folder, capsys):
    run = folder / "runs" / "tiny"
    settings = json.loads((run / "export" / "generation_config.json").read_text())
    assert (settings["num_beams"], settings["max_new_tokens"]) == (2, 12)
    texts = predicted(capsys, run, "--input", str(folder / "test.jsonl"))
    assert texts == generate(run / "export", PAIRS[:8])
    assert len(set(texts)) > 1


def test_test_scores_what_predict_writes_against_all_references(folder, capsys):
    run = folder / "runs" / "tiny"
    texts = predicted(capsys, run, "--input", str(folder / "test.jsonl"))
    scores = text_scores(["chrf", "rouge"], texts, [[german(text), german(text).upper()] for text in PAIRS[:8]])
    assert main(["test", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"{scores['rougeL']:.4f}" in shown
    assert f"{scores['chrf']:.4f}" in shown


def test_settings_of_the_command_line_go_over_those_of_the_run(folder, capsys):
    run = folder / "runs" / "tiny"
    given = ("--text", "red dog", "--generation", '{"num_beams": 1}', "--max_new_tokens", "2")
    assert predicted(capsys, run, *given) == generate(run / "export", ["red dog"], num_beams=1, max_new_tokens=2)
    assert predicted(capsys, run, *given) != predicted(capsys, run, "--text", "red dog")


def test_a_misspelled_column_is_told_with_those_inside_of_objects(folder, capsys):
    options = ("--name", "other", "--task.target", "translation.du")
    assert main(["fit", "-c", str(folder / "tiny.yaml"), *options]) == 2
    error = capsys.readouterr().err
    assert "no column 'translation.du', which task.target names" in error
    assert "There is: " in error
    assert "translation.de, translation.en" in error
