"""Weights that do not train, by patterns of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from peft import PeftConfig
from torch import nn

from lit_hf.errors import Problem
from lit_hf.models.module_names import closest


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters in whose names one of the regular expressions is found."""
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in patterns):
            parameter.requires_grad_(False)


def freeze_problems(model: nn.Module, patterns: Sequence[str]) -> Iterator[Problem]:
    """Find patterns that are no regular expression, that no parameter has, or that leave nothing to train.

    Args:
        model: The model before anything is frozen, with its adapter; on the meta device.
        patterns: Regular expressions.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    left = set(trained)
    for index, pattern in enumerate(patterns):
        where = f"model.freeze[{index}]"
        try:
            found = {name for name in trained if re.search(pattern, name)}
        except re.error as error:
            yield Problem(where, f"{pattern!r} is no regular expression: {error}.", r"Write a dot of a name as '\.'.")
            continue
        if not found:
            what = f"{pattern!r} is in no name of a parameter that trains."
            yield Problem(where, what, closest(pattern, trained))
        left -= found
    if trained and not left:
        yield Problem("model.freeze", "no parameter is left to train.", "Leave some out of the patterns.")


def rank_problems(adapter: PeftConfig | None, model: nn.Module, patterns: Sequence[str]) -> Iterator[Problem]:
    """Find frozen matrices of AdaLoRA, which shares out its ranks by the gradients of all of them.

    Args:
        adapter: The adapter's config.
        model: The model with its adapter, on the meta device.
        patterns: Regular expressions.
    """
    if not hasattr(adapter, "total_step"):
        return
    names = [name for name, _ in model.named_parameters() if "lora_" in name]
    if lost := [name for name in names if any(re.search(pattern, name) for pattern in patterns)]:
        what = f"ranks are shared out by the gradients of all matrices of the adapter, and {lost[0]} would have none."
        yield Problem("model.freeze", what, "Leave these out of the patterns, or take peft.LoraConfig.")
