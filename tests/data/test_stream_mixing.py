from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_hf.data.datamodule import LitDataModule
from lit_hf.data.sources import Source
from lit_hf.data.stream_mixing import MixedStream
from lit_hf.errors import InputError
from lit_hf.tasks import TextClassification

COUNTS = {"a": 40, "b": 11, "c": 23}


@pytest.fixture
def make(tmp_path: Path, tiny_text_model: Path) -> Callable[..., LitDataModule]:
    """Make the data of three streamed sources, one of which calls its column otherwise."""
    for name, count in COUNTS.items():
        column = "review" if name == "b" else "text"
        rows = [{column: f"{name} {row}" + " very" * (row % 5), "label": "good"} for row in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def make(weights: tuple[float, ...] = (3, 1, 2), only: str = "abc", **settings: Any) -> LitDataModule:
        sources = [
            Source(
                train=str(tmp_path / f"{name}.jsonl"),
                streaming=True,
                weight=weight,
                columns={"text": "review"} if name == "b" else None,
            )
            for name, weight in zip(only, weights, strict=False)
        ]
        task = TextClassification("text", "label", labels=["bad", "good"])
        settings = {"mixing": "interleave", "window_rows": 16, "batch_size": 4} | settings
        data = LitDataModule(task, sources, checkpoint=str(tiny_text_model), **settings)
        data.prepare("fit")
        return data

    return make


def rows(data: LitDataModule, place: Any = None) -> list[tuple[str, int]]:
    """Return the source and the number of each row, in the order of the stream."""
    assert isinstance(data.stream, MixedStream)
    texts = [text for window in data.stream.windows(place) for text in window.split.rows["text"]]
    return [(text.split()[0], int(text.split()[1])) for text in texts]


def test_rows_are_drawn_by_weight_each_source_in_its_own_order(make: Callable[..., LitDataModule]) -> None:
    found = rows(make())

    for name in COUNTS:
        numbers = [number for source, number in found if source == name]
        assert numbers == list(range(len(numbers)))
    counts = Counter(source for source, _ in found)
    assert any(counts[name] == count for name, count in COUNTS.items())  # that one ended it
    assert counts["a"] > counts["c"] > counts["b"] > 0
    assert found == rows(make())


def test_drawing_goes_on_until_all_rows_were_drawn(make: Callable[..., LitDataModule]) -> None:
    found = rows(make(stopping="all_exhausted"))

    assert set(found) == {(name, number) for name, count in COUNTS.items() for number in range(count)}
    for name, count in COUNTS.items():
        numbers = [number for source, number in found if source == name]
        assert numbers == [place % count for place in range(len(numbers))]
    last = found[-1][0]
    assert Counter(source for source, _ in found)[last] >= COUNTS[last]
    assert min(Counter(found).values()) == 1


def test_sources_that_are_concatenated_follow_each_other(make: Callable[..., LitDataModule]) -> None:
    data = make((1, 1, 1), mixing="concatenate")

    assert rows(data) == [(name, number) for name, count in COUNTS.items() for number in range(count)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"stopping": "all_exhausted"}, {"mixing": "concatenate", "weights": (1, 1, 1)}],
    ids=["first", "all", "one after the other"],
)
def test_the_stream_goes_on_from_any_window_as_if_it_had_not_stopped(
    make: Callable[..., LitDataModule], settings: dict[str, Any]
) -> None:
    data = make(**settings)
    whole = rows(data)
    assert data.stream is not None
    places = [window.place for window in data.stream.windows()]

    assert len(places) > 3
    for place in places:
        kept = json.loads(json.dumps(place._asdict()))
        assert rows(make(**settings), type(place)(**kept)) == whole[place.row :]


def test_batches_go_on_behind_any_batch(make: Callable[..., LitDataModule]) -> None:
    whole = [batch["input_ids"] for batch in make().train_dataloader()]

    for done in (1, 5, 9):
        data, before = make(), make()
        for _, _ in zip(range(done), before.train_dataloader(), strict=False):
            pass
        assert data.stream is not None and before.stream is not None
        data.stream.load_state_dict(before.stream.state_dict(done))
        loader = data.train_dataloader()
        loader.start = done
        rest = [batch["input_ids"] for batch in loader]
        assert len(rest) == len(whole) - done
        assert all(torch.equal(one, other) for one, other in zip(rest, whole[done:], strict=True))


def test_a_row_is_found_where_it_stands(make: Callable[..., LitDataModule], tmp_path: Path) -> None:
    data = make(stopping="all_exhausted")
    assert data.stream is not None

    for window in data.stream.windows():
        for row, text in enumerate(window.split.rows["text"]):
            name, number = text.split()[:2]
            assert window.split.place(row) == f"{tmp_path / name}.jsonl:{int(number) + 1}"


def test_sources_are_all_streamed_or_none(make: Callable[..., LitDataModule], tmp_path: Path) -> None:
    data = make()
    assert isinstance(data.source, list)
    mixed = [data.source[0], Source(train=str(tmp_path / "c.jsonl"))]
    again = LitDataModule(data.task, mixed, mixing="interleave", checkpoint=data.checkpoint)
    with pytest.raises(InputError, match=r"data\.source\[1\]\.streaming: the rows of other sources are streamed"):
        again.prepare("fit")
