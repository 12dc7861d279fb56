"""`--safe-config`: a config that is data, from which nothing is run but what is admitted here.

The check reads the config's text, before any of it is imported. jsonargparse gets the same list, and refuses what it
would import beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from lit_hf.cli import words
from lit_hf.cli.reading import Value, is_remote, walk_scalars
from lit_hf.errors import Problem
from lit_hf.hub import is_local

FLAG = "--safe-config"

ADMITTED = (
    "bitsandbytes.optim",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lit_hf",
    "peft",
    "torch.optim",
    "torchao.optim",
    "torchao.quantization",
    "transformers.BitsAndBytesConfig",
    "transformers.TorchAoConfig",
)
"""What a class_path may begin with: whole names, each of classes that compute and write where they are told to."""

DEFINED_IN = ("lightning.fabric.plugins", "transformers.utils.quantization_config")
"""Where classes of `ADMITTED` come from that are only passed on there."""

CURE = f"If you trust whoever wrote the config, leave {FLAG} out."

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_INDEX = re.compile(r"\[\d+\]")
_REPOSITORIES = re.compile(
    r"(model\.(checkpoint|adapter_checkpoint|merge_adapters)|data\.(tokenizer\.checkpoint|source\.path)"
    r"|.*\.(base_model_name_or_path|tokenizer_name_or_path))"
)
_FUNCTIONS = ("generator", "auto_map", "auto_mapping")
_ATTENTION = ("attention", "attn_implementation", "_attn_implementation", "experts_implementation")


def is_admitted(import_path: str) -> bool:
    """Say whether a class may be imported from there; a bare name is one of classes that are imported already."""
    return "." not in import_path or any(f"{import_path}.".startswith(f"{prefix}.") for prefix in ADMITTED)


def refused_import(import_path: str) -> str:
    """Return what is wrong with an import path that is not admitted."""
    return f"{import_path} is not imported: {FLAG} admits {', '.join(ADMITTED)}."


def find_unsafe(key: str, value: Value) -> Iterator[tuple[str, Problem]]:
    """Yield the key of everything in a value that would run or fetch something, and what to tell the user.

    What depends on the types of keys is found by `find_import_paths`.

    Args:
        key: The dotted key of the value; empty for a whole file.
        value: What was written.
    """
    for scalar_key, scalar in walk_scalars(key, value):
        if what := _refused(_INDEX.sub("", scalar_key), scalar.content):
            where = f"{scalar_key} ({scalar.place})" if scalar.place else scalar_key
            yield scalar_key, Problem(where, what, CURE)


def find_import_paths(hint: Any, key: str, value: Value) -> Iterator[tuple[str, Problem]]:
    """Yield the key of every text in a value that would be imported, because of its type, and is not admitted.

    Args:
        hint: The type that is expected.
        key: The dotted key of the value.
        value: What was written.
    """
    if not words.names_code(hint):
        return
    for scalar_key, scalar in walk_scalars(key, value):
        text = scalar.content
        if not isinstance(text, str) or not _IMPORT_PATH.fullmatch(text) or scalar_key.endswith(".class_path"):
            continue
        where = f"{scalar_key} ({scalar.place})" if scalar.place else scalar_key
        if words.is_function(hint):
            yield scalar_key, Problem(where, f"{text} is a function, and {FLAG} imports none.", CURE)
        elif not is_admitted(text):
            yield scalar_key, Problem(where, refused_import(text), CURE)


def _refused(key: str, content: Any) -> str:
    """Return what is wrong with a scalar under a key, whatever its type; empty if nothing is."""
    names = key.split(".")
    if content in (None, False, ""):
        return ""
    if names[-1] == "trust_remote_code":
        return f"no code that comes with a model is run with {FLAG}."
    names_function = any(name in _FUNCTIONS for name in names)
    if names_function or (names[-1] == "megatron_core" and content != "megatron.core"):
        return f"this names code to run, and {FLAG} runs none."
    return _refused_text(key, names, content) if isinstance(content, str) else ""


def _refused_text(key: str, names: list[str], text: str) -> str:
    if names[-1] == "class_path":
        return "" if is_admitted(text) else refused_import(text)
    if is_remote(text):
        return f"{FLAG} reads from this machine only, no URLs."
    if names[-1] in _ATTENTION and "/" in text:
        return f"{text} is a kernel of the Hub: it is code, and {FLAG} runs none."
    if _REPOSITORIES.fullmatch(key) and not is_local(text):
        return f"there is no folder {text}, and {FLAG} fetches nothing from the Hub. Download it: hf download."
    if names[0] == "trainer" and (PurePath(text).is_absolute() or ".." in PurePath(text).parts):
        return f"{text} leads out of the working folder, where {FLAG} lets nothing be written."
    return ""
