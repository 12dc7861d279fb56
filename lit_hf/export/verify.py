"""Does a written model answer as the model that it was written from?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel

from lit_hf.errors import LitHFError, Problem
from lit_hf.models.folder import load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

PROBES = (
    "A short text.",
    "def area(radius):\n    return 3.14159 * radius ** 2",
    "한국어 문장 하나. Ein Satz mit Umlauten: äöü! Une phrase en français, à peine plus longue.",
    "A longer text with 12,345 numbers, punctuation (of some kinds) and enough words that positions further on "
    "are used as well: the quick brown fox jumps over the lazy dog while seven wizards watch from the hill.",
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5}
MERGED_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
HALF_TOLERANCE = 2e-2
MERGED_HALF_TOLERANCE = 1e-1


Answers = list[dict[str, torch.Tensor]]
"""The floating outputs of a model by name, for each probe."""


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Answers:
    """Return all floating outputs of a model for each probe, computed in eval mode; the model is left as it was."""
    device = next(model.parameters()).device
    with _evaluating(model), torch.inference_mode():
        return [_floats(model(**_inputs(model, tokenizer, probe).to(device))) for probe in PROBES]


def verify(
    folder: Path,
    auto_class: str,
    tokenizer: PreTrainedTokenizerBase,
    expected: Answers,
    tolerance: float,
    trust_remote_code: bool = False,
) -> float:
    """Load a folder with plain transformers and compare it with the model that was written.

    Args:
        folder: What was written.
        auto_class: Name of the `transformers` Auto class.
        tokenizer: The tokenizer that was written.
        expected: What `answers` returned for the model.
        tolerance: Largest difference that is still the same, relative to the largest output where that is above 1.
        trust_remote_code: Run the model's own code, as training did.

    Returns:
        The largest difference.

    Raises:
        LitHFError: If tokenizer or model differ.
    """
    reloaded = load_tokenizer(folder, trust_remote_code)
    for probe in PROBES:
        if not torch.equal(_encode(tokenizer, probe)["input_ids"], _encode(reloaded, probe)["input_ids"]):
            raise LitHFError(_problem(f"the reloaded tokenizer gives other tokens for {probe[:40]!r}"))
    device = next(iter(expected[0].values())).device
    model = load_model(folder, auto_class, device, trust_remote_code)
    largest = 0.0
    for before, after in zip(expected, answers(model, tokenizer), strict=True):
        for name, values in before.items():
            difference = (values.double() - after[name].double()).abs().max().item()
            if not difference <= tolerance * max(1.0, values.abs().max().item()):
                what = f"the reloaded model's {name} differ by {difference:.3g}, more than {tolerance:.0e}"
                raise LitHFError(_problem(what))
            largest = max(largest, difference)
    return largest


def tolerance_for(dtype: torch.dtype, merged: bool) -> float:
    """Return the difference that rounding alone may make."""
    if merged:
        return MERGED_TOLERANCE.get(dtype, MERGED_HALF_TOLERANCE)
    return TOLERANCE.get(dtype, HALF_TOLERANCE)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> BatchEncoding:
    # half of what the model takes leaves room for the virtual tokens of a prompt
    return tokenizer(text, truncation=True, max_length=min(tokenizer.model_max_length, 512) // 2, return_tensors="pt")


def _inputs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> BatchEncoding:
    inputs = _encode(tokenizer, text)
    if model.config.is_encoder_decoder and "labels" not in inputs:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    if type(plain).__name__.endswith("ForMultipleChoice"):
        inputs.update({name: values.unsqueeze(1) for name, values in inputs.items()})  # [rows, choices, tokens]
    return inputs


def _floats(outputs: dict[str, object]) -> dict[str, torch.Tensor]:
    return {
        name: value for name, value in outputs.items() if isinstance(value, torch.Tensor) and value.is_floating_point()
    }


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _problem(what: str) -> Problem:
    return Problem(
        "export", f"{what}. Nothing was exported.", "This is a fault of lit-hf or a library; please report it."
    )
