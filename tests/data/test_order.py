from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_hf.data.order import BatchOrder, longest_first

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


SKEWED = np.clip(np.random.default_rng(1).lognormal(4, 0.8, size=3000), 2, 500).astype(np.int32)
BUDGET = 512


def token_batches(world_size: int, arrangement: str, epoch: int = 0, lengths: np.ndarray = SKEWED) -> list:
    """Return each rank's batches without the fillers."""
    ranks = []
    for rank in range(world_size):
        order = BatchOrder(lengths, 32, arrangement, 1, rank, world_size, batch_tokens=BUDGET)
        order.set_epoch(epoch)
        batches = list(order)
        assert len(batches) == len(order)
        ranks.append(batches[:-1] if order.ends_with_filler else batches)
    return ranks


TOKEN_ARRANGEMENTS = ["grouped", "packed", "sorted"]


@pytest.mark.parametrize("arrangement", TOKEN_ARRANGEMENTS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 40, 3000])
def test_a_token_budget_holds_every_row_once_on_all_ranks(arrangement: str, world_size: int, count: int) -> None:
    lengths = SKEWED[:count]
    for epoch in (0, 5):
        ranks = token_batches(world_size, arrangement, epoch, lengths)
        batches = [batch for batches in ranks for batch in batches]

        assert sorted(row for batch in batches for row in batch) == list(range(count))
        taken = [
            lengths[batch].sum() if arrangement == "packed" else lengths[batch].max() * len(batch) for batch in batches
        ]
        assert max(taken) <= BUDGET
        counts = [len(batches) for batches in ranks]
        assert max(counts) - min(counts) <= 1  # a filler makes them equal


@pytest.mark.parametrize("arrangement", TOKEN_ARRANGEMENTS)
def test_all_ranks_and_epochs_have_the_same_number_of_token_batches(arrangement: str) -> None:
    orders = [BatchOrder(SKEWED, 1, arrangement, 1, rank, 3, batch_tokens=BUDGET) for rank in range(3)]
    numbers = set()
    for epoch in range(4):
        for order in orders:
            order.set_epoch(epoch)
            numbers |= {len(list(order)), len(order)}

    assert len(numbers) == 1


@pytest.mark.parametrize("arrangement", TOKEN_ARRANGEMENTS)
def test_ranks_take_in_turn_the_token_batches_that_one_would_have(arrangement: str) -> None:
    (one,) = token_batches(1, arrangement)
    two = token_batches(2, arrangement)

    assert one[0::2] == two[0]
    assert one[1::2] == two[1]


@pytest.mark.parametrize("arrangement", ["grouped", "packed"])
def test_token_batches_depend_on_seed_and_epoch_alone_and_are_mixed_anew(arrangement: str) -> None:
    torch.manual_seed(0)
    first = token_batches(1, arrangement, epoch=3)
    torch.manual_seed(1)
    later = token_batches(1, arrangement, epoch=4)

    assert token_batches(1, arrangement, epoch=3) == first != later
    companions = {row: set(batch) for batch in first[0] for row in batch}
    kept = np.mean([len(companions[row] & set(batch)) / len(batch) for batch in later[0] for row in batch])
    assert kept < 0.5


MANY = np.clip(np.random.default_rng(1).lognormal(4, 0.8, size=20_000), 2, 500).astype(np.int32)

EVEN_STEPS = {  # the largest batch of a step over the smallest, in padded tokens: the mean over steps
    "grouped": ({"batch_size": 8}, 1.02),
    "tokens": ({"batch_tokens": 2048}, 1.15),
    "packed": ({"batch_tokens": 2048}, 1.03),
}


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("kind", EVEN_STEPS)
def test_the_ranks_have_equal_work_in_a_step(kind: str, world_size: int) -> None:
    options, bound = EVEN_STEPS[kind]
    arrangement = "packed" if kind == "packed" else "grouped"
    work = []
    for rank in range(world_size):
        order = BatchOrder(MANY, arrangement=arrangement, seed=1, rank=rank, world_size=world_size, **options)
        batches = [MANY[batch] for batch in order]
        work.append([one.sum() if kind == "packed" else one.max() * len(one) for one in batches])

    largest, smallest = np.max(work, axis=0), np.min(work, axis=0)
    assert (largest / smallest).mean() < bound
    assert np.mean(work, axis=0).sum() / largest.sum() > 0.96  # of all ranks' time, what is not waiting for another


def test_a_token_budget_is_filled_with_rows_of_like_length() -> None:
    (batches,) = token_batches(1, "grouped")
    padded = np.array([SKEWED[batch].max() * len(batch) for batch in batches])

    assert 1 - SKEWED.sum() / padded.sum() < 0.05
    assert padded.mean() > 0.75 * BUDGET
    order = BatchOrder(SKEWED, 32, "grouped", 1, batch_tokens=BUDGET)
    assert order.padding_share == pytest.approx(1 - SKEWED.sum() / padded.sum())


def test_packed_batches_have_next_to_no_room_left() -> None:
    (batches,) = token_batches(1, "packed")

    assert SKEWED.sum() / (len(batches) * BUDGET) > 0.97


@pytest.mark.parametrize("arrangement", ["grouped", "packed"])
def test_the_longest_row_is_in_the_first_token_batch(arrangement: str) -> None:
    ((first, *_),) = token_batches(1, arrangement, epoch=2)

    assert SKEWED[first].max() == SKEWED.max()


def test_a_row_beyond_the_budget_is_a_batch_by_itself_in_evaluation() -> None:
    assert list(BatchOrder([9, 3, 2, 2], 1, "sorted", batch_tokens=6)) == [[0], [1, 2], [3]]


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"batch_tokens": BUDGET}])
@pytest.mark.parametrize("arrangement", ["grouped", "sorted"])
def test_an_order_starts_and_stops_at_any_batch(arrangement: str, options: dict) -> None:
    order = BatchOrder(SKEWED, arrangement=arrangement, rank=1, world_size=2, **options)
    every = list(order)

    assert list(order.batches(17)) == every[17:]
    assert list(order.batches(17, 30)) == every[17:30]
    assert list(order.batches(len(order))) == []


@pytest.mark.parametrize("top", [7, 2**16 - 1, 2**16, 2**20])
def test_longest_first_is_a_stable_sort(top: int) -> None:
    lengths = np.random.default_rng(0).integers(1, top, size=500, endpoint=True)
    lengths[3] = top

    assert longest_first(lengths).tolist() == sorted(range(500), key=lambda row: -lengths[row])


def test_no_rows_make_no_batches() -> None:
    for arrangement in ("grouped", "shuffled", "sorted"):
        assert list(BatchOrder([], 4, arrangement)) == []
    for arrangement in TOKEN_ARRANGEMENTS:
        assert list(BatchOrder([], 4, arrangement, batch_tokens=8)) == []
