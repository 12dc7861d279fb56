import pytest
import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS

from lit_hf.errors import InputError
from lit_hf.models.rates import GPUS, TERA, find_gpu, peak_flops


def test_a_gpu_is_found_by_name_or_by_the_part_that_only_one_has():
    assert find_gpu("h100-80gb")[1] is GPUS["h100-80gb"]
    assert find_gpu("RTX4090")[0] == "rtx4090-24gb"


def test_an_unknown_gpu_is_told_with_the_nearest_first():
    with pytest.raises(InputError, match=r"Did you mean 'h100-80gb'\? There is: a10-24gb, a100-40gb"):
        find_gpu("h1000-80gb")
    with pytest.raises(InputError, match=r"'a100' may be several\.\n +One of: a100-40gb, a100-80gb"):
        find_gpu("a100")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("h100-80gb", "h100 sxm"), ("h100-pcie-80gb", "h100 pcie"), ("a100-80gb", "a100"), ("l4-24gb", "l4")],
)
def test_rates_are_those_that_lightning_knows(ours, theirs):
    for dtype in torch.float32, torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        assert GPUS[ours].flops[name] * TERA == pytest.approx(_CUDA_FLOPS[theirs][dtype], rel=0.01)


def test_the_cpu_is_measured_once_and_said_to_be():
    rate, source = peak_flops("cpu", torch.float32)
    assert 1e9 < rate < 1e14
    assert "measured" in source
    assert peak_flops("cpu", torch.float32)[0] == rate
