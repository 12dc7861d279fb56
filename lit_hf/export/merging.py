"""An adapter merged into its base model, which is brought back to full precision where it is quantized."""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from peft import PeftModel

from lit_hf.errors import InputError, LitHFError, Problem
from lit_hf.models.quantization import dequantize, name_of, stored_quantization, unmark

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_hf.export.verify import Answers


class Loss(NamedTuple):
    """How the outputs of a merged model differ from those of the quantized one that was trained.

    Attributes:
        quantization: How the base model was quantized.
        largest: The largest difference.
        mean: The mean of all differences.
        scale: The mean of all outputs, taken absolutely, to hold the differences against.
    """

    quantization: str
    largest: float
    mean: float
    scale: float

    def __str__(self) -> str:
        """Return one line for people."""
        return (
            f"merged into the dequantized base ({self.quantization}): beside the quantized model, outputs differ by "
            f"{self.largest:.2g} at most and {self.mean:.2g} in the mean, of {self.scale:.2g}"
        )


def merge(model: PeftModel) -> PreTrainedModel:
    """Return the base model with the adapter merged into it; the given one is not changed.

    A quantized base is dequantized to float32, merged, and then given the type that the model was loaded in.

    Raises:
        InputError: If the adapter cannot be merged, or the base cannot be dequantized.
    """
    plain = cast("PreTrainedModel", model.get_base_model())
    try:
        if stored_quantization(plain.config) is None:
            return copy.deepcopy(model).merge_and_unload(safe_merge=True)
        return _merge_quantized(model, getattr(plain.config, "dtype", None) or torch.float32)
    except (NotImplementedError, ValueError) as error:
        kind = model.active_peft_config.peft_type.value
        what = f"the {kind} adapter cannot be merged into its base model: {error}"
        raise InputError(Problem("merge", what, "Export the adapter alone: merge: false.")) from error


def _merge_quantized(model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """Merge in full precision: PEFT would quantize the merged weights again, and lose most of the adapter by that."""
    copied = copy.deepcopy(model)
    unmark(cast("PreTrainedModel", copied.get_base_model()))  # as PEFT refuses to take some adapters off such models
    base = dequantize(copied.unload())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        adapted = PeftModel.from_pretrained(base, folder)
    return adapted.merge_and_unload(safe_merge=True).to(dtype)


def loss_of_precision(model: PeftModel, before: Answers, after: Answers) -> Loss | None:
    """Compare the outputs of a model with a quantized base and of what it was merged to; None if it has another base.

    Args:
        model: The model with its adapter.
        before: Its outputs.
        after: The merged model's.

    Raises:
        LitHFError: If they differ so much that rounding cannot be the reason.
    """
    quantization = stored_quantization(cast("PreTrainedModel", model.get_base_model()).config)
    if quantization is None:
        return None
    pairs = [(old[name].double(), new[name].double()) for old, new in zip(before, after, strict=True) for name in old]
    differences = torch.cat([(old - new).abs().flatten() for old, new in pairs])
    outputs = torch.cat([old.abs().flatten() for old, _ in pairs])
    largest, mean, scale = (value.item() for value in (differences.max(), differences.mean(), outputs.mean()))
    lost = Loss(name_of(quantization), largest, mean, scale)
    if not mean <= 0.1 * max(scale, 0.1):
        cure = "Export the adapter alone: merge: false."
        raise LitHFError(Problem("merge", f"{lost}. Nothing was exported.", cure))
    return lost
