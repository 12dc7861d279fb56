import random

import numpy as np
import torch

from lit_hf.randomness import reseed, seed_from, seeded


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_a_key_is_always_the_same_seed_and_others_are_others():
    assert seed_from(42, "batch", 0, 7) == 8342083491443009061
    seeds = {seed_from(42, rank, batch) for rank in range(20) for batch in range(50)}
    assert len(seeds) == 1000
    assert seed_from(1, 12) != seed_from(11, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_all_generators_are_seeded_by_the_key():
    reseed(42, 1)
    first = draw()
    assert draw() != first
    reseed(42, 1)
    assert draw() == first
    reseed(42, 2)
    assert all(one != other for one, other in zip(draw(), first, strict=True))


def test_what_is_drawn_inside_does_not_show_outside():
    reseed(0)
    expected = draw()
    reseed(0)
    with seeded(42, 1):
        inside = draw()
    assert draw() == expected
    with seeded(42, 1):
        assert draw() == inside != expected
