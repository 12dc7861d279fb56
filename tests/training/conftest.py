from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore


@pytest.fixture
def as_rank() -> Iterator[Callable[[int, int], DeviceMesh]]:
    """Be one of several ranks, which never meet."""

    def be(rank: int, ranks: int) -> DeviceMesh:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
        return init_device_mesh("cpu", (ranks,))

    yield be
    dist.destroy_process_group()
