"""Models from plain Hugging Face folders, full or adapter, read as data: no code that lies in a folder is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lit_hf.errors import InputError, Problem, raise_problems
from lit_hf.hub import load_problem
from lit_hf.models.damage import damaged_weights

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from lit_hf.models.offload import Offload

MANIFEST = "lit_hf.json"
"""Tells which task an exported model was trained for, and what it learnt from its data."""

CARD = "README.md"
"""The model card."""

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

MODEL_CONFIG = "model_config"
"""Folder of the config.json beside an adapter; at the top, it would make transformers look for whole weights there."""

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is loaded from the Hub, and pushed there: weights, configs and tokenizers; never a pickle, never code."""


def fetch(name: str | Path, revision: str | None = None) -> Path:
    """Return a local folder as it is, or load a repository of the Hub; never a pickle, never code.

    Raises:
        InputError: If there is neither such a folder nor such a repository.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=list(FILES)))
    except (HFValidationError, OSError) as error:
        raise InputError(load_problem("folder", str(name), "model", error)) from error


def is_adapter(folder: Path) -> bool:
    """Say whether the folder holds an adapter, and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """Return the model's config, which carries the label names; beside an adapter, that of the adapted model.

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    from transformers import AutoConfig

    source: str | Path = folder
    if is_adapter(folder):
        beside = folder / MODEL_CONFIG
        source = beside if beside.is_dir() else json.loads((folder / ADAPTER_CONFIG).read_text("utf-8"))[_BASE]
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unreadable(folder, "the model's config", error) from error


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Return the folder's tokenizer.

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, "the tokenizer", error) from error


def load_model(
    folder: Path,
    auto_class: str,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    offload: Offload | None = None,
) -> PreTrainedModel:
    """Load a model the way anyone would, with transformers and PEFT alone, in eval mode and in its own dtype.

    Args:
        folder: Folder of a whole model, or of an adapter, whose base model is then loaded too.
        auto_class: Name of the `transformers` Auto class.
        device: Where to put it.
        trust_remote_code: Run the model's own code, if it brings any.
        offload: Spread the model over devices, memory and disk, instead of putting it on `device`.

    Raises:
        InputError: If a file is missing or damaged, or if weights of the model are not in the folder.
    """
    raise_problems([*damaged_weights(folder), *(offload.problems() if offload else ())])
    config = load_config(folder, trust_remote_code)
    is_placed = offload is not None or hasattr(config, "quantization_config")
    try:
        if is_adapter(folder):
            model = _load_adapted(folder, auto_class, config, trust_remote_code, device, offload)
        else:
            placement = offload.arguments() if offload else {"device_map": {"": device}} if is_placed else {}
            model = _load_whole(folder, auto_class, config, trust_remote_code, placement)
    except (ImportError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise _unreadable(folder, "the model", error) from error
    if not is_placed:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper of `to` hides its arguments
    return model.eval()


_BASE = "base_model_name_or_path"


def _load_whole(
    folder: Path, auto_class: str, config: PretrainedConfig, trust_remote_code: bool, arguments: dict[str, Any]
) -> PreTrainedModel:
    model, missing = _from_pretrained(str(folder), None, auto_class, config, trust_remote_code, arguments)
    _refuse_untrained(folder, auto_class, missing)
    if hasattr(config, "quantization_config"):
        from lit_hf.models.quantization import keep_packing

        model = keep_packing(model)
    return model


def _load_adapted(
    folder: Path,
    auto_class: str,
    config: PretrainedConfig,
    trust_remote_code: bool,
    device: str | torch.device,
    offload: Offload | None,
) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel
    from safetensors import safe_open

    from lit_hf.models.adapter_losses import leave_loss_alone
    from lit_hf.models.adapters import own_rank_pattern
    from lit_hf.models.offload import adapter_problems
    from lit_hf.models.vocabulary import grow, ungrow

    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise OSError(f"there is no {ADAPTER_WEIGHTS} in it")
    peft_config = PeftConfig.from_pretrained(str(folder))
    if offload is not None:
        raise_problems(adapter_problems(peft_config, hasattr(config, "quantization_config")))
    base = str(peft_config.base_model_name_or_path)
    try:
        arguments = _quantized(base, peft_config.revision, config, trust_remote_code, device)
        size = ungrow(config, base, peft_config.revision, trust_remote_code)
        model, missing = _from_pretrained(base, peft_config.revision, auto_class, config, trust_remote_code, arguments)
        grow(model, size)
    except OSError as error:
        where = f"{folder / ADAPTER_CONFIG}: {_BASE}"
        cure = "Mend the path there, or export a model that needs no base: lit-hf export --merge."
        raise InputError(Problem(where, f"the adapter's base model {base!r} cannot be loaded.", cure)) from error
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as weights:
        adapted = tuple(weights.keys())
    _refuse_untrained(folder, auto_class, {name for name in missing if not any(key.endswith(name) for key in adapted)})
    if arguments:
        from lit_hf.models.quantization import prepare

        model = prepare(model)
    with own_rank_pattern(peft_config):
        adapted_model = PeftModel.from_pretrained(model, str(folder))
    leave_loss_alone(adapted_model)
    return cast("PreTrainedModel", adapted_model if offload is None else offload.spread(adapted_model))


def _quantized(
    base: str, revision: str | None, config: PretrainedConfig, trust_remote_code: bool, device: str | torch.device
) -> dict[str, Any]:
    """Return the arguments by which an adapter's base model is quantized as it was when the adapter was trained."""
    if not hasattr(config, "quantization_config"):
        return {}
    from transformers import AutoConfig

    from lit_hf.models.quantization import placement

    own = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=trust_remote_code)
    return placement(config, own, device)


def _from_pretrained(
    name: str,
    revision: str | None,
    auto_class: str,
    config: PretrainedConfig,
    trust_remote_code: bool,
    arguments: dict[str, Any],
) -> tuple[PreTrainedModel, set[str]]:
    """Return the model and the names of its weights that are not in the checkpoint."""
    import transformers

    model, info = getattr(transformers, auto_class).from_pretrained(
        name,
        revision=revision,
        config=config,
        dtype="auto",
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        **arguments,
    )
    return model, set(info["missing_keys"])


def _refuse_untrained(folder: Path, auto_class: str, missing: set[str]) -> None:
    if missing:
        raise InputError(
            Problem(
                str(folder),
                f"the model has no trained head for {auto_class}: {_some(sorted(missing))} not in its weights.",
                "Its answers would be random. Fine-tune it first: lit-hf fit.",
            )
        )


def _unreadable(folder: Path, what: str, error: Exception) -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(Problem(str(folder), f"{what} cannot be loaded: {lines[0]}"))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
