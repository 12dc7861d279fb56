import torch
from torch import distributed, multiprocessing

from lit_hf.evaluation.first_rank import on_first_rank


def test_a_single_process_has_all_there_is():
    assert on_first_rank([1, 2], lambda parts: [sum(part) for part in parts]) == [3]


def _join(rank: int, address: str, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    calls = []

    def compute(parts):
        calls.append(rank)
        return "".join(parts)

    torch.save((on_first_rank("ab"[rank] * 2, compute), calls), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_the_first_rank_computes_for_all_in_the_order_of_the_ranks(tmp_path):
    multiprocessing.spawn(_join, (f"file://{tmp_path}/ranks", str(tmp_path)), nprocs=2)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [("aabb", [0]), ("aabb", [])]
