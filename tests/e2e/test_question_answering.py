"""Question answering as a user has it: fit, validate, export, predict; plain transformers gives the same answers."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from lit_hf.cli.main import main
from lit_hf.run import RunFolder

THINGS, WORDS = ("film", "movie", "plot"), ("good", "great", "fine", "bad", "poor", "dull")
MAX_LENGTH, STRIDE, LONGEST = 16, 4, 2


def rows(unanswerable):
    for number, (thing, word) in enumerate((thing, word) for thing in THINGS for word in WORDS):
        other, verdict = THINGS[(number + 1) % 3], WORDS[(number + 2) % 6]
        context = (
            f"the {other} was not very {verdict} and not very dull and the {thing} was {word} and the {other} fine"
        )
        start = context.index(f"{thing} was {word}") + len(f"{thing} was ")
        answers = {"text": [word], "answer_start": [start]}
        yield {"id": str(number), "question": f"the {thing}", "context": context, "answers": answers}
        if unanswerable:
            answers = {"text": [], "answer_start": []}
            yield {"id": f"{number}-", "question": "the the", "context": context, "answers": answers}


@pytest.fixture(params=[False, True], ids=["v1", "v2"])
def unanswerable(request):
    return request.param


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_text_model, unanswerable):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows(unanswerable))))
    settings = {"doc_stride": STRIDE, "max_question_length": 3, "max_answer_length": LONGEST}
    config = {
        "name": "tiny",
        "task": {"class_path": "QuestionAnswering", "init_args": {**settings, "unanswerable": unanswerable}},
        "model": {
            "checkpoint": str(tiny_text_model),
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
        },
        "data": {
            "source": {split: f"{split}.jsonl" for split in ("train", "validation")},
            "batch_size": 8,
            "max_length": MAX_LENGTH,
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def plain_answer(model, tokenizer, row):
    """Return the best span of the exported model in plain transformers, by a loop over windows and spans."""
    encoding = tokenizer(
        row["question"],
        row["context"],
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    best, nulls = (float("-inf"), 0, 0), []
    for number, (ids, offsets) in enumerate(zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)):
        with torch.inference_mode():
            outputs = model(torch.tensor([ids]))
        starts, ends = outputs.start_logits[0].tolist(), outputs.end_logits[0].tolist()
        nulls.append(starts[0] + ends[0])
        inside = [token for token, part in enumerate(encoding.sequence_ids(number)) if part == 1]
        spans = ((first, last) for first in inside for last in inside if first <= last < first + LONGEST)
        best = max(best, *((starts[i] + ends[j], offsets[i][0], offsets[j][1]) for i, j in spans))
    return best, min(nulls)


def test_the_export_gives_the_answers_that_predict_gives(folder, unanswerable, capsys):
    assert main(["fit", "-c", "tiny.yaml"]) == 0
    run = RunFolder("runs/tiny")
    assert "val/f1" in run.metrics.read_text().splitlines()[0]
    assert "best f1" in capsys.readouterr().out
    assert main(["validate", "runs/tiny"]) == 0
    shown = capsys.readouterr().out
    assert "val/exact_match" in shown
    assert ("unanswerable" in shown) == unanswerable

    assert main(["predict", "runs/tiny", "--input", "validation.jsonl", "--output", "out.jsonl"]) == 0
    predictions = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    model = AutoModelForQuestionAnswering.from_pretrained(run.export).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.export)
    given = list(rows(unanswerable))
    assert len(predictions) == len(given)
    for row, prediction in zip(given, predictions, strict=True):
        assert {name: prediction[name] for name in row} == row
        (score, start, end), null = plain_answer(model, tokenizer, row)
        if unanswerable:
            assert prediction["null_difference"] == pytest.approx(null - score, abs=1e-4)
        if unanswerable and null > score:
            start = end = 0
        assert (prediction["start"], prediction["end"]) == (start, end)
        assert prediction["answer"] == row["context"][start:end]


@pytest.mark.parametrize("unanswerable", [False], indirect=True)
def test_one_question_is_asked_as_json(folder, capsys):
    assert main(["fit", "-c", "tiny.yaml", "--trainer.max_steps", "1"]) == 0
    capsys.readouterr()
    asked = {"question": "the plot", "context": "the plot was dull"}
    assert main(["predict", "runs/tiny", "--text", json.dumps(asked)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["context"][answer["start"] : answer["end"]] == answer["answer"]
    assert 0 < answer["score"] <= 1


@pytest.mark.parametrize("unanswerable", [False], indirect=True)
def test_faults_of_the_rows_are_told_with_their_places(folder, capsys):
    lines = [json.dumps(row) for row in rows(False)]
    spoilt = json.loads(lines[3])
    spoilt["answers"]["answer_start"] = [1]
    lines[3] = lines[5] = json.dumps(spoilt)
    (folder / "train.jsonl").write_text("\n".join(lines))
    assert main(["fit", "-c", "tiny.yaml"]) == 2
    told = capsys.readouterr().err
    assert "train.jsonl:4: column 'answers': the answer 'bad' is not in the context at offset 1" in told
    assert "train.jsonl:6" in told
