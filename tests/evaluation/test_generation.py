from __future__ import annotations

import math
import socket

import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import distributed, multiprocessing
from torchmetrics import MetricCollection

from lit_hf.evaluation.generation import TextScores, score_names, text_scores

PREDICTIONS = ["the cats sat on a mat .", "Er geht heim.\nMorgen kommt sie.", "", "a dog runs in the snow"]
REFERENCES = [
    ["a cat sat on the mat .", "there is a cat on the mat ."],
    ["Morgen kommt sie.\nEr geht heim."],
    ["nothing was said", "silence", "no words"],
    ["a dog is running through snow"],
]
ALL = ["rouge", "bleu", "chrf"]


def test_rouge_is_the_mean_of_the_original_scorer_s_best_reference():
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=True)
    rows = [
        {name: max(scorer.score(target, text)[name].fmeasure for target in targets) for name in names}
        for text, targets in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    expected = {name: sum(row[name] for row in rows) / 4 for name in names}
    assert text_scores(["rouge"], PREDICTIONS, REFERENCES) == pytest.approx(expected)
    assert expected["rougeL"] != expected["rougeLsum"]


def test_bleu_and_chrf_are_sacrebleu_s_with_as_many_references_as_each_text_has():
    streams = [
        [REFERENCES[0][0], REFERENCES[1][0], REFERENCES[2][0], REFERENCES[3][0]],
        [REFERENCES[0][1], None, REFERENCES[2][1], None],
        [None, None, REFERENCES[2][2], None],
    ]
    scores = text_scores(["bleu", "chrf"], PREDICTIONS, REFERENCES)
    assert scores["bleu"] == sacrebleu.corpus_bleu(PREDICTIONS, streams).score > 0
    assert scores["chrf"] == sacrebleu.corpus_chrf(PREDICTIONS, streams).score > 0


def test_a_perfect_text_has_full_marks():
    texts = ["a little dog runs in the snow", "two men stand at the river"]
    scores = text_scores(ALL, texts, [[text] for text in texts])
    assert scores == pytest.approx(dict.fromkeys(score_names(["rouge"]), 1.0) | {"bleu": 100.0, "chrf": 100.0})


def test_the_metric_adds_batches_up_and_forgets_them():
    metrics = MetricCollection({"text": TextScores(ALL)})
    metrics.update(PREDICTIONS[:1], REFERENCES[:1])
    metrics.update(PREDICTIONS[1:], REFERENCES[1:])
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx(text_scores(ALL, PREDICTIONS, REFERENCES))
    metrics.reset()
    metrics.update(PREDICTIONS[:1], [PREDICTIONS[:1]])
    assert metrics.compute()["rouge1"] == 1


def test_no_text_has_no_score():
    metric = TextScores(ALL)
    assert all(math.isnan(value) for value in text_scores(ALL, [], []).values())
    assert list(metric.compute()) == score_names(ALL) == ["rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"]


def _score_a_share(rank: int, port: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=2, rank=rank)
    metric = TextScores(ALL)
    if rank == 0:  # the other rank has no text at all
        metric.update(PREDICTIONS, REFERENCES)
    empty = metric.compute()
    metric.reset()
    metric.update(PREDICTIONS[rank::2], REFERENCES[rank::2])
    torch.save([empty, metric.compute()], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_ranks_have_the_scores_of_all_texts(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_score_a_share, (port, str(tmp_path)), nprocs=2)
    expected = text_scores(ALL, PREDICTIONS, REFERENCES)
    for rank in (0, 1):
        for scores in torch.load(tmp_path / f"{rank}.pt"):
            assert {name: value.item() for name, value in scores.items()} == pytest.approx(expected)
