import io
import random
import re
import string
from collections import Counter
from itertools import pairwise

import pytest
import torch
import torch.multiprocessing as mp
from rich.console import Console
from torchmetrics.text import SQuAD

from lit_hf.evaluation.spans import Reading, Span, Window
from lit_hf.evaluation.squad import SquadScorer, best_threshold, normalize_answer, score_answer, squad_report

WORDS = ["the", "a", "Ada", "Lovelace", "ada,", "1843", "An", "engine", "engine's", "U.S.", "—", "naïve", "  "]


# the official scorers, written down by hand


def official_normalize(text):
    kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def official_f1(prediction, truth, version):
    predicted, right = official_normalize(prediction).split(), official_normalize(truth).split()
    if version == 2 and (len(predicted) == 0 or len(right) == 0):
        return int(predicted == right)
    same = sum((Counter(predicted) & Counter(right)).values())
    if same == 0:
        return 0
    precision, recall = 1.0 * same / len(predicted), 1.0 * same / len(right)
    return (2 * precision * recall) / (precision + recall)


def official_scores(prediction, truths, version):
    if version == 2:
        truths = [truth for truth in truths if official_normalize(truth)] or [""]
    exact = max(int(official_normalize(prediction) == official_normalize(truth)) for truth in truths)
    return exact, max(official_f1(prediction, truth, version) for truth in truths)


def official_best_threshold(predictions, scores, differences, has_answer):
    current = best = sum(not known for known in has_answer)
    threshold = None
    for index in sorted(range(len(scores)), key=lambda index: differences[index]):
        if has_answer[index]:
            current += scores[index]
        else:
            current += -1 if predictions[index] else 0
        if current > best:
            best, threshold = current, differences[index]
    return 100.0 * best / len(scores), threshold


def random_text(source, least=1):
    return " ".join(source.choices(WORDS, k=source.randint(least, 5)))


def questions(version, number=300):
    source = random.Random(version)
    for _ in range(number):
        truths = [random_text(source) for _ in range(source.randint(0 if version == 2 else 1, 3))]
        yield random_text(source, least=0 if version == 2 else 1), truths


# tests


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel-Tower!", "eiffeltower"),
        ("an apple, a day", "apple day"),
        ("theatre", "theatre"),
        ("“the”", "“ ”"),
        ("the", ""),
    ],
)
def test_normalization(text, normal):
    assert normalize_answer(text) == official_normalize(text) == normal


@pytest.mark.parametrize("version", [1, 2])
def test_scores_of_an_answer_are_the_official_ones(version):
    rows = list(questions(version))
    ours = [score_answer(prediction, truths, unanswerable=version == 2) for prediction, truths in rows]
    official = [official_scores(prediction, truths, version) for prediction, truths in rows]
    assert [scores.exact_match for scores in ours] == [exact for exact, _ in official]
    assert [scores.f1 for scores in ours] == pytest.approx([f1 for _, f1 in official])
    assert 0 < sum(scores.exact_match for scores in ours) < sum(scores.f1 for scores in ours) < len(rows)


def window(row, answers):
    return Window(row, 0, 1, None, "", answers)


def reading(text, score=0.0, null=-1.0):
    return Reading(null, [Span(score, 0, len(text), text)])


def test_version_1_equals_torchmetrics_squad():
    scorer, other = SquadScorer(), SQuAD()
    for row, (prediction, truths) in enumerate(questions(1, 60)):
        scorer.update([window(row, truths)], [reading(prediction)])
        answers = {"text": truths, "answer_start": [0] * len(truths)}
        other.update([{"id": str(row), "prediction_text": prediction}], [{"id": str(row), "answers": answers}])
    ours, theirs = scorer.compute(), other.compute()
    assert ours["exact_match"].item() == pytest.approx(theirs["exact_match"].item(), rel=1e-6)
    assert ours["f1"].item() == pytest.approx(theirs["f1"].item(), rel=1e-6)
    assert ours["questions"].item() == 60


def test_version_2_equals_the_official_scorer():
    source, scorer, rows = random.Random(0), SquadScorer(unanswerable=True, threshold=0.5), list(questions(2))
    differences = [source.gauss(0, 2) for _ in rows]
    for row, ((prediction, truths), difference) in enumerate(zip(rows, differences, strict=True)):
        scorer.update([window(row, truths)], [reading(prediction, score=-difference, null=0.0)])
    values = {name: value.item() for name, value in scorer.compute().items()}

    said = ["" if difference > 0.5 else text for (text, _), difference in zip(rows, differences, strict=True)]
    official = [official_scores(text, truths, 2) for text, (_, truths) in zip(said, rows, strict=True)]
    for prefix, kinds in {"": (True, False), "answerable_": (True,), "unanswerable_": (False,)}.items():
        part = [scores for scores, (_, truths) in zip(official, rows, strict=True) if bool(truths) in kinds]
        assert values[f"{prefix}questions"] == len(part)
        assert values[f"{prefix}exact_match"] == pytest.approx(100 * sum(exact for exact, _ in part) / len(part))
        assert values[f"{prefix}f1"] == pytest.approx(100 * sum(f1 for _, f1 in part) / len(part), rel=1e-6)


def test_the_best_threshold_is_the_official_one():
    source = random.Random(1)
    # an answer of articles only is "no answer" to some parts of the official scorer, and an answer to others
    rows = [
        (text, truths) for text, truths in questions(2) if all(map(normalize_answer, [*filter(None, [text]), *truths]))
    ]
    predictions, truths = zip(*rows, strict=True)
    scores = [official_scores(*row, 2)[1] for row in rows]
    silent = [official_scores("", right, 2)[1] for right in truths]
    differences = [source.gauss(-1 if right else 1, 2) for right in truths]
    best, threshold = best_threshold(differences, scores, silent)
    assert (100 * best, threshold) == pytest.approx(
        official_best_threshold(predictions, scores, differences, list(map(bool, truths)))
    )
    assert min(differences) < threshold < max(differences)


def test_a_threshold_that_silences_all_is_below_every_difference():
    assert best_threshold([2.0, 3.0], [0.0, 0.0], [1.0, 1.0]) == (1.0, 1.0)


def test_windows_of_a_row_are_merged_in_whichever_batch_and_order_they_come():
    scorer = SquadScorer(unanswerable=True)
    scorer.update([window(0, ["Ada"]), window(1, [])], [reading("1843", 1.0, 5.0), reading("it", 1.0, 2.0)])
    scorer.update([window(1, []), window(0, ["Ada"])], [reading("in", 0.0, 3.0), reading("Ada", 3.0, 2.0)])
    values = {name: value.item() for name, value in scorer.compute().items()}
    assert (values["questions"], values["exact_match"], values["answerable_f1"]) == (2, 100.0, 100.0)
    scorer.reset()
    scorer.update([window(0, ["Ada"])], [reading("1843")])
    assert scorer.compute()["exact_match"].item() == 0.0


def test_no_rows_have_no_score():
    assert SquadScorer().compute()["f1"].isnan()


def _score_on_a_rank(rank, address, results):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    scorer = SquadScorer()
    # the right window of row 0 lies on rank 1; row 2 on rank 0 only
    parts = [
        [(0, "wrong", 1.0, ["Ada"]), (2, "engine", 0.0, ["engine"])],
        [(0, "Ada", 2.0, ["Ada"]), (1, "no", 0.0, ["1843"])],
    ]
    for row, text, score, answers in parts[rank]:
        scorer.update([window(row, answers)], [reading(text, score)])
    results[rank] = {name: value.item() for name, value in scorer.compute().items()}
    torch.distributed.destroy_process_group()


def test_windows_are_merged_over_ranks(tmp_path):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_score_on_a_rank, (f"file://{tmp_path}/ranks", results), nprocs=2)
        both = [results[0], results[1]]
    assert all(one == other for one, other in pairwise(both))
    assert both[0]["questions"] == 3
    assert both[0]["exact_match"] == pytest.approx(200 / 3)


def test_the_report_tells_answerable_from_unanswerable_questions():
    scorer = SquadScorer(unanswerable=True)
    scorer.update([window(0, ["Ada"]), window(1, [])], [reading("Ada", 3.0), reading("it", 1.0, 0.0)])
    results = {name: value.tolist() for name, value in scorer.compute().items()}
    console = Console(width=100, record=True, file=io.StringIO())
    for part in squad_report(results, 0.0):
        console.print(part)
    shown = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert "answerable 1 100.00 100.00" in shown
    assert "unanswerable 1 0.00 0.00" in shown
    assert "all 2 50.00 50.00" in shown
    assert "best F1 100.00 (with task.null_threshold -4.00; here it is 0.00)" in shown
