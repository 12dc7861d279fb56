import torch

from lit_hf.evaluation.tokens import TokenAccuracy


def test_each_token_is_predicted_one_place_before_and_only_trained_ones_count():
    labels = torch.tensor([[-100, 1, 2, -100], [-100, -100, 0, 2]])
    logits = torch.zeros(2, 4, 3)
    logits[0, 0, 1] = logits[0, 1, 0] = logits[1, 1, 0] = logits[1, 2, 2] = logits[1, 3, 1] = 1
    metric = TokenAccuracy()
    metric.update(logits[:1], labels[:1])
    metric.update(logits[1:], labels[1:])
    assert metric.compute().item() == 3 / 4
