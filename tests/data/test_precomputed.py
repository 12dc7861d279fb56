import pytest
from datasets import Dataset

from lit_hf.data.batching import row_lengths
from lit_hf.data.encoding import encode
from lit_hf.data.order import BatchOrder
from lit_hf.data.precomputed import with_columns
from lit_hf.tasks import RewardModel
from tests import preferences

ROWS = Dataset.from_dict(
    {"chosen": ["yes", "yes good day", "good", "yes yes"], "rejected": ["no", "no", "no bad night", "bad"]}
)


def by_length(encoded, batch_size):
    return BatchOrder(row_lengths(encoded), batch_size, "sorted")


class Sums:
    """Stands for a model: adds up the token ids of the chosen sequence."""

    def __init__(self):
        self.batches = []

    def __call__(self, batches):
        values = []
        for batch in batches:
            self.batches.append(batch["sizes"].rows)
            values += batch["input_ids"][: batch["sizes"].rows].sum(-1).tolist()
        return {"total": [float(value) for value in values]}


@pytest.fixture
def task(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    task = RewardModel()
    task.bind(preferences.tokenizer())
    return task


def test_each_row_gets_its_own_values_whatever_the_order_of_the_batches(task):
    encoded, _ = encode(ROWS, task, "train")
    sums = Sums()
    added = with_columns(encoded, ROWS, task, "train", by_length(encoded, 3), sums, "key")
    assert sums.batches == [3, 1]
    chosen = [row["input_ids"][: row["chosen_length"]] for row in encoded]
    assert added["total"][:] == [float(sum(ids)) for ids in chosen]
    assert added.remove_columns("total")[:] == encoded[:]


def test_they_are_computed_once_for_a_key_and_an_encoding(task, caplog):
    caplog.set_level("INFO", "lit_hf")
    encoded, _ = encode(ROWS, task, "train")
    sums = Sums()
    first = with_columns(encoded, ROWS, task, "train", by_length(encoded, 4), sums, "key")
    again = with_columns(encoded, ROWS, task, "train", by_length(encoded, 2), sums, "key")
    assert len(sums.batches) == 1
    assert again[:] == first[:]
    assert "train: total reused from the cache" in caplog.text
    with_columns(encoded, ROWS, task, "train", by_length(encoded, 4), sums, "another model")
    assert len(sums.batches) == 2
    fewer = ROWS.select(range(3))
    few, _ = encode(fewer, task, "train")
    with_columns(few, fewer, task, "train", by_length(few, 4), sums, "key")
    assert len(sums.batches) == 3
