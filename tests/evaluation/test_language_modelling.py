import math

import pytest
import torch

from lit_hf.evaluation.language_modelling import BitsPerByte, Perplexity


def test_perplexity_and_bits_weigh_batches_by_their_targets():
    nats = [torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0])]
    perplexity, bits = Perplexity(), BitsPerByte()
    for batch in nats:
        perplexity.update(batch.mean(), torch.tensor(len(batch)))
        bits.update(batch.mean(), torch.tensor(len(batch)), torch.tensor(5 * len(batch)))
    assert perplexity.compute().item() == pytest.approx(math.exp(6.5 / 4))
    assert bits.compute().item() == pytest.approx(6.5 / math.log(2) / 20)


def test_a_guess_among_256_bytes_is_eight_bits():
    bits = BitsPerByte()
    bits.update(torch.tensor(math.log(256)), torch.tensor(10), torch.tensor(10))
    assert bits.compute().item() == pytest.approx(8.0)
