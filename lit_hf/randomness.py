"""Random numbers that depend on where a run is and on nothing else, so that a run that goes on draws the same ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_from(*key: int | str) -> int:
    """Return a seed of 63 bits that is another one for each key; the same in every process and on every machine."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def reseed(*key: int | str) -> None:
    """Seed Python's, NumPy's and torch's generators (those of all devices) by a key."""
    seed = seed_from(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch notes for each device that is not there where it was seeded from, which takes the time of a small step
    seed_torch = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed
    seed_torch(seed)


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Draw by a key inside, and go on as if nothing had been drawn after; for work on the host."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = seed_from(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # not those of devices, which need not be asked
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
