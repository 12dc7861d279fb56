from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset

from lit_hf.data.datamodule import LitDataModule
from lit_hf.data.sources import Source
from lit_hf.data.tokenization import TokenizerSettings, TokenizerTraining
from lit_hf.errors import InputError, TrainingError
from lit_hf.task import Examples
from lit_hf.tasks import CausalLM, Preference, TextClassification
from tests.data.conftest import Sorting
from tests.hub import Hub

ROWS = 53
WORDS = ("the", "film", "was", "very", "good")


def rows(count: int = ROWS) -> list[dict[str, Any]]:
    """Rows whose texts are all different, of 1 to 9 words, the last of which is their number."""
    return [
        {"text": " ".join([*(WORDS[(row + word) % 5] for word in range(row * 7 % 9)), str(row)]), "label": "good"}
        for row in range(count)
    ]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    """Four files of unequal numbers of rows."""
    bounds = [0, 5, 25, 26, ROWS]
    for shard, (start, stop) in enumerate(pairwise(bounds)):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows()[start:stop])
        (tmp_path / f"train-{shard}.jsonl").write_text(lines)
    return str(tmp_path / "train-*.jsonl")


@pytest.fixture
def make(shards: str, tiny_text_model: Path) -> Callable[..., LitDataModule]:
    def make(shard: tuple[int, int] = (0, 1), accumulate: int = 1, **settings: Any) -> LitDataModule:
        source = Source(**{"train": shards, "streaming": True, **settings.pop("source", {})})
        task = settings.pop("task", None) or TextClassification("text", "label", labels=["bad", "good"])
        settings = {"window_rows": 16, "batch_size": 4, "checkpoint": str(tiny_text_model)} | settings
        data = LitDataModule(task, source, **settings)
        data._shard = lambda: shard  # type: ignore[method-assign]
        data.prepare("fit")
        return data

    return make


def packed(make: Callable[..., LitDataModule], **settings: Any) -> LitDataModule:
    return make(task=CausalLM("text"), packing=True, batch_tokens=24, **settings)


def seen(batches: list[dict[str, Any]], data: LitDataModule) -> list[str]:
    """Return the texts in batches, without what a tokenizer does to them."""
    texts: list[str] = []
    for batch in batches:
        if "cu_seq_lens_q" in batch:
            bounds = batch["cu_seq_lens_q"].tolist()
            ids = [batch["input_ids"][0, start:stop] for start, stop in pairwise(bounds)]
        else:
            ids = list(batch["input_ids"])
        texts += [data.tokenizer.decode(one, skip_special_tokens=True) for one in ids][: batch["sizes"].rows]
    return texts


def texts_in_order(data: LitDataModule) -> list[str]:
    encode = data.tokenizer
    return [encode.decode(encode(row["text"])["input_ids"], skip_special_tokens=True) for row in rows()]


def expected(data: LitDataModule) -> list[str]:
    return sorted(texts_in_order(data))


def epoch(data: LitDataModule, number: int = 0, start: int = 0, accumulate: int = 1) -> list[dict[str, Any]]:
    loader = data.train_dataloader()
    loader.accumulate = accumulate
    loader.sampler.set_epoch(number)
    loader.start = start
    return list(loader)


def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    def plain(batch: dict[str, Any]) -> dict[str, Any]:
        return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}

    return list(map(plain, one)) == list(map(plain, other))


ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "shuffled": {"group_by_length": False},
    "tokens": {"batch_tokens": 40},
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_an_epoch_has_every_row_once(make: Callable[..., LitDataModule], arrangement: str) -> None:
    data = make(**ARRANGEMENTS[arrangement])

    first, second = epoch(data), epoch(data, number=1)

    assert sorted(seen(first, data)) == sorted(seen(second, data)) == expected(data)
    assert seen(first, data) != seen(second, data)


def test_batches_are_those_of_the_window_s_rows_alone(make: Callable[..., LitDataModule]) -> None:
    data = make()
    batches = epoch(data)

    first, second = sorted(seen(batches[:4], data)), sorted(seen(batches[4:8], data))

    whole = texts_in_order(data)
    assert (first, second) == (sorted(whole[:16]), sorted(whole[16:32]))
    assert seen(batches[:4], data) != whole[:16]


def test_packed_rows_are_all_there_once_and_fit(make: Callable[..., LitDataModule]) -> None:
    data = packed(make)

    batches = epoch(data)

    assert sorted(seen(batches, data)) == expected(data)
    assert max(batch["input_ids"].numel() for batch in batches) <= 24


@pytest.mark.parametrize("arrangement", ["grouped", "tokens"])
def test_the_ranks_together_see_every_row_in_as_many_batches(
    make: Callable[..., LitDataModule], arrangement: str
) -> None:
    ranks = [epoch(make(shard=(rank, 2), **ARRANGEMENTS[arrangement])) for rank in range(2)]

    data = make()
    assert len(ranks[0]) == len(ranks[1])
    assert sorted([text for batches in ranks for text in seen(batches, data)]) == expected(data)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("kind", ["grouped", "tokens", "packed"])
def test_any_batch_can_be_gone_on_from(make: Callable[..., LitDataModule], kind: str, accumulate: int) -> None:
    def fresh() -> LitDataModule:
        return packed(make) if kind == "packed" else make(**ARRANGEMENTS[kind])

    whole, data, states = epoch(fresh(), 1, accumulate=accumulate), fresh(), []
    loader = data.train_dataloader()
    loader.accumulate = accumulate
    loader.set_epoch(1)
    for done, _ in enumerate(loader, start=1):
        states.append((done, json.loads(json.dumps(data.stream.state_dict(done)))))

    for done, state in states:
        if done % accumulate == 0:
            resumed = fresh()
            resumed.load_state_dict({"stream": state})
            assert equal(epoch(resumed, 1, done, accumulate), whole[done:])
            assert equal(epoch(resumed, 2), epoch(data, 2))


def test_a_loaded_place_is_gone_on_from_although_the_pass_was_begun_before(
    make: Callable[..., LitDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    batches = list(data.train_dataloader())
    state, resumed, begun = data.stream.state_dict(9), make(), []
    loader, windows = resumed.train_dataloader(), resumed.stream.windows
    resumed.load_state_dict({"stream": state})
    next(iter(loader))  # Lightning reads a batch before the position is known
    monkeypatch.setattr(resumed.stream, "windows", lambda place: begun.append(place) or windows(place))

    loader.start = 9

    assert equal(list(loader), batches[9:])
    assert [place.window for place in begun] == [2]


def test_a_place_does_not_grow_and_at_most_a_window_is_read_before_it(make: Callable[..., LitDataModule]) -> None:
    data, sizes = make(), []
    for done, _ in enumerate(data.train_dataloader(), start=1):
        state = data.stream.state_dict(done)
        sizes.append(len(json.dumps(state)))
        assert done - state["batch"] <= 4
        assert state["row"] == 16 * state["window"]

    assert max(sizes) < 1.3 * sizes[0]


def test_a_step_s_targets_are_counted_across_windows(make: Callable[..., LitDataModule]) -> None:
    batches = epoch(make(), accumulate=3)

    sizes = [batch["sizes"] for batch in batches]
    steps = [sizes[start : start + 3] for start in range(0, len(sizes), 3)]
    assert [size.step_targets for size in sizes] == [sum(one.targets for one in step) for step in steps for _ in step]


@pytest.mark.parametrize("kind", ["csv", "parquet", "txt"])
def test_files_of_other_kinds_are_streamed(make: Callable[..., LitDataModule], tmp_path: Path, kind: str) -> None:
    for start, stop in ((0, 20), (20, ROWS)):
        part, path = Dataset.from_list(rows()[start:stop]), tmp_path / f"{start:02}.{kind}"
        if kind == "txt":
            path.write_text("".join(f"{text}\n" for text in part["text"]))
        else:
            getattr(part, f"to_{kind}")(path)

    source = {"train": str(tmp_path / f"*.{kind}")}
    data = packed(make, source=source) if kind == "txt" else make(source=source)

    assert sorted(seen(epoch(data), data)) == expected(data)


def test_a_limit_takes_the_first_rows(make: Callable[..., LitDataModule]) -> None:
    data = make(source={"limit": {"train": 20}})

    batches = epoch(data)

    assert sum(batch["sizes"].rows for batch in batches) == 20
    assert {int(text.split()[-1]) for text in seen(batches, data) if text.split()[-1].isdigit()} <= set(range(20))


def test_columns_are_renamed_and_other_splits_are_loaded_whole(
    make: Callable[..., LitDataModule], tmp_path: Path
) -> None:
    (tmp_path / "held.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows(9)))
    task = TextClassification("words", "label", labels=["bad", "good"])

    data = make(task=task, source={"columns": {"words": "text"}, "validation": str(tmp_path / "held.jsonl")})

    assert len(epoch(data)) == 14
    assert len(data.splits["validation"].rows) == 9
    assert sum(batch["sizes"].rows for batch in data.val_dataloader()) == 9


def test_a_fault_beyond_the_first_window_ends_training_and_names_the_row(
    make: Callable[..., LitDataModule], tmp_path: Path
) -> None:
    lines = (tmp_path / "train-1.jsonl").read_text().splitlines()
    lines[17] = json.dumps({"text": "  ", "label": "good"})
    (tmp_path / "train-1.jsonl").write_text("\n".join(lines))
    batches = iter(make().train_dataloader())

    with pytest.raises(TrainingError) as caught:
        list(batches)

    (problem,) = caught.value.problems
    assert problem.where == f"{tmp_path / 'train-1.jsonl'}:18"
    assert problem.what == "column 'text': the text is missing or empty."


class Slow(TextClassification):
    """Takes its time to encode what is not in the first window."""

    pause = 0.0
    used: ClassVar[list[Any]] = []

    def encode(self, examples: Examples) -> Examples:
        time.sleep(Slow.pause)
        Slow.used.append(self.tokenizer)
        return super().encode(examples)


def slow(monkeypatch: pytest.MonkeyPatch, make: Callable[..., LitDataModule], pause: float = 0.3) -> LitDataModule:
    data = make(task=Slow("text", "label", labels=["bad", "good"]))
    monkeypatch.setattr(Slow, "pause", pause)
    return data


def window_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("windows")]


def test_a_window_is_encoded_while_the_one_before_is_trained_on(
    make: Callable[..., LitDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = slow(monkeypatch, make).train_dataloader()

    for _ in loader:
        time.sleep(0.15)  # 4 batches a window

    assert loader.seconds_waited < 3 * Slow.pause  # which the windows behind the first take


def test_what_is_encoded_ahead_has_no_place_yet(
    make: Callable[..., LitDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, data, states = make(), slow(monkeypatch, make), []
    expected = [quick.stream.state_dict(done) for done, _ in enumerate(quick.train_dataloader(), start=1)]
    for done, _ in enumerate(data.train_dataloader(), start=1):
        time.sleep(0.1)
        states.append(data.stream.state_dict(done))

    assert states == expected
    assert [state["window"] for state in states] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_the_thread_ends_with_the_iteration_and_another_one_starts_anew(
    make: Callable[..., LitDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = slow(monkeypatch, make)
    batches: Iterator[Any] = iter(data.train_dataloader())
    next(batches)
    assert len(window_threads()) == 1

    del batches

    assert window_threads() == []
    assert sorted(seen(epoch(data), data)) == expected(data)
    assert window_threads() == []


def test_the_thread_has_a_tokenizer_of_its_own(
    make: Callable[..., LitDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = slow(monkeypatch, make, pause=0.0)
    monkeypatch.setattr(Slow, "used", [])

    epoch(data)

    assert len(Slow.used) == 3
    assert all(tokenizer is not data.tokenizer for tokenizer in Slow.used)


def test_a_fault_ahead_is_told_once_its_window_is_reached(make: Callable[..., LitDataModule], tmp_path: Path) -> None:
    lines = (tmp_path / "train-1.jsonl").read_text().splitlines()
    lines[17] = json.dumps({"text": "  ", "label": "good"})  # row 22, in the second window
    (tmp_path / "train-1.jsonl").write_text("\n".join(lines))
    taken: list[Any] = []

    with pytest.raises(TrainingError, match=r"train-1\.jsonl:18"):
        for batch in make().train_dataloader():
            taken.append(batch)

    assert len(taken) == 4


def test_a_fault_in_the_first_window_is_told_before_training(
    make: Callable[..., LitDataModule], tmp_path: Path
) -> None:
    (tmp_path / "train-0.jsonl").write_text(f"{json.dumps({'text': '', 'label': 'good'})}\n")

    with pytest.raises(InputError, match=r"train-0\.jsonl:1: column 'text': the text is missing or empty"):
        make()


def test_a_file_that_breaks_off_is_named_with_its_line(make: Callable[..., LitDataModule], tmp_path: Path) -> None:
    with (tmp_path / "train-3.jsonl").open("a") as file:
        file.write('{"text": "the fi')
    data = make()

    with pytest.raises(TrainingError) as caught:
        epoch(data)

    assert caught.value.problems[0].where == f"{tmp_path / 'train-3.jsonl'}:28"


def test_a_row_longer_than_a_batch_ends_training(make: Callable[..., LitDataModule], tmp_path: Path) -> None:
    with (tmp_path / "train-3.jsonl").open("a") as file:
        file.write(json.dumps({"text": "the film " * 20, "label": "good"}))
    data = make(batch_tokens=40)

    with pytest.raises(TrainingError, match="the longest training row takes 42 tokens, a batch has 40"):
        epoch(data)


def test_what_a_task_learns_from_all_rows_must_be_told(make: Callable[..., LitDataModule]) -> None:
    for task in (
        TextClassification("text", "label"),
        TextClassification("text", "label", labels=["bad", "good"], class_weights="balanced"),
        Sorting(),
    ):
        with pytest.raises(InputError, match=r"data\.source\.streaming: what the task learns from all training rows"):
            make(task=task)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"tokenizer": TokenizerSettings(train=TokenizerTraining(400))}, "data.tokenizer.train: a tokenizer is"),
        ({"packing": True, "task": CausalLM("text")}, "data.batch_tokens: rows are packed to as many tokens"),
        ({"window_rows": 0}, "data.window_rows: 0 is too small."),
        ({"source": {"generator": rows, "train": None}}, "rows of a generator are not streamed"),
    ],
)
def test_what_cannot_be_done_with_a_stream_is_refused(
    make: Callable[..., LitDataModule], settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError) as caught:
        make(**settings)

    assert told in str(caught.value)


def test_streams_are_mixed_with_streams_only(
    make: Callable[..., LitDataModule], shards: str, tiny_text_model: Path
) -> None:
    sources = [Source(train=shards, streaming=True), Source(train=shards)]
    task = TextClassification("text", "label", labels=["bad", "good"])

    with pytest.raises(InputError, match=r"data\.source\[1\]\.streaming: the rows of other sources are streamed"):
        LitDataModule(task, sources, checkpoint=str(tiny_text_model)).prepare("fit")


@pytest.fixture
def on_hub(hub: Hub, tmp_path: Path) -> Hub:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, start, stop in (("train-00000-of-00002", 0, 30), ("train-00001-of-00002", 30, ROWS), ("test", 0, 9)):
        Dataset.from_list(rows()[start:stop]).to_parquet(folder / f"{name}.parquet")
    hub.add_dataset("someone/reviews", folder)
    return hub


def test_a_repository_of_the_hub_is_streamed(make: Callable[..., LitDataModule], on_hub: Hub) -> None:
    source = {"path": "someone/reviews", "train": None, "validation": "test", "limit": {"validation": 7}}
    data = make(source=source, window_rows=5)

    assert sorted(seen(epoch(data), data)) == expected(data)
    assert len(data.splits["validation"].rows) == 7
    assert data.splits["validation"].place(6) == "someone/reviews test row 6"
    assert make(source=source, window_rows=5).fingerprints == data.fingerprints
    state = data.stream.state_dict(9)
    resumed = make(source=source, window_rows=5)
    resumed.load_state_dict({"stream": state})
    assert equal(epoch(resumed, start=9), epoch(data)[9:])


def test_a_part_of_a_split_is_no_stream(make: Callable[..., LitDataModule], on_hub: Hub) -> None:
    with pytest.raises(InputError, match=r"data\.source\.train: 'train\[:10%\]' is a part of a split"):
        make(source={"path": "someone/reviews", "train": "train[:10%]"})


def test_each_pair_of_a_packed_stream_is_there_once(make: Callable[..., LitDataModule], tmp_path: Path) -> None:
    pairs = [{"prompt": row["text"], "chosen": "very good", "rejected": f"the film {row['text']}"} for row in rows()]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    source = {"train": str(tmp_path / "pairs.jsonl")}
    data = make(task=Preference(loss="orpo"), source=source, packing=True, batch_tokens=96)

    batches = epoch(data)

    found = []
    for batch in batches:
        bounds = batch["cu_seq_lens_q"].tolist()
        sides = [batch["input_ids"][0, start:stop].tolist() for start, stop in pairwise(bounds)]
        half = len(sides) // 2
        found += list(zip(sides[:half], sides[half:], strict=True))
    whole = data.task.encode({name: [pair[name] for pair in pairs] for name in pairs[0]})
    rows_of = zip(whole["input_ids"], whole["chosen_length"], strict=True)
    assert sorted(found) == sorted((ids[:length], ids[length:]) for ids, length in rows_of)
    assert sum(batch["sizes"].rows for batch in batches) == ROWS > 2 * len(batches)
    assert max(batch["input_ids"].numel() for batch in batches) <= 96
