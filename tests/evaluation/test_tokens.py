import torch

from lit_hf.evaluation.tokens import TokenAccuracy


def test_the_share_is_over_the_trained_tokens_of_all_batches():
    metric = TokenAccuracy()
    metric.update(torch.tensor(2), 3)
    metric.update(right=0, targets=torch.tensor(1))
    assert metric.compute().item() == 2 / 4
