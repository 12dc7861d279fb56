import torch

from lit_hf.evaluation.pairs import PairRewards


def test_means_are_over_all_pairs_of_all_batches_and_ties_are_not_right():
    metric = PairRewards()
    metric.update(torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
    metric.update(torch.tensor([[3.0, -2.0], [0.0, 4.0], [1.0, 0.0]]))
    assert {name: round(value.item(), 6) for name, value in metric.compute().items()} == {
        "accuracy": 0.6,
        "margin": 0.6,
        "reward_chosen": 1.4,
        "reward_rejected": 0.8,
    }
