from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from lit_hf.data.sources import Source
from lit_hf.data.stream_sources import FeaturesAlone, load_streamed, streaming_problems
from lit_hf.errors import InputError
from tests.hub import Hub

NAMES = ("train", "validation")


def rows(count: int) -> list[dict]:
    return [{"pair": {"text": f"row {row}"}, "label": row % 2} for row in range(count)]


def refused(source: Source) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_streamed(source, NAMES, ["text"], 4)
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def test_the_first_window_stands_for_the_training_rows_and_others_are_loaded_whole(
    write_jsonl: Callable[..., str],
) -> None:
    source = Source(
        train=write_jsonl("train.jsonl", rows(10)), validation=write_jsonl("val.jsonl", rows(6)), streaming=True
    )

    splits, stream = load_streamed(source, NAMES, ["pair.text", "label"], window_rows=4)

    assert splits["train"].rows["pair.text"][:] == [f"row {row}" for row in range(4)]
    assert splits["train"].place(3).endswith("train.jsonl:4")
    assert splits["validation"].rows["pair.text"][:] == [f"row {row}" for row in range(6)]
    assert stream is not None
    assert [len(window.split.rows) for window in stream.windows()] == [4, 4, 2]
    assert [window.split.place(0).rpartition(":")[2] for window in stream.windows()] == ["1", "5", "9"]


def test_without_training_rows_nothing_is_streamed(write_jsonl: Callable[..., str]) -> None:
    source = Source(
        train=write_jsonl("train.jsonl", rows(10)), validation=write_jsonl("val.jsonl", rows(6)), streaming=True
    )

    splits, stream = load_streamed(source, ["validation"], ["label"], window_rows=4)

    assert (list(splits), stream) == (["validation"], None)


def test_no_rows_are_held_out_of_a_stream(write_jsonl: Callable[..., str]) -> None:
    source = Source(train=write_jsonl("train.jsonl", rows(10)), streaming=True)

    assert list(load_streamed(source, NAMES, ["label"], window_rows=20)[0]) == ["train"]


def test_an_empty_file_is_told(write_jsonl: Callable[..., str]) -> None:
    (told,) = refused(Source(train=write_jsonl("train.jsonl", []), streaming=True))
    assert told.endswith("train.jsonl: the file is empty.")


def test_what_save_to_disk_wrote_is_not_streamed(tmp_path: Path) -> None:
    Dataset.from_list(rows(3)).save_to_disk(tmp_path / "saved")

    (told,) = refused(Source(path=str(tmp_path / "saved"), streaming=True))

    assert told.startswith("data.source.streaming: what save_to_disk wrote (")


def test_splits_of_the_hub_are_renamed_limited_and_placed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    for name, count in (("train", 10), ("dev", 5)):
        Dataset.from_list(rows(count)).to_parquet(tmp_path / "repository" / f"{name}.parquet")
    hub.add_dataset("someone/rows", tmp_path / "repository")
    source = Source(path="someone/rows", validation="validation", limit={"validation": 3}, streaming=True)

    splits, stream = load_streamed(source, NAMES, ["pair.text"], window_rows=4)

    assert splits["validation"].rows["pair.text"][:] == ["row 0", "row 1", "row 2"]
    assert splits["validation"].place(2) == "someone/rows validation row 2"
    assert stream is not None and stream.key == "data.source.path"
    source = Source(path="someone/rows", validation="held_out", streaming=True)
    assert refused(source) == ["data.source.validation: someone/rows has no split 'held_out'."]


def test_settings_that_need_all_rows_are_told() -> None:
    assert [problem.where for problem in streaming_problems(True, True, None)] == [
        "data.tokenizer.train",
        "data.batch_tokens",
    ]
    assert list(streaming_problems(False, True, 512)) == list(streaming_problems(False, False, None)) == []


def test_of_unread_rows_the_features_are_known_and_nothing_else() -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    unread = FeaturesAlone(features)

    assert unread.column_names == ["text", "label"]
    assert unread.features["label"].names == ["bad", "good"]
    for look in (lambda: unread["label"], lambda: unread.to_pandas(), lambda: list(unread)):
        with pytest.raises(InputError, match=r"data\.source\.streaming: what the task learns"):
            look()
