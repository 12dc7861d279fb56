"""Models that are larger than a device: spread over devices, memory and disk by accelerate, for inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_hf.errors import Problem

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which accelerate finds a place for each module by itself."""


@dataclass(frozen=True)
class Offload:
    """Where the parts of a model go.

    Attributes:
        device_map: `auto` and its like, or the device of each module by name: a GPU's number, `cpu` or `disk`.
        max_memory: The most that a GPU by its number, or `cpu`, takes: bytes, or such as `20GiB`.
        folder: Where weights lie that go to the disk, unless they can stay in their own files.
    """

    device_map: str | Mapping[str, int | str] = "auto"
    max_memory: Mapping[int | str, int | str] | None = None
    folder: Path | None = None

    def problems(self, is_adapter: bool) -> Iterator[Problem]:
        """Find settings that cannot be followed.

        Args:
            is_adapter: Whether the model is an adapter on a base model.
        """
        where = "--device_map"
        if isinstance(self.device_map, str) and self.device_map not in STRATEGIES:
            what = f"{self.device_map!r} is no way to spread a model."
            yield Problem(where, what, f"Take {', '.join(STRATEGIES)}, or a JSON object of modules and devices.")
        if is_adapter:
            what = "the folder holds an adapter, and only whole models are spread."
            yield Problem(where, what, "Merge it first: lit-hf export <run> --merge.")
        if not isinstance(self.device_map, str) and "disk" in self.device_map.values() and self.folder is None:
            yield Problem("--offload_folder", "is missing: weights go to the disk.", "Give a folder for them.")

    def arguments(self) -> dict[str, Any]:
        """Return the settings as `from_pretrained` has them."""
        spread = self.device_map if isinstance(self.device_map, str) else dict(self.device_map)
        arguments: dict[str, Any] = {"device_map": spread}
        if self.max_memory is not None:
            arguments["max_memory"] = dict(self.max_memory)
        if self.folder is not None:
            arguments["offload_folder"] = str(self.folder)
        return arguments


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device that a model's inputs go to: where its first weights are, or are brought to compute."""
    import torch

    placed = getattr(model, "hf_device_map", None)
    if placed is None:
        return model.device
    return torch.device(next((device for device in placed.values() if device not in ("cpu", "disk")), "cpu"))
