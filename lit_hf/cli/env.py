"""The verb env: what is installed and which devices there are, and what is missing here, each with its cure."""

from __future__ import annotations

import importlib.util
import json
import netrc
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from lit_hf.cli.options import Parser

PACKAGES = (
    "lit-hf",
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "tokenizers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "evaluate",
    "torchmetrics",
    "wandb",
    "tensorboard",
)
WANDB_HOST = "api.wandb.ai"
LOWEST_4BIT_CAPABILITY = (7, 5)
"""bitsandbytes' own limit for its CUDA kernels (Turing)."""


class Feature(NamedTuple):
    """Something that lit-hf can use where it is there.

    Attributes:
        name: What it is for.
        ready: Whether it can be used here.
        state: What was found.
        cure: What to do to have it; empty where it is ready.
    """

    name: str
    ready: bool
    state: str
    cure: str = ""


def run(argv: Sequence[str]) -> int:
    """Print versions, devices and what is missing.

    Returns:
        The exit code: 0 always, since a missing feature is no fault.
    """
    parser = Parser("env", "Show versions and devices, and what is missing here.")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    as_json = parser.parse_args(list(argv)).json
    found = {"versions": versions(), "devices": devices(), "features": [feature._asdict() for feature in features()]}
    print(json.dumps(found, indent=2) if as_json else "\n".join(_report(found)))
    return 0


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that matter; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def devices() -> dict[str, Any]:
    """Return the CPU's cores, the memory in bytes, and the accelerators."""
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": {"name": _cpu_name(), "cores": _usable_cores(), "memory": _memory()},
        "cuda": [
            {"name": gpu.name, "memory": gpu.total_memory, "capability": f"{gpu.major}.{gpu.minor}"} for gpu in gpus
        ],
        "mps": torch.backends.mps.is_available(),
        "tpu": importlib.util.find_spec("torch_xla") is not None,
    }


def features() -> Iterator[Feature]:
    """Yield what lit-hf can use here, or could."""
    yield _gpu()
    yield _quantization()
    yield _wandb()
    yield _tensorboard()
    yield _slurm()


def _gpu() -> Feature:
    import torch

    if torch.cuda.is_available():
        return Feature("GPU", True, f"{torch.cuda.device_count()} CUDA device(s), built for CUDA {torch.version.cuda}")
    if torch.backends.mps.is_available():
        return Feature("GPU", True, "Apple GPU (mps)")
    driver = shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None and torch.version.hip is None:
        cure = "Install torch built for CUDA: https://pytorch.org/get-started/locally."
        state = "this torch is built for the CPU only" + (", though there is an NVIDIA driver" if driver else "")
        return Feature("GPU", False, state, cure if driver else f"Use a machine with a GPU. {cure}")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return Feature("GPU", False, "CUDA_VISIBLE_DEVICES hides all devices", "Unset CUDA_VISIBLE_DEVICES.")
    cure = "Check the driver with nvidia-smi." if driver else "Install the NVIDIA driver, or use a machine with a GPU."
    return Feature("GPU", False, "no CUDA device is found", cure)


def _quantization() -> Feature:
    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        return Feature("4-bit", False, "bitsandbytes is not installed", "pip install bitsandbytes")
    version = metadata.version("bitsandbytes")
    if not torch.cuda.is_available():
        return Feature("4-bit", True, f"bitsandbytes {version}, on the CPU, which is slow")
    capability = torch.cuda.get_device_capability()
    if capability < LOWEST_4BIT_CAPABILITY:
        state = f"the GPU's compute capability is {capability[0]}.{capability[1]}, bitsandbytes needs 7.5"
        return Feature("4-bit", False, state, "Use a newer GPU (Turing or later).")
    return Feature("4-bit", True, f"bitsandbytes {version}")


def _wandb() -> Feature:
    if importlib.util.find_spec("wandb") is None:
        return Feature("W&B", False, "wandb is not installed", "pip install wandb")
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return Feature("W&B", False, f"WANDB_MODE is {os.environ['WANDB_MODE']}", "Unset WANDB_MODE to log online.")
    if not _has_wandb_login():
        cure = "Run `wandb login`, or set WANDB_API_KEY; until then runs are kept offline (`wandb sync` sends them)."
        return Feature("W&B", False, "installed, not logged in", cure)
    return Feature("W&B", True, "installed, logged in")


def _has_wandb_login() -> bool:
    """Say whether there is a key, without looking at it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return path.is_file() and netrc.netrc(path).authenticators(WANDB_HOST) is not None
    except (netrc.NetrcParseError, OSError):
        return False


def _tensorboard() -> Feature:
    if importlib.util.find_spec("tensorboard") or importlib.util.find_spec("tensorboardX"):
        return Feature("TensorBoard", True, "installed")
    return Feature("TensorBoard", False, "not installed", "pip install tensorboard")


def _slurm() -> Feature:
    if job := os.environ.get("SLURM_JOB_ID"):
        return Feature("SLURM", True, f"inside job {job}")
    if shutil.which("sbatch"):
        return Feature("SLURM", True, "sbatch is there")
    return Feature("SLURM", False, "sbatch is not on the PATH", "Run on a login node of the cluster.")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _usable_cores() -> int:
    """Return the cores that this process may use, which in a container or a job are not all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _report(found: dict[str, Any]) -> Iterator[str]:
    yield "versions"
    for name, version in found["versions"].items():
        yield f"  {name:<14} {version or 'not installed'}"
    yield from ("", "devices")
    cpu = found["devices"]["cpu"]
    yield f"  {'CPU':<14} {cpu['cores']} cores, {_gibibytes(cpu['memory'])} ({cpu['name']})"
    for index, gpu in enumerate(found["devices"]["cuda"]):
        yield f"  {f'CUDA {index}':<14} {gpu['name']}, {_gibibytes(gpu['memory'])}, capability {gpu['capability']}"
    if not found["devices"]["cuda"]:
        yield f"  {'CUDA':<14} none"
    for name in ("mps", "tpu"):
        yield f"  {name.upper():<14} {'yes' if found['devices'][name] else 'none'}"
    yield from ("", "features")
    for feature in found["features"]:
        yield f"  {feature['name']:<14} {'ready' if feature['ready'] else 'missing'}: {feature['state']}"
        if feature["cure"]:
            yield f"  {'':<14} -> {feature['cure']}"


def _gibibytes(size: int | None) -> str:
    return f"{size / 2**30:.1f} GiB" if size else "memory unknown"
