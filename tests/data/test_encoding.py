from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import tokenizers
import transformers
from datasets import Dataset
from transformers import AutoTokenizer

import lit_hf
from lit_hf.data.encoding import ROWS_PER_PROCESS, Lengths, _default_processes, encode, fingerprint
from lit_hf.data.sources import Source, load_splits
from lit_hf.task import Examples
from tests.data.conftest import Sorting

WORDS = ["the", "film", "was", "good"]


def bound(folder: Path, max_length: int = 64, labels: tuple[str, ...] = ("x", "y"), **settings: str) -> Sorting:
    task = Sorting(**settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = max_length
    task.bind(tokenizer, list(labels))
    return task


def rows_of(lengths: list[int]) -> Dataset:
    return Dataset.from_dict(
        {"text": [" ".join(["film"] * length) for length in lengths], "label": ["x"] * len(lengths)}
    )


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "lit_hf")
    return caplog


def test_rows_become_the_models_inputs(tiny_text_model: Path) -> None:
    rows = Dataset.from_dict({"text": ["the film", "good"], "label": ["y", "x"], "other": [1, 2]})

    encoded, _ = encode(rows, bound(tiny_text_model), "train")

    assert encoded.column_names == ["input_ids", "attention_mask", "labels"]
    assert encoded["input_ids"][:] == [[2, 5, 6, 3], [2, 9, 3]]
    assert encoded["labels"][:] == [1, 0]


def test_lengths_are_measured_and_told(tiny_text_model: Path, log: pytest.LogCaptureFixture) -> None:
    rows = rows_of([1, 2, 3, 4, 4, 5, 6, 7, 7, 8])

    _, lengths = encode(rows, bound(tiny_text_model, max_length=8), "train")

    assert lengths == Lengths(rows=10, median=7, percentile_95=8, longest=8, cut=3)
    assert log.messages == [
        "train: 10 rows tokenized",
        "train: median 7, 95% up to 8, longest 8 tokens; 3 rows (30.0%) are cut by truncation",
    ]


def test_rows_that_just_fit_are_not_counted_as_cut(tiny_text_model: Path) -> None:
    _, lengths = encode(rows_of([6, 6, 6]), bound(tiny_text_model, max_length=8), "train")

    assert (lengths.longest, lengths.cut) == (8, 0)


def test_the_limit_of_the_tokenizer_is_as_it_was(tiny_text_model: Path) -> None:
    task = bound(tiny_text_model, max_length=8)

    encode(rows_of([20]), task, "train")

    assert task.tokenizer.model_max_length == 8


class Chunking(Sorting):
    """Makes as many rows of a text as it needs."""

    def encode(self, examples: Examples) -> Examples:
        encoded = self.tokenizer(examples["text"], truncation=True, return_overflowing_tokens=True)
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def test_a_task_may_make_several_rows_of_one(tiny_text_model: Path) -> None:
    task = Chunking()
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model, model_max_length=4))

    encoded, lengths = encode(rows_of([4, 1]), task, "train")

    assert encoded["input_ids"][:] == [[2, 6, 6, 3], [2, 6, 6, 3], [2, 6, 3]]
    assert lengths.cut == 0


def test_the_second_time_the_rows_come_from_the_cache(tiny_text_model: Path, log: pytest.LogCaptureFixture) -> None:
    rows = rows_of([1, 2, 30])

    first = encode(rows, bound(tiny_text_model, max_length=9), "train")
    second = encode(rows, bound(tiny_text_model, max_length=9), "train")

    assert second[0][:] == first[0][:]
    assert second[1] == first[1]
    assert [message for message in log.messages if "median" not in message] == [
        "train: 3 rows tokenized",
        "train: 3 rows reused from the cache",
    ]


def test_the_cache_is_used_whatever_the_number_of_processes(
    tiny_text_model: Path, log: pytest.LogCaptureFixture
) -> None:
    rows = rows_of([7, 7, 1])

    first, _ = encode(rows, bound(tiny_text_model), "train", num_proc=2)
    second, _ = encode(rows, bound(tiny_text_model), "train")

    assert first[:] == second[:]
    assert len(first) == 3
    assert "train: 3 rows reused from the cache" in log.messages


def test_few_rows_are_encoded_by_one_process_and_many_by_all_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (0, 1, ROWS_PER_PROCESS, 2 * ROWS_PER_PROCESS - 1), 1000 * ROWS_PER_PROCESS
    assert {_default_processes(rows) for rows in few} == {1}
    assert _default_processes(many) == len(os.sched_getaffinity(0))

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(3, 11)))
    assert [_default_processes(count * ROWS_PER_PROCESS) for count in (1, 2, 7, 8, 9)] == [1, 2, 7, 8, 8]
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert _default_processes(many) == 6


def test_what_was_begun_and_not_finished_is_not_reused(tiny_text_model: Path, log: pytest.LogCaptureFixture) -> None:
    rows, task = rows_of([2, 2, 2, 2]), bound(tiny_text_model)
    encoded, _ = encode(rows, task, "train")
    expected = encoded[:]
    folder = Path(encoded.cache_files[0]["filename"]).parent
    (folder / "record.json").unlink()
    (folder / "rows.arrow").write_bytes(b"half")

    assert encode(rows, task, "train")[0][:] == expected
    assert "train: 4 rows reused from the cache" not in log.messages


def test_the_fingerprint_changes_with_all_that_the_result_depends_on(tiny_text_model: Path) -> None:
    rows = rows_of([1, 2])
    other_tokenizer = bound(tiny_text_model)
    other_tokenizer.tokenizer.add_tokens(["superb"])
    left = bound(tiny_text_model)
    left.tokenizer.truncation_side = "left"
    chunking = Chunking()
    chunking.bind(AutoTokenizer.from_pretrained(tiny_text_model), ["x", "y"])

    prints = [
        fingerprint(rows, bound(tiny_text_model)),
        fingerprint(rows_of([2, 1]), bound(tiny_text_model)),
        fingerprint(rows.select([0]), bound(tiny_text_model)),
        fingerprint(rows, bound(tiny_text_model, max_length=8)),
        fingerprint(rows, bound(tiny_text_model, labels=("y", "x"))),
        fingerprint(rows, bound(tiny_text_model, suffix=" good")),
        fingerprint(rows, other_tokenizer),
        fingerprint(rows, left),
        fingerprint(rows, chunking),
    ]

    assert len(set(prints)) == len(prints)


def test_a_saved_copy_of_the_tokenizer_finds_the_same_rows(tiny_text_model: Path, tmp_path: Path) -> None:
    rows, task = rows_of([1, 2]), bound(tiny_text_model)
    before = fingerprint(rows, task)
    task.tokenizer.save_pretrained(tmp_path)
    task.bind(AutoTokenizer.from_pretrained(tmp_path))

    assert fingerprint(rows, task) == before


def test_the_fingerprint_does_not_change_by_use(tiny_text_model: Path) -> None:
    rows, task = rows_of([1, 2]), bound(tiny_text_model)
    before = fingerprint(rows, task)

    task.encode(rows[:])
    task.tokenizer.pad(task.tokenizer(["the", "the film"]), return_tensors="pt")

    assert fingerprint(rows, task) == before


@pytest.mark.parametrize("library", [transformers, tokenizers])
def test_rows_of_another_version_of_a_library_are_not_reused(
    tiny_text_model: Path, monkeypatch: pytest.MonkeyPatch, library: ModuleType
) -> None:
    rows, task = rows_of([1, 2]), bound(tiny_text_model)
    before = fingerprint(rows, task)
    monkeypatch.setattr(library, "__version__", "99.0")

    assert fingerprint(rows, task) != before


FINGERPRINT = """
from datasets import Dataset
from transformers import AutoTokenizer
from lit_hf.data.encoding import fingerprint
from lit_hf.tasks import Preference
task = Preference()
task.bind(AutoTokenizer.from_pretrained({model!r}))
print(fingerprint(Dataset.from_dict({{"prompt": ["the"]}}), task))
"""


@pytest.mark.slow
def test_a_mended_helper_of_tasks_encodes_anew(tmp_path: Path, tiny_text_model: Path) -> None:
    package = tmp_path / "lit_hf"
    shutil.copytree(Path(lit_hf.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))

    def run() -> str:
        code = FINGERPRINT.format(model=str(tiny_text_model))
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        arguments = [sys.executable, "-c", code]
        return subprocess.run(
            arguments, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        ).stdout

    before = run()
    assert run() == before
    (package / "cli" / "fit.py").write_text("# encodes nothing")
    assert run() == before
    for helper in ("data/pairs.py", "losses/tokens.py"):  # the losses make reference columns
        with (package / helper).open("a") as file:
            file.write("# mended")
        assert run() != before
        before = run()


def run_in_a_process(train: str, task_file: Path, model: Path, **settings: str) -> list[str]:
    code = f"""
import logging, sys
sys.path.insert(0, {str(task_file.parent)!r})
from transformers import AutoTokenizer
from lit_hf.data.encoding import encode
from lit_hf.data.sources import Source, load_splits
from {task_file.stem} import Mine
logging.basicConfig(format="%(message)s", stream=sys.stdout)
logging.getLogger("lit_hf").setLevel("INFO")
task = Mine(**{settings!r})
task.bind(AutoTokenizer.from_pretrained({str(model)!r}))
for name, split in load_splits(Source(train={train!r}, validation_share=0.5, limit={{"train": 3}})).items():
    encode(split.rows, task, name)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [line for line in result.stdout.splitlines() if "tokenized" in line or "reused" in line]


TASK = """
from lit_hf.task import Task

class Mine(Task):
    input_columns, target_columns = ["text"], []

    def __init__(self, ending=""):
        self.ending = {"key": ending, "more": {"a", "b"}}

    def encode(self, examples):
        return self.tokenizer([text + self.ending["key"] for text in examples["text"]], truncation=True)

    def predict(self, model, batch):
        return []
"""

FRESH = ["train: 3 rows tokenized", "validation: 4 rows tokenized"]
REUSED = ["train: 3 rows reused from the cache", "validation: 4 rows reused from the cache"]


@pytest.mark.slow
def test_another_process_reuses_the_cache_unless_something_changed(
    tmp_path: Path, tiny_text_model: Path, write_jsonl: Callable[..., str]
) -> None:
    task_file = tmp_path / "my_task.py"
    task_file.write_text(TASK)
    train = write_jsonl("train.jsonl", ({"text": f"film {row}"} for row in range(8)))

    def run(**settings: str) -> list[str]:
        return run_in_a_process(train, task_file, tiny_text_model, **settings)

    assert run(ending=" good") == FRESH
    assert run(ending=" good") == REUSED
    task_file.write_text(TASK.replace("truncation=True", "truncation=True, max_length=3"))
    assert run(ending=" good") == FRESH


def test_the_record_in_the_cache_is_plain_json(tiny_text_model: Path) -> None:
    encoded, _ = encode(rows_of([3, 3, 90]), bound(tiny_text_model), "train")

    record = Path(encoded.cache_files[0]["filename"]).parent / "record.json"

    assert json.loads(record.read_text()) == {"files": ["rows.arrow"], "cut": 1}


def test_a_split_with_its_cut_is_reused(tiny_text_model: Path, write_jsonl: Callable[..., str]) -> None:
    source = Source(train=write_jsonl("train.jsonl", ({"text": "film", "label": "x"} for _ in range(20))))
    task = bound(tiny_text_model)

    one, two = (fingerprint(load_splits(source)["train"].rows, task) for _ in range(2))

    assert one == two
