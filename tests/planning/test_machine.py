import os

import pytest
import torch

from lit_hf.errors import InputError
from lit_hf.planning.machine import EFFICIENCY_OF_CPU, EFFICIENCY_OF_GPU, compute_dtype, find_machine
from lit_hf.planning.planned_run import TrainerSettings
from tests.planning.conftest import machine

ON_CPU = TrainerSettings(accelerator="cpu")


def test_a_gpu_is_what_its_datasheet_says():
    found = find_machine(TrainerSettings(), gpu="h100-80gb")
    assert (found.name, found.is_gpu, found.memory) == ("h100-80gb", True, 80e9)
    assert (found.precision, found.flops) == ("bf16-mixed", 989.4e12)
    assert (found.link, found.network) == (450e9, 50e9)
    assert (found.source, found.efficiency) == ("NVIDIA H100 datasheet", EFFICIENCY_OF_GPU)
    assert (found.devices, found.nodes) == (1, 1)


@pytest.mark.parametrize(
    ("trainer", "devices", "nodes"),
    [
        (TrainerSettings(devices=4, num_nodes=2), 4, 2),
        (TrainerSettings(devices="auto"), 1, 1),
        (TrainerSettings(devices=-1), 1, 1),
        (TrainerSettings(devices=[0, 1]), 1, 1),
    ],
)
def test_devices_are_the_trainer_s_where_it_counts_them(trainer, devices, nodes):
    found = find_machine(trainer, gpu="l4")
    assert (found.devices, found.nodes, found.world) == (devices, nodes, devices * nodes)


def test_what_is_given_goes_before_the_trainer_and_the_table():
    trainer = TrainerSettings(devices=4, num_nodes=2)
    found = find_machine(trainer, gpu="l4", devices=8, nodes=3, efficiency=0.25, network=100)
    assert (found.world, found.efficiency, found.network) == (24, 0.25, 100e9 / 8)


def test_the_processes_of_a_cpu_share_it():
    alone, shared = find_machine(ON_CPU), find_machine(ON_CPU, devices=4)
    assert alone.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert (shared.memory, shared.flops) == (alone.memory / 4, alone.flops / 4)
    assert (alone.name, alone.is_gpu, alone.efficiency) == ("this machine's CPU", False, EFFICIENCY_OF_CPU)


@pytest.mark.parametrize(
    ("gpu", "precision", "expected"),
    [
        ("h100-80gb", None, "bf16-mixed"),
        ("v100-16gb", None, "32-true"),
        ("v100-16gb", "16", "16-mixed"),
        ("v100-16gb", 32, "32-true"),
        ("h100-80gb", "bf16-true", "bf16-true"),
        (None, None, "32-true"),
    ],
)
def test_the_precision_is_the_config_s_or_what_fit_takes(gpu, precision, expected):
    trainer = TrainerSettings(accelerator="cpu" if gpu is None else "auto", precision=precision)
    assert find_machine(trainer, gpu=gpu).precision == expected


@pytest.mark.parametrize(("gpu", "precision"), [("t4", "bf16-mixed"), ("v100-32gb", "bf16-true")])
def test_a_type_that_the_gpu_has_not_is_refused(gpu, precision):
    with pytest.raises(InputError, match=r"trainer\.precision: .* has no bfloat16\. *Take 16-mixed|has no bfloat16"):
        find_machine(TrainerSettings(precision=precision), gpu=gpu)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float16),
        ("bf16-true", torch.bfloat16),
        ("64-true", torch.float32),
    ],
)
def test_matrices_are_multiplied_in_the_type_that_forward_is_cast_to(precision, dtype):
    assert compute_dtype(precision) == dtype


def test_a_tenth_of_the_memory_is_left_free():
    where = machine(memory=100)
    assert where.usable == 90
    assert where.fits(90) and not where.fits(91)


def test_bytes_go_by_the_network_only_between_machines():
    assert machine(devices=8).bandwidth(within=False) == machine().link
    several = machine(devices=8, nodes=2)
    assert (several.bandwidth(within=True), several.bandwidth(within=False)) == (several.link, several.network)
