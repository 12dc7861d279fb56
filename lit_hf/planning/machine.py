"""Where a run is planned for: its devices, what they can do, and the precision that they train in."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import torch

from lit_hf.errors import InputError, Problem
from lit_hf.models.devices import GB, GPUS, TERA, find_gpu, gpu_name, peak_flops
from lit_hf.planning.memory import PRECISIONS
from lit_hf.planning.planned_run import TrainerSettings
from lit_hf.training.precision import default_precision, unified
from lit_hf.training.settings import device_type

USABLE = 0.9
"""Share of a device's memory that a plan may fill: the rest is for what kernels and libraries take, and for fragments
(transformers leaves as much, `Bnb4BitHfQuantizer.adjust_max_memory`)."""

EFFICIENCY_OF_GPU = 0.4
"""Share of the peak rate that is planned with. Llama 3 was trained at 0.38 to 0.43 (Grattafiori et al., "The Llama 3
Herd of Models", 2024, table 4); small models and short rows reach less."""

EFFICIENCY_OF_CPU = 0.5
"""The same for a CPU, whose peak is measured by large products; a training step has smaller ones, and other work."""

GIGABIT = 10**9 / 8

UNKNOWN_LINK, UNKNOWN_NETWORK = 16.0 * GB, 1.25 * GB
"""Bytes a second between devices that are not in the table: PCIe 3.0, and 10 Gbit/s."""


@dataclass(frozen=True)
class Machine:
    """Where a run is planned for.

    Attributes:
        name: What it is called.
        is_gpu: Whether it is a GPU.
        memory: Bytes of each device.
        flops: Peak operations a second of each device in the precision of the run.
        source: How that is known.
        efficiency: Share of the peak that is reached.
        link: Bytes a second between devices of one machine.
        network: Bytes a second of a device to other machines.
        devices: Devices of a machine.
        nodes: Machines.
        precision: Lightning's name of the precision of the run.
    """

    name: str
    is_gpu: bool
    memory: float
    flops: float
    source: str
    efficiency: float
    link: float
    network: float
    devices: int
    nodes: int
    precision: str

    @property
    def world(self) -> int:
        """Devices in all."""
        return self.devices * self.nodes

    @property
    def usable(self) -> float:
        """Bytes of each device that may be filled."""
        return USABLE * self.memory

    def fits(self, total: float) -> bool:
        """Say whether that many bytes fit on a device."""
        return total <= self.usable

    def bandwidth(self, within: bool) -> float:
        """Return the bytes a second that each device sends, to devices of its machine or of all."""
        return self.link if within or self.nodes == 1 else self.network


def find_machine(
    trainer: TrainerSettings,
    *,
    gpu: str | None = None,
    devices: int | None = None,
    nodes: int | None = None,
    efficiency: float | None = None,
    network: float | None = None,
) -> Machine:
    """Return where a run is planned for: the GPU that is named, else the one that is here, else the CPU.

    Args:
        trainer: How the trainer is set.
        gpu: A GPU of the table, by its name or the part of it that only one has.
        devices: Devices of a machine; by default the trainer's.
        nodes: Machines; by default the trainer's.
        efficiency: Share of the peak that is reached; by default what is usual.
        network: Gbit/s of a device to other machines; by default the table's.

    Raises:
        InputError: If the GPU is not known, or has not the precision of the run.
    """
    devices = devices or (trainer.devices if isinstance(trainer.devices, int) and trainer.devices > 0 else 1)
    named = find_gpu(gpu)[0] if gpu else None
    precision = _precision(trainer, named)
    machine = _known_gpu(named, precision) if named else _machine_here(trainer, precision)
    # the processes of one machine share its CPU and its memory
    shared = 1 if machine.is_gpu else devices
    return replace(
        machine,
        memory=machine.memory / shared,
        flops=machine.flops / shared,
        efficiency=efficiency or machine.efficiency,
        network=network * GIGABIT if network else machine.network,
        devices=devices,
        nodes=nodes or trainer.num_nodes,
    )


def _known_gpu(name: str, precision: str) -> Machine:
    """Return a machine with one GPU of the table."""
    gpu, rate = GPUS[name], _peak(name, compute_dtype(precision))
    return Machine(name, True, gpu.memory, rate, gpu.source, EFFICIENCY_OF_GPU, gpu.link, gpu.network, 1, 1, precision)


def _machine_here(trainer: TrainerSettings, precision: str) -> Machine:
    """Return this machine, with one device."""
    if not (torch.cuda.is_available() and device_type(trainer.accelerator) == "cuda"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        rate, source = peak_flops("cpu", compute_dtype(precision))
        efficiency, links = EFFICIENCY_OF_CPU, (UNKNOWN_LINK, UNKNOWN_NETWORK)
        return Machine("this machine's CPU", False, memory, rate, source, efficiency, *links, 1, 1, precision)
    here = torch.cuda.get_device_name()
    if name := gpu_name(here):
        return _known_gpu(name, precision)
    rate, source = peak_flops("cuda", compute_dtype(precision))
    memory, links = torch.cuda.mem_get_info()[1], (UNKNOWN_LINK, UNKNOWN_NETWORK)
    return Machine(here, True, memory, rate, source, EFFICIENCY_OF_GPU, *links, 1, 1, precision)


def compute_dtype(precision: str) -> torch.dtype:
    """Return the type in which matrices are multiplied in one of Lightning's precisions; float32 if it is unknown."""
    autocast, dtype = PRECISIONS.get(precision, (None, None))
    return autocast or dtype or torch.float32


def _precision(trainer: TrainerSettings, gpu: str | None) -> str:
    """Return the precision that the run would have: the config's, or the one that fit takes on that machine.

    Args:
        trainer: How the trainer is set.
        gpu: Name in the table of the GPU that is planned for; None for the device that is here.
    """
    if trainer.precision is not None:
        return unified(trainer.precision)
    if gpu is None:
        return default_precision(trainer.accelerator)
    return "bf16-mixed" if GPUS[gpu].flops["bfloat16"] else "32-true"


def _peak(name: str, dtype: torch.dtype) -> float:
    """Return the operations a second of a GPU of the table.

    Raises:
        InputError: If it has no such type.
    """
    of_dtype = str(dtype).removeprefix("torch.")
    if not GPUS[name].flops[of_dtype]:
        raise InputError(Problem("trainer.precision", f"{name} has no {of_dtype}.", "Take 16-mixed."))
    return GPUS[name].flops[of_dtype] * TERA
