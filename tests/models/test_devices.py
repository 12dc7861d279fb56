import pytest
import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS

from lit_hf.errors import InputError
from lit_hf.models.devices import GPUS, TERA, find_gpu, gpu_name, peak_flops


def test_a_gpu_is_found_by_name_or_by_the_part_that_only_one_has():
    assert find_gpu("h100-80gb")[1] is GPUS["h100-80gb"]
    assert find_gpu("RTX4090")[0] == "rtx4090-24gb"
    assert find_gpu("a10")[0] == "a10-24gb"


@pytest.mark.parametrize(
    ("full", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A10", "a10-24gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA L4", "l4-24gb"),
        ("NVIDIA A10G", None),
    ],
)
def test_a_gpu_is_known_by_what_torch_calls_it(full, name):
    assert gpu_name(full) == name


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
