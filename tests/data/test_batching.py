from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import default_data_collator

from lit_hf.data.batching import FILLER, BatchLoader, count_sizes, padded_lengths, row_lengths
from lit_hf.data.order import BatchOrder
from lit_hf.task import Sizes


def loaders(count: int, world_size: int, batch_size: int, arrangement: str = "sorted", **options) -> list[BatchLoader]:
    rows = Dataset.from_dict(
        {
            "input_ids": [[row + 1] * (row % 5 + 1) for row in range(count)],
            "attention_mask": [[1] * (row % 5 + 1) for row in range(count)],
            "labels": [row % 2 for row in range(count)],
        }
    )
    lengths = row_lengths(rows)
    return [
        BatchLoader(rows, pad, BatchOrder(lengths, batch_size, arrangement, 0, rank, world_size), **options)
        for rank in range(world_size)
    ]


def pad(rows: list[dict]) -> dict[str, torch.Tensor]:
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True)
        for name in ("input_ids", "attention_mask")
    }
    return batch | {"labels": torch.tensor([row["labels"] for row in rows])}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_carries_what_was_counted_in_it(num_workers: int) -> None:
    (loader,) = loaders(7, 1, 4, num_workers=num_workers)
    first, last = loader

    assert first["input_ids"].tolist() == [[5] * 5, [4] * 4 + [0], [3] * 3 + [0] * 2, [2] * 2 + [0] * 3]
    assert first["sizes"] == Sizes(4, tokens=14, padded_tokens=20, targets=4, step_targets=4, attended=54)
    assert last["sizes"] == Sizes(3, tokens=4, padded_tokens=6, targets=3, step_targets=3, attended=6)


def test_a_rank_without_rows_left_gets_a_filler_that_counts_nothing() -> None:
    ranks = [list(loader) for loader in loaders(5, world_size=2, batch_size=2)]

    assert [[batch["sizes"].rows for batch in batches] for batches in ranks] == [[2, 1], [2, 0]]
    assert ranks[1][1]["input_ids"].tolist() == ranks[0][1]["input_ids"].tolist()
    assert ranks[1][1]["sizes"] == FILLER


def test_ids_are_counted_over_all_ranks_once_whatever_the_world_size() -> None:
    for world_size in (1, 2, 3, 8):
        batches = [batch for loader in loaders(21, world_size, 4) for batch in loader]
        ids = [row[0] for batch in batches for row in batch["input_ids"].tolist()[: batch["sizes"].rows]]
        assert sorted(ids) == list(range(1, 22))


def test_a_new_epoch_is_set_through_the_sampler() -> None:
    (loader,) = loaders(20, 1, 4, arrangement="shuffled")
    first = [batch["labels"].tolist() for batch in loader]
    assert [batch["labels"].tolist() for batch in loader] == first

    loader.sampler.set_epoch(1)

    assert [batch["labels"].tolist() for batch in loader] != first


def test_iterating_draws_nothing_from_the_random_numbers_of_the_run() -> None:
    (loader,) = loaders(20, 1, 4)
    torch.manual_seed(0)
    expected = torch.rand(1)

    torch.manual_seed(0)
    list(loader)

    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("labels", "targets"),
    [
        (torch.tensor([0, 1]), 2),
        (torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), 2),
        (torch.tensor([[-100, 4, 5], [-100, -100, 6]]), 3),
    ],
    ids=["one a row", "several a row", "one a token"],
)
def test_targets_are_rows_or_labelled_tokens(labels: torch.Tensor, targets: int) -> None:
    batch = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "labels": labels}

    assert count_sizes(batch, [{}, {}]).targets == targets


@pytest.mark.parametrize("masked", [True, False], ids=["by the mask", "by the rows"])
def test_tokens_are_counted_with_or_without_a_mask(masked: bool) -> None:
    rows = [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1], "labels": 0}]
    rows.append({"input_ids": [1], "attention_mask": [1], "labels": 0})
    batch = pad(rows)
    if not masked:
        del batch["attention_mask"]

    assert count_sizes(batch, rows) == Sizes(2, tokens=4, padded_tokens=6, targets=2, step_targets=2, attended=10)


def test_inputs_of_a_row_attend_each_to_itself() -> None:
    pair = {"input_ids": [1, 2, 3, 4, 5], "chosen_length": 2}
    choices = {"input_ids": [[1], [1, 2, 3]]}

    assert count_sizes({}, [pair]).attended == 2**2 + 3**2
    assert count_sizes({}, [choices])[1] == 4
    assert count_sizes({}, [choices]).attended == 1 + 9


def test_lengths_are_those_of_the_chosen_rows() -> None:
    rows = Dataset.from_dict({"input_ids": [[1], [1, 2], [1, 2, 3]]})

    assert row_lengths(rows).tolist() == [1, 2, 3]
    assert row_lengths(rows.select([2, 0])).tolist() == [3, 1]
    assert row_lengths(Dataset.from_dict({"pixels": [1, 2]})).tolist() == [1, 1]


def test_the_longest_of_a_row_s_inputs_counts() -> None:
    rows = Dataset.from_dict({"input_ids": [[[1], [1, 2, 3]], [[1, 2], [1]], [[4], [5]]]})

    assert row_lengths(rows).tolist() == [3, 2, 1]
    assert row_lengths(rows.select([2, 0])).tolist() == [1, 3]


def test_the_targets_of_a_step_are_those_of_its_accumulated_batches() -> None:
    rows = Dataset.from_dict({"input_ids": [[1]] * 10, "labels": [0] * 10})
    loader = BatchLoader(rows, default_data_collator, BatchOrder([1] * 10, 4, "sorted"), accumulate=2)

    assert [batch["sizes"].step_targets for batch in loader] == [8, 8, 2]


def test_the_last_step_before_a_limit_has_the_targets_of_its_batches_only() -> None:
    rows = Dataset.from_dict({"input_ids": [[1]] * 10, "labels": [0] * 10})
    order = BatchOrder([1] * 10, 2, "sorted")

    def step_targets(limit: int | float) -> list[int]:
        loader = BatchLoader(rows, default_data_collator, order, accumulate=2, limit=limit)
        return [batch["sizes"].step_targets for batch in loader]

    assert step_targets(1.0) == [4, 4, 4, 4, 2]
    assert step_targets(3) == [4, 4, 2]
    assert step_targets(0.65) == [4, 4, 2]
    assert step_targets(100) == [4, 4, 4, 4, 2]


def test_a_filler_adds_no_targets_to_its_step() -> None:
    rows = Dataset.from_dict({"input_ids": [[1]] * 5, "labels": [0] * 5})
    order = BatchOrder([1] * 5, batch_tokens=2, rank=1, world_size=2)

    batches = list(BatchLoader(rows, default_data_collator, order, accumulate=2))

    assert len(batches) == 2 == len(order)
    assert batches[1]["sizes"] == FILLER._replace(step_targets=batches[0]["sizes"].targets)
    assert batches[0]["sizes"].step_targets == batches[0]["sizes"].targets


class Reading:
    """Rows that note which of them are read."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, rows: list[int]) -> list[dict]:
        self.read += rows
        return [{"input_ids": [row], "labels": 0} for row in rows]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_iteration_starts_anywhere_without_reading_what_comes_before(accumulate: int) -> None:
    def loader(rows: Reading) -> BatchLoader:
        return BatchLoader(rows, default_data_collator, BatchOrder([1] * 40, 2, "shuffled"), accumulate)

    every = list(loader(Reading(40)))
    rows = Reading(40)
    late = loader(rows)
    late.start = 12
    rest = list(late)

    assert len(late) == 20
    assert [batch["input_ids"].tolist() for batch in rest] == [batch["input_ids"].tolist() for batch in every[12:]]
    assert [batch["sizes"] for batch in rest] == [batch["sizes"] for batch in every[12:]]
    assert len(rows.read) == 16
    assert len(list(late)) == 20  # the next epoch is a whole one


def test_waiting_is_the_time_until_a_batch_is_there_and_not_what_is_done_with_it() -> None:
    now = [0.0]

    def collate(rows: list[dict]) -> dict:
        now[0] += 3
        return default_data_collator(rows)

    order = BatchOrder([1] * 6, 2)
    loader = BatchLoader(Reading(6), collate, order, accumulate=2, clock=lambda: now[0])
    waited = []
    for _ in loader:
        waited.append(loader.seconds_waited)
        now[0] += 100

    assert waited == [6, 6, 9]  # two batches are read ahead
    assert loader.seconds_waited == 9


def test_workers_read_ahead_what_the_next_step_needs() -> None:
    (loader,) = loaders(40, 1, 2, accumulate=9, num_workers=2)

    assert 2 * loader._loader.prefetch_factor >= 9 + 1


def test_padded_lengths_are_what_a_row_adds_to_a_batch() -> None:
    flat = {"input_ids": [[1], [1, 2]]}
    pairs = {"input_ids": [[1, 2, 3, 4], [1, 2, 3]], "chosen_length": [1, 2]}
    choices = {"input_ids": [[[1], [1, 2, 3]], [[1, 2], [1]]]}
    texts = {"input_ids": [[1], [1, 2]], "positive_input_ids": [[1, 2, 3], [1]], "labels": [1, 0]}

    assert padded_lengths(Dataset.from_dict(flat)).tolist() == [1, 2]
    assert padded_lengths(Dataset.from_dict(pairs)).tolist() == [6, 4]
    assert padded_lengths(Dataset.from_dict(choices)).tolist() == [6, 4]
    assert padded_lengths(Dataset.from_dict(texts)).tolist() == [6, 4]
    assert padded_lengths(Dataset.from_dict({"labels": [1]})).tolist() == [1]


class Drawing:
    """Draws numbers for each batch, as a collator does that masks tokens by chance."""

    def __call__(self, rows):
        ids = torch.tensor([row["input_ids"][:1] for row in rows])
        return {"input_ids": ids, "drawn": torch.cat([torch.rand(2), torch.tensor(np.random.rand(1))])}


def drawn(rows, *, start=0, epoch=0, workers=0, rank=0):
    order = BatchOrder(row_lengths(rows), 2, seed=3, rank=rank, world_size=2)
    order.set_epoch(epoch)
    loader = BatchLoader(rows, Drawing(), order, num_workers=workers)
    loader.start = start
    return [batch["drawn"].tolist() for batch in loader]


def test_what_a_collator_draws_depends_on_the_batch_s_place_alone():
    rows = Dataset.from_dict({"input_ids": [[index] * (1 + index % 5) for index in range(20)]})
    torch.manual_seed(0)
    outside = torch.rand(1)
    torch.manual_seed(0)
    numbers = drawn(rows)
    assert torch.rand(1) == outside  # nor does it draw from the run's numbers
    assert len({tuple(batch) for batch in numbers}) == len(numbers) == 5
    assert drawn(rows, workers=2) == numbers
    assert drawn(rows, start=3) == numbers[3:]
    assert drawn(rows, epoch=1) != numbers != drawn(rows, rank=1)
