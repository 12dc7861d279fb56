from __future__ import annotations

import numpy as np
import pytest
import torch

from lit_hf.data.packing import PackingCollator, PairPackingCollator, document_sums, pack

SAMPLES = {
    "uniform": lambda random, rows: random.integers(1, 1001, rows),
    "short": lambda random, rows: random.integers(1, 51, rows),
    "long": lambda random, rows: random.integers(400, 1001, rows),
    "of_chats": lambda random, rows: np.clip(random.lognormal(5, 1, rows), 1, 1000).astype(int),
    "equal": lambda random, rows: np.full(rows, 334),
}


def best_fit(lengths, capacity):
    """Best-fit decreasing by the book: O(n * bins)."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


def fewest_bins(lengths, capacity):
    """A lower bound: of the documents longer than 1 / (k + 1) of a bin, it holds k at most."""
    counts = [(lengths * (k + 1) > capacity).sum() / k for k in range(1, 10)]
    return int(np.ceil(max(lengths.sum() / capacity, *counts)))


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("rows", [1, 7, 5000])
def test_every_document_is_in_one_bin_and_no_bin_is_over_capacity(sample, rows):
    lengths = SAMPLES[sample](np.random.default_rng(rows), rows)

    bins = pack(lengths, 1000)

    assert sorted(np.concatenate(bins).tolist()) == list(range(rows))
    assert max(lengths[bin].sum() for bin in bins) <= 1000
    assert len(bins) <= 11 / 9 * fewest_bins(lengths, 1000) + 1


@pytest.mark.parametrize("sample", SAMPLES)
def test_bins_are_those_of_best_fit_decreasing(sample):
    lengths = SAMPLES[sample](np.random.default_rng(3), 400)

    rooms = [int(1000 - lengths[bin].sum()) for bin in pack(lengths, 1000)]

    assert sorted(rooms) == best_fit(lengths.tolist(), 1000)


def test_documents_of_a_bin_come_longest_first():
    bins = pack(np.array([2, 5, 3, 3, 7, 1]), 10)

    assert [bin.tolist() for bin in bins] == [[4, 2], [1, 3, 0], [5]]


def test_no_documents_make_no_bins():
    assert pack(np.array([], dtype=int), 10) == []


@pytest.mark.parametrize("lengths", [[3, 11], [0, 3]])
def test_what_does_not_fit_is_refused(lengths):
    with pytest.raises(ValueError, match="documents of 1 to 10 tokens"):
        pack(np.array(lengths), 10)


def test_rows_of_a_bin_become_one_row():
    rows = [
        {"input_ids": [5, 6, 7], "labels": [5, -100, 7], "text_bytes": 9},
        {"input_ids": [8, 9], "labels": [8, 9], "text_bytes": 4},
    ]

    batch = PackingCollator()(rows)

    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, -100, 7, -100, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 5]
    assert batch["max_length_q"] == batch["max_length_k"] == 3
    assert batch["use_cache"] is False
    assert "text_bytes" not in batch


def test_pairs_become_one_row_of_all_chosen_and_then_all_rejected_ones():
    rows = [
        {"input_ids": [1, 2, 3, 1, 4], "chosen_length": 3, "prompt_length": 1, "reference_chosen": -1.5},
        {"input_ids": [5, 6, 7, 5, 6, 8, 9], "chosen_length": 3, "prompt_length": 2, "reference_chosen": -2.5},
    ]

    batch = PairPackingCollator()(rows)

    assert batch["input_ids"].tolist() == [[1, 2, 3, 5, 6, 7, 1, 4, 5, 6, 8, 9]]
    assert batch["targets"].tolist() == [[-100, 2, 3, -100, -100, 7, -100, 4, -100, -100, 8, 9]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 6, 8, 12]
    assert batch["prompt_length"].tolist() == [1, 2]
    assert batch["reference_chosen"].tolist() == [-1.5, -2.5]
    assert "labels" not in batch  # by which the targets of a batch would be counted: they are pairs, not tokens


def test_document_sums_are_the_sums_of_each_document():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])

    assert document_sums(values, torch.tensor([0, 2, 3, 5], dtype=torch.int32)).tolist() == [3, 4, 24]
