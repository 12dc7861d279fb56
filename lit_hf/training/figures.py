"""The figures of a training: what was worked through, in which time, and how much of it was waiting."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lit_hf.models.devices import peak_flops
from lit_hf.models.flops import FlopCosts, flop_costs
from lit_hf.task import Sizes


class Work(NamedTuple):
    """Sums over batches of what they hold (`Sizes`), padding told apart."""

    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    targets: int = 0
    attended: int = 0

    def plus(self, sizes: Sizes) -> Work:
        """Return the sums with a batch more."""
        return Work(
            self.rows + sizes.rows,
            self.tokens + sizes.tokens,
            self.padded_tokens + sizes.padded_tokens,
            self.targets + sizes.targets,
            self.attended + sizes.attended,
        )

    def since(self, earlier: Work) -> Work:
        """Return what came after earlier sums."""
        return Work(*(now - then for now, then in zip(self, earlier, strict=True)))

    @property
    def padding_share(self) -> float | None:
        """The share of the padded tokens that is padding."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else None


class Model:
    """What of a model its figures depend on: operations for each token, and the most that its device can do.

    Args:
        module: Its `model` is counted; without one there is nothing to count.
        precision: The precision of the arithmetic, as Lightning's trainer names it.
    """

    def __init__(self, module: LightningModule, precision: str) -> None:
        model = getattr(module, "model", None)
        self._costs: FlopCosts | None = flop_costs(model) if isinstance(model, nn.Module) else None
        self._decodes = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        parts = model.modules() if isinstance(model, nn.Module) else ()
        self._is_causal = not self._decodes and any(getattr(part, "is_causal", False) is True for part in parts)
        self._device = module.device
        half = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.partition("-")[0])
        self._dtype = half or next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), None)
        self._peak: tuple[float, str] | None = None

    def measure(self) -> None:
        """Find out the peak rate of the device; where it has to be measured, that takes a moment."""
        if self._costs is not None and self._dtype is not None:
            self._peak = peak_flops(self._device, self._dtype)

    @property
    def peak(self) -> dict[str, Any] | None:
        """The operations a second that a share is made of, and where the figure is from."""
        if self._peak is None:
            return None
        rate, source = self._peak
        return {"flops_per_second": rate, "dtype": str(self._dtype).removeprefix("torch."), "source": source}

    def share_of_peak(self, work: Work, seconds: float) -> float | None:
        """Return the operations that some work needs, by those that the device could do in that time (MFU)."""
        if self._costs is None or self._peak is None or not seconds:
            return None
        attended = (work.attended + work.tokens) / 2 if self._is_causal else work.attended
        decoder_tokens = work.targets if self._decodes else 0
        return self._costs.step(work.tokens, attended, work.targets, decoder_tokens) / (seconds * self._peak[0])


def figures(work: Work, seconds: float, waited: float | None, model: Model | None, ranks: int) -> dict[str, Any]:
    """Return what a time was used for; None where there is nothing to tell.

    Args:
        work: What was worked through, on all ranks.
        seconds: In which time; a mean over the ranks.
        waited: How much of it went by waiting for batches.
        model: The model.
        ranks: Number of ranks.

    Returns:
        rows_per_second, tokens_per_second, padded_tokens_per_second, targets_per_second: Rows, tokens without padding,
            tokens with it, and targets: labelled tokens, or rows where a row has one label.
        data_wait_share: The share of the time in which the loop waited for the loader's next batch.
        mfu: Model FLOPs utilization. Operations of the matrices that the tokens without padding need, with the output
            head at targets only and no gradients of frozen weights, by what the devices can do in that time.
    """
    rates = {f"{name}_per_second": getattr(work, name) / seconds if seconds else None for name in Work._fields[:4]}
    return {
        **rates,
        "data_wait_share": waited / seconds if seconds and waited is not None else None,
        "mfu": model.share_of_peak(work, seconds * ranks) if model is not None else None,
    }


def percentiles(seconds: array[float]) -> dict[str, float] | None:
    """Return the median, the 90th and the 99th percentile of durations; None where there are none."""
    if not seconds:
        return None
    return {f"p{share}": float(np.percentile(seconds, share)) for share in (50, 90, 99)}
