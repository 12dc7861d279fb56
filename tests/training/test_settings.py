import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator

from lit_hf.training.settings import device_type, epochs, limits


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "expected"), [(None, -1, 3), (None, 100, None), (5, -1, 5), (5, 100, 5), (-1, -1, -1)]
)
def test_a_run_has_three_epochs_where_no_limit_is_named(max_epochs, max_steps, expected):
    assert epochs(max_epochs, max_steps) == expected


def test_limits_are_none_where_they_are_not_set_and_times_are_seconds():
    none = {"max_epochs": None, "max_steps": -1, "max_time": None}
    assert limits({"trainer": none, "patience": None}) == {
        "max_epochs": 3, "max_steps": None, "max_time": None, "patience": None,
    }  # fmt: skip
    some = {"max_epochs": -1, "max_steps": 7, "max_time": "00:01:02:03"}
    assert limits({"trainer": some, "patience": 2}) == {
        "max_epochs": None, "max_steps": 7, "max_time": 3723, "patience": 2,
    }  # fmt: skip
    assert limits({"trainer": {**some, "max_time": {"minutes": 2}}, "patience": 2})["max_time"] == 120


@pytest.mark.parametrize(
    ("accelerator", "expected"),
    [("cpu", "cpu"), ("cuda", "cuda"), ("mps", "mps"), (CPUAccelerator(), "cpu"), (CUDAAccelerator(), "cuda")],
)
def test_an_accelerator_is_known_by_name_and_as_an_object(accelerator, expected):
    assert device_type(accelerator) == expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_without_an_accelerator_auto_is_the_cpu_and_gpu_is_what_lightning_will_look_for():
    assert device_type("auto") == "cpu"
    assert device_type("gpu") == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_auto_is_the_gpu():
    assert device_type("auto") == device_type("gpu") == "cuda"
