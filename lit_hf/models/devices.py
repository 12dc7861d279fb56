"""What devices can do: memory, operations and bytes a second."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import lru_cache

import torch

from lit_hf.errors import InputError, Problem, nearest

GB, TERA = 10**9, 10**12

H100 = "NVIDIA H100 datasheet"
A100 = "NVIDIA A100 datasheet"
ADA = "NVIDIA Ada architecture whitepaper 2.1"


@dataclass(frozen=True)
class Gpu:
    """A GPU by its datasheet.

    Attributes:
        memory: Bytes. Of the figure that names it, in powers of ten: what the driver keeps is about the difference.
        flops: Peak operations a second of dense matrices with sums in float32, in 10^12, by dtype.
        bandwidth: Bytes a second of its memory.
        link: Bytes a second to another GPU of the machine, one way: NVLink, else PCIe.
        network: Bytes a second of its share of the network to other machines, one way.
        name: What `torch.cuda.get_device_name` says, in part.
        source: Where the figures are from.
    """

    memory: float
    flops: dict[str, float]
    bandwidth: float
    link: float
    network: float
    name: str
    source: str


def _gpu(
    gigabytes: float, flops: tuple[float, float, float], rates: tuple[float, float, float], name: str, source: str
) -> Gpu:
    """Make an entry of the table.

    Args:
        gigabytes: Its memory.
        flops: 10^12 operations a second in float32, float16 and bfloat16 (0: it has none).
        rates: 10^9 bytes a second of memory, link and network.
        name: What torch calls it.
        source: Where the figures are from.
    """
    full, half, brain = flops
    by_dtype = {"float32": full, "float16": half, "bfloat16": brain}
    memory, link, network = (rate * GB for rate in rates)
    return Gpu(gigabytes * GB, by_dtype, memory, link, network, name, source)


GPUS: dict[str, Gpu] = {
    "v100-16gb": _gpu(16, (15.7, 125, 0), (900, 150, 1.6), "V100-SXM2-16GB", "NVIDIA V100 datasheet"),
    "v100-32gb": _gpu(32, (15.7, 125, 0), (900, 150, 1.6), "V100-SXM2-32GB", "NVIDIA V100 datasheet"),
    "t4-16gb": _gpu(16, (8.1, 65, 0), (320, 16, 1.6), "Tesla T4", "NVIDIA T4 datasheet"),
    "a10-24gb": _gpu(24, (31.2, 125, 125), (600, 32, 1.6), "NVIDIA A10", "NVIDIA A10 datasheet"),
    "a100-40gb": _gpu(40, (19.5, 312, 312), (1555, 300, 25), "A100-SXM4-40GB", A100),
    "a100-80gb": _gpu(80, (19.5, 312, 312), (2039, 300, 25), "A100-SXM4-80GB", A100),
    "rtx3090-24gb": _gpu(24, (35.6, 71, 71), (936, 32, 1.6), "RTX 3090", "NVIDIA Ampere GA102 whitepaper 2.1"),
    "a6000-48gb": _gpu(48, (38.7, 154.8, 154.8), (768, 32, 1.6), "RTX A6000", "NVIDIA Ampere GA102 whitepaper 2.1"),
    "l4-24gb": _gpu(24, (30.3, 121, 121), (300, 32, 1.6), "NVIDIA L4", ADA),
    "l40s-48gb": _gpu(48, (91.6, 362, 362), (864, 32, 12.5), "NVIDIA L40S", "NVIDIA L40S datasheet"),
    "rtx4090-24gb": _gpu(24, (82.6, 165.2, 165.2), (1008, 32, 1.6), "RTX 4090", ADA),
    "rtx5090-32gb": _gpu(32, (104.8, 209.5, 209.5), (1792, 64, 1.6), "RTX 5090", "NVIDIA Blackwell RTX whitepaper"),
    "h100-80gb": _gpu(80, (67, 989.4, 989.4), (3350, 450, 50), "H100 80GB HBM3", H100),
    "h100-pcie-80gb": _gpu(80, (51, 756, 756), (2000, 64, 25), "H100 PCIe", H100),
    "h200-141gb": _gpu(141, (67, 989.4, 989.4), (4800, 450, 50), "H200", "NVIDIA H200 datasheet"),
    "b200-180gb": _gpu(180, (75, 2250, 2250), (7700, 900, 50), "B200", "NVIDIA DGX B200 datasheet"),
    "mi300x-192gb": _gpu(192, (163.4, 1307.4, 1307.4), (5300, 448, 50), "MI300X", "AMD Instinct MI300X datasheet"),
}
"""Peak rates are those of dense matrices: datasheets print twice that, with sparsity. Of RTX 3090, 4090 and 5090 those
with sums in float32. The network is that of the maker's own machine (DGX: 400 Gbit/s a GPU for H100 and later, 200 for
A100), or 100 Gbit/s for 8 GPUs where there is none."""


def find_gpu(name: str) -> tuple[str, Gpu]:
    """Return a GPU of the table, by its name or the part of it that only one has.

    Raises:
        InputError: If there is none, or more than one.
    """
    wanted = name.lower().replace("_", "-").replace(" ", "-")
    # an a10 is no a100
    found = [key for key in GPUS if key == wanted] or [key for key in GPUS if key.startswith(f"{wanted}-")]
    found = found or [key for key in GPUS if wanted and key.startswith(wanted)]
    if len(found) == 1:
        return found[0], GPUS[found[0]]
    if found:
        raise InputError(Problem("--gpu", f"{name!r} may be several.", f"One of: {', '.join(found)}."))
    raise InputError(Problem("--gpu", f"{name!r} is not in the table.", nearest(wanted, GPUS)))


def gpu_name(full: str) -> str | None:
    """Return the name in the table of a GPU that torch calls so; None if it is not there."""
    # as whole words: an A10 is no A100
    return next((name for name, gpu in GPUS.items() if re.search(rf"\b{re.escape(gpu.name)}\b", full, re.I)), None)


def peak_flops(device: torch.device | str, dtype: torch.dtype) -> tuple[float, str]:
    """Return the most floating point operations a second of a device of this machine, and how that is known.

    Args:
        device: A GPU's rate is from the table, where it is there; all others are measured, by multiplying matrices.
        dtype: What the matrices are of.
    """
    device = torch.device(device)
    if device.type == "cuda":
        name = gpu_name(torch.cuda.get_device_name(device))
        if name is not None and (rate := GPUS[name].flops.get(_name(dtype))):
            return rate * TERA, GPUS[name].source
    return _measured(str(device), dtype, torch.get_num_threads()), "measured by multiplying matrices"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@lru_cache
def _measured(device: str, dtype: torch.dtype, threads: int, size: int = 1024, repeats: int = 5) -> float:
    """Return the operations a second of the fastest of a few products of square matrices; takes a fraction of a second.

    Args:
        device: Where.
        dtype: Of the matrices.
        threads: Of the CPU; the figure is kept for each number of them.
        size: Rows and columns.
        repeats: Products; the first one only warms up.
    """
    size = size if torch.device(device).type == "cpu" else 8 * size
    left = torch.ones(size, size, device=device, dtype=dtype)
    right = torch.ones_like(left)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(left, right)
        if left.device.type != "cpu":
            torch.accelerator.synchronize(left.device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
