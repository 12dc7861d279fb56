import random

import pytest
from rich.console import Console
from seqeval.metrics.sequence_labeling import get_entities

from lit_hf.evaluation.entities import Entity, entity_table, entity_types, find_entities, scores, split_tag

TAGS = ["O", *(f"{position}-{kind}" for position in "BIES" for kind in ("PER", "LOC", "B-IO")), "B", "I"]


def test_entities_equal_seqeval_s_over_random_tags():
    generator = random.Random(0)
    for _ in range(5000):
        tags = generator.choices(TAGS, k=generator.randrange(1, 12))
        expected = [(kind, start, end + 1) for kind, start, end in get_entities(tags)]
        assert [tuple(entity) for entity in find_entities(tags)] == expected, tags


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ([], []),
        (["O", "O"], []),
        (["B-PER", "I-PER", "O", "B-LOC"], [("PER", 0, 2), ("LOC", 3, 4)]),
        (["B-PER", "B-PER"], [("PER", 0, 1), ("PER", 1, 2)]),
        (["I-PER", "I-LOC"], [("PER", 0, 1), ("LOC", 1, 2)]),
        (["B-PER", "E-PER", "I-PER", "S-LOC"], [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4)]),
        (["B", "I", "O", "B"], [("_", 0, 2), ("_", 3, 4)]),
    ],
)
def test_tags_become_entities(tags, entities):
    assert list(find_entities(tags)) == [Entity(*entity) for entity in entities]


def test_tags_that_name_no_entities_are_outside():
    assert [split_tag(tag) for tag in ("O", "NOUN", "IN", "BX", "E")] == [("O", "")] * 4 + [("E", "_")]
    assert entity_types(["NOUN", "VERB", "IN"]) == []
    assert list(find_entities(["NOUN", "VERB"])) == []


def test_types_are_sorted_and_may_have_dashes():
    assert entity_types(["O", "B-PER", "I-PER", "B-B-IO", "S-LOC"]) == ["B-IO", "LOC", "PER"]


def test_scores_without_a_denominator_are_zero():
    assert scores(1, 2, 4) == (0.5, 0.25, pytest.approx(1 / 3))
    assert scores(0, 0, 0) == (0, 0, 0)


def test_the_table_has_a_line_for_each_type():
    console = Console(width=100)
    with console.capture() as shown:
        console.print(entity_table([[3, 4, 6], [0, 0, 2]], ["LOC", "PER"]))
    location, person = (line.split() for line in shown.get().splitlines() if line.split()[:1] in (["LOC"], ["PER"]))
    assert location == ["LOC", "0.750", "0.500", "0.600", "6", "4", "3"]
    assert person == ["PER", "0.000", "0.000", "0.000", "2", "0", "0"]
