from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import interleave_datasets

from lit_hf.data.mixing import load_mixed, unused_settings
from lit_hf.data.order import BatchOrder
from lit_hf.data.sources import SAMPLING_SEED, Source, Split
from lit_hf.errors import InputError

Write = Callable[..., str]
COLUMNS = ["text", "label"]


@pytest.fixture
def reviews(write_jsonl: Write) -> str:
    return write_jsonl("reviews.jsonl", [{"review": f"r{row}", "stars": row % 2, "id": row} for row in range(30)])


@pytest.fixture
def films(write_jsonl: Write) -> str:
    return write_jsonl("films.jsonl", [{"text": f"f{row}", "label": row % 2, "id": f"x{row}"} for row in range(12)])


@pytest.fixture
def sources(films: str, reviews: str) -> list[Source]:
    return [
        Source(train=films, validation_share=0),
        Source(train=reviews, columns={"text": "review", "label": "stars"}, validation_share=0, weight=3),
    ]


def mix(sources: list[Source], *names: str, **settings: object) -> dict[str, Split]:
    return load_mixed(sources, names or ("train",), COLUMNS, **settings)


def problems(sources: list[Source], *names: str, **settings: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        mix(sources, *names, **settings)
    return [f"{problem.where}: {problem.what} {problem.cure}".strip() for problem in caught.value.problems]


def check_places(split: Split, films: str, reviews: str) -> None:
    files = {"f": films, "r": reviews}
    for row, text in enumerate(split.rows["text"]):
        assert split.place(row) == f"{files[text[0]]}:{int(text[1:]) + 1}"


def test_sources_follow_each_other_with_the_columns_of_the_task_alone(sources: list[Source]) -> None:
    sources[1].weight = 1.0

    rows = mix(sources)["train"].rows

    assert rows.column_names == COLUMNS
    assert rows["text"][:] == [*(f"f{row}" for row in range(12)), *(f"r{row}" for row in range(30))]
    assert rows["label"][:] == [row % 2 for row in [*range(12), *range(30)]]


@pytest.mark.parametrize("stopping", ["first_exhausted", "all_exhausted"])
def test_rows_are_drawn_as_datasets_draws_them(sources: list[Source], stopping: str) -> None:
    one, two = (
        mix([Source(train=each.train, columns=each.columns, validation_share=0)])["train"].rows for each in sources
    )
    expected = interleave_datasets([one, two], [0.25, 0.75], seed=SAMPLING_SEED, stopping_strategy=stopping)

    rows = mix(sources, mixing="interleave", stopping=stopping)["train"].rows

    assert rows[:] == expected[:]
    drawn = Counter(rows["text"])
    assert (len(drawn) == 42) == (stopping == "all_exhausted")


def test_the_weights_are_the_shares(write_jsonl: Write) -> None:
    files = [write_jsonl(f"{name}.jsonl", [{"text": name, "label": 0}] * 3000) for name in "ab"]

    rows = mix(
        [Source(train=file, weight=weight, validation_share=0) for file, weight in zip(files, (4, 1), strict=True)],
        mixing="interleave",
    )["train"].rows

    assert Counter(rows["text"])["b"] / len(rows) == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("mixing", ["concatenate", "interleave"])
def test_places_are_right_after_mixing_cut_and_limit(films: str, reviews: str, mixing: str) -> None:
    sources = [
        Source(train=films, validation_share=0.25),
        Source(train=reviews, columns={"text": "review", "label": "stars"}, limit=7, validation_share=0.5),
    ]

    splits = mix(sources, "train", "validation", mixing=mixing, stopping="all_exhausted")

    assert len(splits["validation"].rows) == 3 + 7
    texts = splits["train"].rows["text"][:]
    assert len(set(texts)) == 9 + 7
    for split in splits.values():
        check_places(split, films, reviews)
    assert set(texts).isdisjoint(splits["validation"].rows["text"])


def test_validation_and_test_are_all_rows_of_the_sources_that_have_them(sources: list[Source], films: str) -> None:
    sources[0].validation = films
    sources[0].test = sources[1].test = films
    sources[1].columns = None
    sources[1].train = films

    splits = mix(sources, "train", "validation", "test", mixing="interleave")

    assert len(splits["validation"].rows) == 12
    assert len(splits["test"].rows) == 24
    assert splits["test"].rows["text"][:] == [f"f{row}" for row in [*range(12), *range(12)]]


def test_a_split_that_no_source_has_is_left_out(sources: list[Source]) -> None:
    assert set(mix(sources, "train", "validation", "test", mixing="interleave")) == {"train"}


def test_an_optional_column_is_kept_and_null_where_it_is_not(sources: list[Source], films: str) -> None:
    sources[1].weight = 1

    rows = load_mixed(sources, ["train"], COLUMNS, ["stars", "review", "id2"])["train"].rows
    assert rows.column_names == COLUMNS

    sources[1].columns = {"text": "review", "label": "stars", "weight": "id"}
    rows = load_mixed(sources, ["train"], COLUMNS, ["weight"])["train"].rows
    assert rows["weight"][10:14] == [None, None, 0, 1]


def test_values_inside_of_objects_are_columns(write_jsonl: Write) -> None:
    pair = write_jsonl("pairs.jsonl", [{"translation": {"en": "dog", "de": "Hund"}}])
    flat = write_jsonl("flat.jsonl", [{"english": "cat"}])
    sources = [
        Source(train=pair, validation_share=0),
        Source(train=flat, columns={"translation.en": "english"}, validation_share=0),
    ]

    assert load_mixed(sources, ["train"], ["translation.en"])["train"].rows[:] == {"translation.en": ["dog", "cat"]}


def test_all_faults_of_all_sources_are_told_with_their_keys(films: str) -> None:
    sources = [Source(train="nowhere.jsonl"), Source(), Source(train=films, name="sst2", limit=0)]

    found = problems(sources)

    assert [problem.partition(": ")[0] for problem in found] == [
        "data.source[0].train",
        "data.source[1]",
        "data.source[2].name",
        "data.source[2].limit",
    ]
    assert "data.source[1].train: rows.jsonl" in found[1]


def test_a_fault_in_a_file_keeps_its_line(films: str, write_jsonl: Write) -> None:
    broken = write_jsonl("broken.jsonl", [{"text": "a"}])
    with Path(broken).open("a") as file:
        file.write('{"text": \n')

    (problem,) = problems([Source(train=films), Source(train=broken)])

    assert problem.startswith(f"{broken}:2: ")
    assert "data.source[1].train" in problem


def test_a_missing_column_is_told_with_source_line_and_map(sources: list[Source], reviews: str) -> None:
    sources[1].columns = {"label": "stars"}

    (problem,) = problems(sources, mixing="interleave")

    assert problem == (
        f"data.source[1].train: {reviews}:1 has no column 'text', which the task reads. "
        "Map it: data.source[1].columns. There is: id, label, review."
    )


def test_a_wrong_map_is_told_with_its_source(sources: list[Source]) -> None:
    sources[1].columns = {"text": "revew"}

    (problem,) = problems(sources, mixing="interleave")

    assert problem.startswith("data.source[1].columns.text: there is no column 'revew'")
    assert "Did you mean 'review'?" in problem


def test_labels_of_another_kind_are_told_with_both_sources(sources: list[Source], films: str, reviews: str) -> None:
    sources[1].columns = {"text": "review", "label": "review"}

    (problem,) = problems(sources, mixing="interleave")

    assert problem.startswith(
        f"data.source[1].train: column 'label' holds text ({reviews}:1: 'r0'), "
        f"but in data.source[0].train numbers ({films}:1: 0)."
    )


def test_a_weight_that_does_nothing_is_told(sources: list[Source]) -> None:
    (problem,) = problems(sources)

    assert problem.startswith("data.source[1].weight: where sources are concatenated")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_above_zero(sources: list[Source], weight: float) -> None:
    sources[0].weight = weight

    (problem,) = problems(sources, mixing="interleave")

    assert problem.startswith("data.source[0].weight: ")


def test_an_empty_list_is_told() -> None:
    assert problems([]) == ["data.source: the list is empty. Name at least one source."]


def test_the_log_tells_how_many_rows_are_of_which_source(
    sources: list[Source], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lit_hf")

    rows = mix(sources, mixing="interleave")["train"].rows

    counts = Counter(text[0] for text in rows["text"])
    assert caplog.messages[-1] == (
        f"train: {len(rows)} rows, {counts['f']} of data.source[0], {counts['r']} of data.source[1]"
    )


SCRIPT = """
import json, sys
from lit_hf.data.mixing import load_mixed, unused_settings
from lit_hf.data.sources import Source
sources = [Source(**settings) for settings in json.loads(sys.argv[1])]
print(load_mixed(sources, ["train"], ["text", "label"], mixing="interleave")["train"].rows._fingerprint)
"""


def test_the_fingerprint_is_the_same_in_another_process_and_follows_the_weights(sources: list[Source]) -> None:
    settings = json.dumps([{**vars(source), "generator": None} for source in sources])
    there = subprocess.run([sys.executable, "-c", SCRIPT, settings], capture_output=True, text=True, check=True).stdout

    here = mix(sources, mixing="interleave")["train"].rows._fingerprint
    sources[0].weight = 2

    assert there.strip() == here
    assert mix(sources, mixing="interleave")["train"].rows._fingerprint != here


def test_two_ranks_together_train_on_all_mixed_rows(sources: list[Source]) -> None:
    rows = mix(sources, mixing="interleave", stopping="all_exhausted")["train"].rows

    orders = [BatchOrder([1] * len(rows), 4, "shuffled", 0, rank, 2) for rank in range(2)]

    seen = Counter(index for order in orders for batch in order for index in batch)
    assert set(seen) == set(range(len(rows)))
    assert max(seen.values()) == 1


def test_what_does_nothing_with_these_sources_is_told() -> None:
    one, streamed = Source(train="a.jsonl"), Source(train="b.jsonl", streaming=True)
    assert not [*unused_settings(one, "concatenate", "first_exhausted", 4096)]
    assert not [*unused_settings([one, one], "interleave", "all_exhausted", 4096)]
    assert not [*unused_settings(streamed, "concatenate", "first_exhausted", 7)]
    told = list(unused_settings(Source(train="a.jsonl", weight=2.0), "interleave", "all_exhausted", 7))
    assert [line.partition(":")[0] for line in told] == [
        "data.mixing (interleave)",
        "data.source.weight (2)",
        "data.stopping (all_exhausted)",
        "data.window_rows (7)",
    ]
    assert [*unused_settings([one, one], "concatenate", "all_exhausted", 4096)]
