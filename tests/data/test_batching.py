from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import default_data_collator

from lit_hf.data.batching import FILLER, BatchLoader, BatchOrder, count_sizes, row_lengths
from lit_hf.task import Sizes

LENGTHS = np.random.default_rng(0).integers(1, 100, size=203)


def batches_of_all_ranks(world_size: int, batch_size: int, arrangement: str, epoch: int = 0) -> list[list[list[int]]]:
    ranks = []
    for rank in range(world_size):
        order = BatchOrder(LENGTHS, batch_size, arrangement, seed=1, rank=rank, world_size=world_size)
        order.set_epoch(epoch)
        batches = list(order)
        assert len(batches) == len(order)
        ranks.append(batches)
    return ranks


@pytest.mark.parametrize("arrangement", ["grouped", "shuffled"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_ranks_together_see_every_row_once_in_an_epoch(arrangement: str, world_size: int) -> None:
    ranks = batches_of_all_ranks(world_size, 8, arrangement)

    assert sorted(row for batches in ranks for batch in batches for row in batch) == list(range(203))
    assert len({len(batches) for batches in ranks}) == 1


def test_two_ranks_share_the_batches_that_one_would_have() -> None:
    (one,) = batches_of_all_ranks(1, 16, "grouped")
    two = batches_of_all_ranks(2, 8, "grouped")

    assert [sorted(batch) for batch in one] == [sorted(a + b) for a, b in zip(*two, strict=True)]


def test_the_last_batch_is_shared_out_evenly() -> None:
    sizes = [len(batches[-1]) for batches in batches_of_all_ranks(4, 8, "grouped")]

    assert sizes == [3, 3, 3, 2]  # 203 = 6 x 32 + 11


@pytest.mark.parametrize("arrangement", ["grouped", "shuffled"])
def test_the_order_depends_on_seed_and_epoch_alone(arrangement: str) -> None:
    torch.manual_seed(0)
    first = batches_of_all_ranks(1, 8, arrangement, epoch=3)
    torch.manual_seed(1)

    assert batches_of_all_ranks(1, 8, arrangement, epoch=3) == first
    assert batches_of_all_ranks(1, 8, arrangement, epoch=4) != first
    assert list(BatchOrder(LENGTHS, 8, arrangement, seed=2)) != list(BatchOrder(LENGTHS, 8, arrangement, seed=1))


def padded_share(batches: list[list[int]]) -> float:
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    return 1 - LENGTHS.sum() / padded


def test_grouping_saves_padding() -> None:
    grouped, shuffled = (list(BatchOrder(LENGTHS, 8, arrangement)) for arrangement in ("grouped", "shuffled"))

    assert padded_share(grouped) < 0.1 < 0.4 < padded_share(shuffled)


def test_grouped_batches_are_in_random_order_after_the_longest() -> None:
    longest = [LENGTHS[batch].max() for batch in BatchOrder(LENGTHS, 8, "grouped")]

    assert longest[0] == max(longest[:-1])
    assert longest[1:-1] != sorted(longest[1:-1], reverse=True)


def test_evaluation_has_the_longest_rows_first_and_repeats_none() -> None:
    order = BatchOrder(LENGTHS, 8, "sorted")
    rows = [row for batch in order for row in batch]

    assert LENGTHS[rows].tolist() == sorted(LENGTHS.tolist(), reverse=True)
    assert sorted(rows) == list(range(203))
    order.set_epoch(1)
    assert [row for batch in order for row in batch] == rows


def test_training_repeats_rows_only_where_there_are_fewer_than_ranks() -> None:
    ranks = [list(BatchOrder([5, 6, 7], 2, "grouped", rank=rank, world_size=4)) for rank in range(4)]

    assert [len(batch) for batches in ranks for batch in batches] == [1, 1, 1, 1]
    assert {row for batches in ranks for batch in batches for row in batch} == {0, 1, 2}


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
    assert first["sizes"] == Sizes(rows=4, tokens=14, padded_tokens=20, targets=4, step_targets=4)
    assert last["sizes"] == Sizes(rows=3, tokens=4, padded_tokens=6, targets=3, step_targets=3)


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

    assert count_sizes(batch, rows=2).targets == targets


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
