import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from lit_hf.training.shards import COMMON, Cut, cut_like, local, read, read_whole, rows_file, split

WHOLE = torch.arange(10.0).view(5, 2)


def cut(whole: torch.Tensor, mesh) -> DTensor:
    rows = whole.chunk(mesh.size())
    own = rows[mesh.get_local_rank()] if mesh.get_local_rank() < len(rows) else whole[:0]
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())


def save(folder, as_rank, ranks: int) -> None:
    for rank in range(ranks):
        weight = cut(WHOLE, as_rank(rank, ranks))
        state = {
            "state_dict": {"weight": weight, "tied": weight, "buffer": torch.ones(2)},
            "steps": [3, {"of": weight}],
        }
        common, rows = split(state, ranks)
        torch.save(rows, folder / rows_file(rank))
        if rank == 0:
            torch.save(common, folder / COMMON)


def test_what_was_cut_is_put_together(tmp_path, as_rank):
    save(tmp_path, as_rank, 3)
    state = read_whole(tmp_path)
    for tensor in (state["state_dict"]["weight"], state["state_dict"]["tied"], state["steps"][1]["of"]):
        assert torch.equal(tensor, WHOLE)
    assert state["state_dict"]["buffer"].tolist() == [1, 1]
    assert state["steps"][0] == 3
    assert [len(torch.load(tmp_path / rows_file(rank))["/state_dict/weight"]) for rank in range(3)] == [2, 2, 1]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_any_number_of_ranks_takes_its_rows_of_what_three_wrote(tmp_path, as_rank, ranks):
    save(tmp_path, as_rank, 3)
    weight = read(tmp_path)["state_dict"]["weight"]
    for rank in range(ranks):
        like = cut(torch.zeros_like(WHOLE), as_rank(rank, ranks))
        for source in (weight, WHOLE):
            own = cut_like(source, like)
            assert own.shape == WHOLE.shape and own.placements == (Shard(0),)
            assert torch.equal(local(own), local(cut(WHOLE, like.device_mesh)))


def test_a_rank_reads_its_own_rows_without_a_copy_and_takes_them_with_one():
    written = Cut([WHOLE[:2], WHOLE[2:4], WHOLE[4:]])
    assert written.shape == (5, 2)
    assert written.between(2, 4).data_ptr() == WHOLE[2:4].data_ptr()
    assert torch.equal(written.between(1, 5), WHOLE[1:5])
    assert written.between(5, 5).shape == (0, 2)


def test_what_is_not_cut_here_is_taken_whole(as_rank):
    written = Cut([WHOLE[:3], WHOLE[3:]])
    assert torch.equal(cut_like(written, torch.zeros(5, 2)), WHOLE)
    assert torch.equal(cut_like(written, None), WHOLE)
    other_shape = cut(torch.zeros(4, 2), as_rank(0, 2))
    assert cut_like(written, other_shape).shape == (5, 2), "the model tells that it does not fit"
    assert cut_like(7, other_shape) == 7


def test_a_tensor_that_is_cut_otherwise_is_refused(as_rank):
    mesh = as_rank(0, 2)
    state = {"factor": DTensor.from_local(WHOLE, mesh, [Replicate()], run_check=False)}
    with pytest.raises(TypeError, match="/factor is not cut into rows"):
        split(state, 2)


def test_reading_never_unpickles(tmp_path, as_rank):
    save(tmp_path, as_rank, 1)
    torch.save({"/state_dict/weight": print}, tmp_path / rows_file(0))
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        read(tmp_path)
