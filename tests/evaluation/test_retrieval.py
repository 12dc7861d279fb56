import pytest
import torch

from lit_hf.evaluation.retrieval import Retrieval


def test_ranks_are_over_the_passages_of_all_batches():
    passages = torch.eye(4)
    # the own passage comes first, second, third, first
    queries = torch.tensor([[9.0, 0, 0, 0], [5, 4, 0, 0], [5, 4, 3, 0], [0, 0, 0, 1]])
    metric = Retrieval(cutoffs=(1, 2))
    metric.update(queries[:3], passages[:3])
    metric.update(queries[3:], passages[3:])
    assert metric.ranks().tolist() == [1, 2, 3, 1]
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx({"recall@1": 0.5, "recall@2": 0.75, "mrr": (1 + 1 / 2 + 1 / 3 + 1) / 4})


def test_a_passage_that_is_there_twice_pushes_nobody_down():
    queries = torch.nn.functional.normalize(torch.randn(3, 8), dim=-1)
    metric = Retrieval()
    metric.update(queries[[0, 0, 1]], queries[[0, 0, 1]])
    assert metric.ranks().tolist() == [1, 1, 1]


def test_ranks_do_not_depend_on_how_many_queries_are_compared_at_once(monkeypatch):
    torch.manual_seed(0)
    queries, passages = torch.randn(50, 8), torch.randn(50, 8)
    metric = Retrieval()
    metric.update(queries, passages)
    expected = [1 + sum(q @ p > q @ passages[i] for p in passages).item() for i, q in enumerate(queries)]
    assert metric.ranks().tolist() == expected
    monkeypatch.setattr("lit_hf.evaluation.retrieval.CHUNK", 7)
    assert metric.ranks().tolist() == expected
