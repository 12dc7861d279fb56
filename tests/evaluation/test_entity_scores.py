import random

import pytest
import torch
from seqeval.metrics import classification_report

from lit_hf.evaluation.entity_scores import EntityScores, tagging_metrics

IOB = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER", "B-ORG", "I-ORG"]
IOBES = ["O", *(f"{position}-{kind}" for position in "BIES" for kind in ("LOC", "PER"))]


def random_sentences(labels, generator, count):
    """Sentences of tag ids, and predictions of which most are right."""
    targets = [generator.choices(range(len(labels)), k=generator.randrange(1, 10)) for _ in range(count)]
    guess = [[tag if generator.random() < 0.7 else generator.randrange(len(labels)) for tag in row] for row in targets]
    return guess, targets


def padded(rows, generator, fill):
    """Put what is no word before, between and after the words."""
    gaps = [[generator.randrange(2) for _ in range(len(row) + 1)] for row in rows]
    return gaps, [spread(row, gap, fill) for row, gap in zip(rows, gaps, strict=True)]


def spread(row, gaps, fill, width=24):
    spaced = [tag for gap, tag in zip(gaps, row, strict=False) for tag in [*[fill] * gap, tag]]
    return spaced + [fill] * (width - len(spaced))


@pytest.mark.parametrize("labels", [IOB, IOBES], ids=["IOB2", "IOBES"])
def test_scores_of_several_batches_equal_seqeval_s(labels):
    generator = random.Random(1)
    metric, all_guesses, all_targets = EntityScores(labels), [], []
    for _ in range(5):
        guesses, targets = random_sentences(labels, generator, 40)
        gaps, target_rows = padded(targets, generator, -100)
        guess_rows = [spread(row, gap, 1) for row, gap in zip(guesses, gaps, strict=True)]
        metric.update(torch.tensor(guess_rows), torch.tensor(target_rows))
        all_guesses += [[labels[tag] for tag in row] for row in guesses]
        all_targets += [[labels[tag] for tag in row] for row in targets]
    values = metric.compute()
    report = classification_report(all_targets, all_guesses, output_dict=True, zero_division=0)
    expected = {"": report["micro avg"]} | {f"_{kind}": report[kind] for kind in metric.types}
    for suffix, row in expected.items():
        assert values[f"precision{suffix}"].item() == pytest.approx(row["precision"])
        assert values[f"recall{suffix}"].item() == pytest.approx(row["recall"])
        assert values[f"f1{suffix}"].item() == pytest.approx(row["f1-score"])
    assert values["entity_counts"][:, 2].tolist() == [report[kind]["support"] for kind in metric.types]


def test_counts_of_ranks_are_summed():
    assert EntityScores(IOB)._reductions["counts"].__name__ == "dim_zero_sum"


def test_accuracy_is_over_words_and_names_stand_as_they_are_logged():
    metrics = tagging_metrics(["O", "B-PER", "I-PER"])
    metrics.update(torch.tensor([[1, 2, 0, 0]]), torch.tensor([[1, -100, 2, 0]]))
    values = metrics.compute()
    assert values["accuracy"].item() == pytest.approx(2 / 3)
    assert set(values) == {
        *("accuracy", "precision", "recall", "f1", "precision_PER", "recall_PER", "f1_PER", "entity_counts")
    }
    assert values["f1"].item() == 0  # the entity has a word less than there should be


def test_tags_that_name_no_entities_have_an_accuracy_only():
    assert list(tagging_metrics(["NOUN", "VERB"])) == ["accuracy"]
