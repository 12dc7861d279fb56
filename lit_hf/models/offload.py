"""Models that are larger than a device: spread over devices, memory and disk by accelerate, for inference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_hf.errors import InputError, Problem

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

WHERE = "--device_map"
NO_FOLDER = Problem("--offload_folder", "is missing: weights go to the disk.", "Give a folder for them.")
MERGE = "Merge it first: lit-hf export <run> --merge."

OWN_FOLDER = "lit-hf-offload"
"""Name of the folder that weights go to, inside the one that is given: of what else lies there nothing is touched."""

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways in which accelerate finds a place for each module by itself."""


@dataclass(frozen=True)
class Offload:
    """Where the parts of a model go.

    Attributes:
        device_map: `auto` and its like, or the device of each module by name: a GPU's number, `cpu` or `disk`.
        max_memory: The most that a GPU by its number, or `cpu`, takes: bytes, or such as `20GiB`.
        folder: Where weights lie that go to the disk, unless they can stay in their own files: in `OWN_FOLDER` there.
    """

    device_map: str | Mapping[str, int | str] = "auto"
    max_memory: Mapping[int | str, int | str] | None = None
    folder: Path | None = None

    def problems(self) -> Iterator[Problem]:
        """Find settings that cannot be followed."""
        if isinstance(self.device_map, str) and self.device_map not in STRATEGIES:
            what = f"{self.device_map!r} is no way to spread a model."
            yield Problem(WHERE, what, f"Take {', '.join(STRATEGIES)}, or a JSON object of modules and devices.")
        if not isinstance(self.device_map, str) and "disk" in self.device_map.values() and self.folder is None:
            yield NO_FOLDER

    def arguments(self) -> dict[str, Any]:
        """Return the settings as `from_pretrained` has them."""
        spread = self.device_map if isinstance(self.device_map, str) else dict(self.device_map)
        arguments: dict[str, Any] = {"device_map": spread}
        if self.max_memory is not None:
            arguments["max_memory"] = dict(self.max_memory)
        if self.folder is not None:
            arguments["offload_folder"] = str(self.folder / OWN_FOLDER)
        return arguments

    def spread(self, model: PeftModel) -> PeftModel:
        """Spread a model with an adapter, as `from_pretrained` does it with one that has none.

        PEFT would do it as it loads the adapter, from a base model that is spread already: it writes a copy of the
        checkpoint beside itself for that, or in its place, where it is a folder. So all weights are in memory first.

        Args:
            model: The model, on the CPU.

        Raises:
            InputError: If weights go to the disk and there is no folder for them, or to places that do not go together.
        """
        from accelerate import dispatch_model, infer_auto_device_map
        from accelerate.utils import get_balanced_memory
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        whole = list(model._no_split_modules or ())
        if isinstance(self.device_map, str):
            limits: Any = self.max_memory
            if self.device_map != "sequential":
                limits = get_balanced_memory(model, limits, whole, low_zero=self.device_map == "balanced_low_0")
            places = infer_auto_device_map(model, limits, whole)
        else:
            places = _places(model, self.device_map)
        if "" in places:  # which accelerate's dispatch takes for no module
            places = {name: places[""] for name, _ in model.named_children()}
        if self.folder is None and "disk" in places.values():
            raise InputError(NO_FOLDER)
        own = self.folder / OWN_FOLDER if self.folder is not None else None
        if own is not None:
            (own / "index.json").unlink(missing_ok=True)  # of other weights, which would be taken for these
        # some adapters compute with the weights of the layer that they are on, instead of calling it
        wrappers = [one for one in model.modules() if isinstance(one, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        kinds = sorted({type(one).__name__ for one in wrappers})
        try:
            return dispatch_model(model, places, offload_dir=own, preload_module_classes=kinds, force_hooks=True)
        except ValueError as error:
            raise InputError(Problem(WHERE, f"the adapter cannot be spread so: {error}", MERGE)) from error


def adapter_problems(adapter: PeftConfig, is_quantized: bool) -> Iterator[Problem]:
    """Find adapters that are not spread with their base model.

    Args:
        adapter: The adapter's config.
        is_quantized: Whether its base model is quantized.
    """
    if adapter.is_prompt_learning:
        what = "a prompt and its base model share their embeddings, which cannot be brought to both from the disk."
        yield Problem(WHERE, what, "Leave it out, or train an adapter such as LoRA.")
    if is_quantized:
        what = "packed weights stay on one device."
        yield Problem(WHERE, f"the adapter's base model is quantized, and {what}", MERGE)


def _places(model: PeftModel, of_base: Mapping[str, int | str]) -> dict[str, int | str]:
    """Return the device of each module of a model with an adapter, by those of its base; what is not in it is small."""
    prefix = "base_model" if model.active_peft_config.is_prompt_learning else "base_model.model"
    places = {f"{prefix}.{name}".rstrip("."): place for name, place in of_base.items()}
    main = next((place for place in places.values() if place not in ("cpu", "disk")), "cpu")
    for name in model.state_dict():
        if not any(name.startswith(f"{place}.") for place in places):
            places[name.rpartition(".")[0]] = main
    return places


def input_device(model: PreTrainedModel) -> torch.device:
    """Return the device that a model's inputs go to: where its first weights are, or are brought to compute."""
    import torch

    placed = getattr(model, "hf_device_map", None)
    if placed is None:
        return model.device
    return torch.device(next((device for device in placed.values() if device not in ("cpu", "disk")), "cpu"))
