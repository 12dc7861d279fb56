from __future__ import annotations

import random

import pytest
import torch
from transformers import pipeline

from lit_hf.errors import InputError
from lit_hf.export.package import export
from lit_hf.inference.predictor import Predictor
from lit_hf.tasks import TextClassification
from tests.classifiers import LABELS, RECORD, TEXTS, adapted, classifier


@pytest.fixture
def folder(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export")
    return tmp_path / "export"


WORDS = ["the", "film", "is", "good", "great", "fine", "bad", "poor", "dull", "not", "very", "plot", "acting", "it"]


def texts(count: int) -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(WORDS, k=chance.choice([1, 2, 3, 5, 30, 80]))) for _ in range(count)]


def test_it_agrees_with_transformers_pipeline_on_every_row(folder):
    rows = [{"text": text} for text in texts(150)]
    expected = pipeline("text-classification", str(folder), top_k=None)([row["text"] for row in rows], truncation=True)
    predicted = list(Predictor.from_folder(folder, device="cpu", batch_size=7).predict(rows))
    assert [row["text"] for row in predicted] == [row["text"] for row in rows]
    for ours, theirs in zip(predicted, expected, strict=True):
        assert ours["label"] == theirs[0]["label"]
        assert ours["score"] == pytest.approx(theirs[0]["score"], abs=1e-5)
        assert ours["scores"] == pytest.approx({one["label"]: one["score"] for one in theirs}, abs=1e-5)
    assert len({row["label"] for row in predicted}) > 1


@pytest.mark.parametrize("merge", [False, True])
def test_adapters_answer_as_the_model_that_was_exported(tiny_text_model, tmp_path, merge):
    model, task = adapted(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export", merge=merge)
    rows = list(Predictor.from_folder(tmp_path / "export", device="cpu").predict({"text": text} for text in TEXTS))
    with torch.inference_mode():
        scores = model(**task.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
    for row, expected in zip(rows, scores.tolist(), strict=True):
        assert list(row["scores"].values()) == pytest.approx(expected, abs=1e-4)


def test_rows_keep_columns_types_and_order_over_chunks(folder):
    rows = [{"id": index, "text": text, "nested": {"a": [1, None, 2.5]}} for index, text in enumerate(texts(300))]
    predictor = Predictor.from_folder(folder, device="cpu", batch_size=2)  # 128 rows a chunk
    predicted = list(predictor.predict(iter(rows)))
    assert [{key: row[key] for key in rows[0]} for row in predicted] == rows
    assert list(predicted[0]) == ["id", "text", "nested", "label", "score", "scores"]


def test_rows_are_read_as_they_are_needed(folder):
    read = []

    def endless():
        while True:
            read.append(1)
            yield {"text": "good"}

    next(Predictor.from_folder(folder, device="cpu", batch_size=2).predict(endless()))
    assert len(read) == 128


def test_the_users_columns_win_in_every_row(folder):
    rows = [{"text": "good", "label": "gold"}, {"text": "bad"}]
    first, second = Predictor.from_folder(folder, device="cpu").predict(rows)
    assert first["label"] == "gold"
    assert first["predicted_label"] in LABELS
    assert "label" not in second
    assert second["predicted_label"] in LABELS
    assert "score" in second


def test_a_column_that_comes_late_is_not_overwritten(folder):
    rows = [*({"text": "good"} for _ in range(64)), {"text": "good", "score": "mine", "predicted_score": "mine too"}]
    last = list(Predictor.from_folder(folder, device="cpu", batch_size=1).predict(rows))[-1]
    assert (last["score"], last["predicted_score"]) == ("mine", "mine too")
    assert isinstance(last["predicted_predicted_score"], float)


def test_text_longer_than_the_model_takes_is_cut(folder):
    tokenizer = Predictor.from_folder(folder, device="cpu").task.tokenizer
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(folder)
    (row,) = Predictor.from_folder(folder, device="cpu").predict([{"text": "good " * 500}])
    assert row["label"] in LABELS


class Hinted(TextClassification):
    optional_columns = ["meta.hint"]

    def encode(self, examples):
        hints = examples.get("meta.hint", [None] * len(examples["text"]))
        texts = [f"{text} {hint or ''}" for text, hint in zip(examples["text"], hints, strict=True)]
        return super().encode({"text": texts})


def test_an_optional_column_inside_of_another_one_is_read(tiny_text_model):
    model, task = classifier(tiny_text_model)
    hinted = Hinted(labels=LABELS)
    hinted.bind(task.tokenizer)
    rows = [{"text": "good", "meta": {"hint": "bad"}}, {"text": "good", "meta": {}}, {"text": "good"}]
    predicted = Predictor(model, hinted).predict(rows)
    expected = Predictor(model, task).predict({"text": text} for text in ("good bad", "good", "good"))
    scores = [row["score"] for row in predicted]
    assert scores == pytest.approx([row["score"] for row in expected])
    assert scores[0] != pytest.approx(scores[1])


def test_a_device_that_is_not_there_is_told(folder):
    for device in ("cuda:77", "abacus"):
        with pytest.raises(InputError, match="--device: "):
            Predictor.from_folder(folder, device=device)
