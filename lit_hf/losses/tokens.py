"""The loss of language models at the tokens that are trained, without the logits of a whole batch.

A batch's logits are its tokens times the vocabulary: for 8,192 tokens and 128k words 4 GiB, several times over in the
backward pass, though of a chat only the answers are trained. Here the model runs as ever, but its output head sees a
token or two: a hook keeps the hidden states that came in. Loss and gradients are then computed from those that have a
target, in chunks, of which one exists at a time.

What a model does to its logits after the head (soft caps, scales, a bias) is done to the chunks, and is compared once
with what the model made of the token or two. Where it differs, or the model is no plain language model, the model
computes everything itself, as `transformers` wrote it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import get_device_states, set_device_states

from lit_hf.errors import Problem
from lit_hf.losses.output_head import After, Head
from lit_hf.task import IGNORED, TARGET_PLACES, Batch, Collator

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("lit_hf")


@dataclass
class TokenOutput:
    """What became of a batch.

    Attributes:
        loss: The mean over the targets, a scalar, with what the model adds to it (the balance of experts); 0 where
            there is no target.
        targets: How many targets there are.
        right: How many of them the model would have chosen; None where gradients are computed.
        logits: None: there never are all of them.
    """

    loss: Tensor
    targets: int
    right: Tensor | None = None
    logits: None = None


class FindTargets:
    """A collator that also finds where the targets are, on the host; a class, so that workers can be sent it.

    Their number makes the shapes of all that is computed of them: on a GPU, each step would have to wait for it.

    Args:
        collator: Makes the batch.
        shift: As `token_loss` has it.
        labels: Which of the batch's tensors the labels are; without it the batch stays as it is.
    """

    def __init__(self, collator: Collator, *, shift: bool, labels: str = "labels") -> None:
        self._collator = collator
        self._shift = shift
        self._labels = labels

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return the batch with its `TARGET_PLACES`."""
        batch = dict(self._collator(rows))
        if (labels := batch.get(self._labels)) is not None:
            batch[TARGET_PLACES] = _find(labels, self._shift)
        return batch


def _find(labels: Tensor, shift: bool) -> Tensor:
    """Return row and column of each label [rows, tokens]; the column is that of the hidden state that predicts it."""
    wanted = labels[:, 1:] if shift else labels
    return (wanted != IGNORED).nonzero().t().contiguous()


class _Places(NamedTuple):
    """Where tokens are predicted, and which.

    Attributes:
        rows: Row of the batch, shape [targets].
        columns: Token of the row whose hidden state predicts, shape [targets].
        ids: The predicted token, shape [targets].
    """

    rows: Tensor
    columns: Tensor
    ids: Tensor

    @classmethod
    def of(cls, batch: Batch, labels: Tensor, shift: bool) -> _Places:
        """Return the places that a batch has, or find them: on a GPU that waits for it."""
        found = batch.get(TARGET_PLACES)
        rows, columns = _find(labels, shift) if found is None else found
        return cls(rows, columns, labels[rows, columns + shift])

    def pick(self, values: Tensor, length: int) -> Tensor:
        """Return the values at the places.

        Args:
            values: Shape [rows, tokens, ...]; virtual tokens of prompt learning may stand in front.
            length: Tokens of a row without virtual ones.
        """
        width = values.shape[1]
        return values.flatten(0, 1).index_select(0, self.rows * width + self.columns + (width - length))


def smoothing_problems(label_smoothing: float) -> Iterator[Problem]:
    """Find what is wrong with a task's `label_smoothing`."""
    if not 0 <= label_smoothing < 1:
        yield Problem("task.label_smoothing", f"{label_smoothing} is not in [0, 1).", "0.1 is usual.")


def token_loss(model: PreTrainedModel, batch: Batch, *, shift: bool, label_smoothing: float = 0.0) -> TokenOutput:
    """Return the mean cross entropy over a batch's targets.

    Args:
        model: A language model with an output head; plain, quantized, or with an adapter.
        batch: What the model takes, and what `FindTargets` adds, where it made the batch. `labels` of shape [rows,
            tokens] are -100 where nothing is trained. Rows with `shift` are padded on the right.
        shift: Whether a token is predicted one place before, as decoders alone do.
        label_smoothing: As `torch.nn.functional.cross_entropy` has it.
    """
    places = _Places.of(batch, batch["labels"], shift)
    batch = _without_places(batch)
    lean = _run(model, _without_labels(model, batch), right_padded=shift) if _is_known(model) else None
    if lean is None:
        return _plain_loss(model, batch, places, label_smoothing)
    hidden = places.pick(lean.hidden, batch["labels"].shape[1])
    mean, right = lean.head.mean(hidden, places.ids, label_smoothing)
    return TokenOutput(mean + lean.extra, len(places.ids), right)


def token_log_probs(model: PreTrainedModel, batch: Batch, labels: Tensor) -> Tensor:
    """Return the log-probability of each label, given all that comes before it; 0 where there is none.

    Args:
        model: A decoder.
        batch: What the model takes, without labels, and what `FindTargets` adds; rows are padded on the right.
        labels: Shape [rows, tokens], -100 where no log-probability is wanted.

    Returns:
        Shape [rows, tokens - 1], in float32: the first token is not predicted.
    """
    places = _Places.of(batch, labels, shift=True)
    batch = _without_places(batch)
    lean = _run(model, batch, right_padded=True) if _is_known(model) else None
    if lean is None:
        scores = places.pick(model(**batch).logits, labels.shape[1]).float()
        losses = functional.cross_entropy(scores, places.ids, reduction="none")
    else:
        losses = lean.head.losses(places.pick(lean.hidden, labels.shape[1]), places.ids)
    empty = losses.new_zeros(labels.shape[0], labels.shape[1] - 1)
    return empty.index_put((places.rows, places.columns), -losses)


def _without_places(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != TARGET_PLACES}


# the model's pass


class _Pass(NamedTuple):
    """A forward pass up to the head: the hidden states [rows, tokens, size], the head, and what adds to the loss."""

    hidden: Tensor
    head: Head
    extra: Tensor | float


class _Tap:
    """Takes the hidden states in front of a head, which gets those of a token or two instead.

    It stays on its module for good, closed but for the passes of this file: a compiled model notices when it opens,
    but not when hooks come and go.
    """

    def __init__(self) -> None:
        self.open = False
        self.usable: bool | None = None  # unknown until the first pass
        self.hidden: Tensor | None = None
        self.raw: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.open or not args or args[0].ndim != 3:
            return None
        self.hidden = args[0]
        return args[0][:1, :2], *args[1:]

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.open:
            self.raw = output

    @contextmanager
    def opened(self) -> Iterator[None]:
        self.open = True
        try:
            yield
        finally:
            self.open = False
            self.hidden = self.raw = None


def _run(model: PreTrainedModel, inputs: dict[str, Any], *, right_padded: bool) -> _Pass | None:
    """Run the model up to its head; None where it has to compute its logits itself."""
    core = _core(model)
    head = core.get_output_embeddings()
    if head is None:
        return None
    tap = _tap(head)
    if tap.usable is False:
        return None
    inputs = _lean_inputs(model, core, inputs, right_padded)
    after = After.of(core)
    # a first pass that is of no use must not have drawn numbers: dropout would be another one than after a resume
    drawn = (torch.get_rng_state(), get_device_states(*inputs.values())) if tap.usable is None else None
    with tap.opened():
        outputs = model(**inputs)
        hidden, raw = tap.hidden, tap.raw
    if drawn is not None:
        tap.usable = hidden is not None and raw is not None and after.explains(raw, outputs.logits)
        if not tap.usable:
            torch.set_rng_state(drawn[0])
            set_device_states(*drawn[1])
            logger.info("%s computes all of its logits: it does to them what is not known here", type(core).__name__)
            return None
    assert hidden is not None
    return _Pass(hidden, Head(head, after), _extra_loss(core, outputs))


def _core(model: Any) -> Any:
    """Return the `transformers` model inside of an adapter's or a compiled one."""
    model = getattr(model, "_orig_mod", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


_OWN_LOSSES = frozenset({"CPT", "SHADOW"})
"""PEFT methods that compute another loss."""


def _is_known(model: Any) -> bool:
    """Whether the model's loss is the mean cross entropy of its logits, and at most a balance of experts."""
    core = _core(model)
    config = core.config
    routed_pairs = config.is_encoder_decoder and getattr(config, "output_router_logits", False)
    penalty = getattr(config, "z_loss_coefficient", None)
    own_loss = getattr(getattr(model, "active_peft_config", None), "peft_type", None) in _OWN_LOSSES
    return type(core).__module__.startswith("transformers.") and not (routed_pairs or penalty or own_loss)


def _without_labels(model: Any, batch: dict[str, Any]) -> dict[str, Any]:
    """Return what the model takes beside labels, of which a decoder behind an encoder reads those before."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    core = _core(model)
    if core.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = _shifted(core, batch["labels"])
    return inputs


def _shifted(core: Any, labels: Tensor) -> Tensor:
    """Return the labels one place later, after the model's start token."""
    if hasattr(core, "prepare_decoder_input_ids_from_labels"):
        return core.prepare_decoder_input_ids_from_labels(labels=labels)
    shift = sys.modules[type(core).__module__].shift_tokens_right  # M2M100, NLLB
    return shift(labels, core.config.pad_token_id, core.config.decoder_start_token_id)


def _tap(head: nn.Module) -> _Tap:
    """Return the tap of a head; the first time it is put in."""
    taps = (getattr(hook, "__self__", None) for hook in head._forward_pre_hooks.values())
    if tap := next((tap for tap in taps if isinstance(tap, _Tap)), None):
        return tap
    tap = _Tap()
    head.register_forward_pre_hook(tap.before)
    head.register_forward_hook(tap.after)
    return tap


def _lean_inputs(model: Any, core: Any, inputs: dict[str, Any], right_padded: bool) -> dict[str, Any]:
    """Return the inputs without a mask where that changes nothing."""
    prompts = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    if prompts:
        return inputs
    without = {"attention_mask"} if right_padded and _ignores_what_follows(core) else set()
    return {name: value for name, value in inputs.items() if name not in without}


_OWN_MASKS = frozenset({"prophetnet", "reformer", "xlm", "xlnet", "zamba", "flaubert"})
"""Decoders in which padding on the right does reach the tokens before it, or may."""


def _ignores_what_follows(core: Any) -> bool:
    """Whether no token of a row can depend on those behind it, so that padding there needs no mask.

    Then attention takes its causal kernels, and no mask of tokens x tokens is made.
    """
    config = core.config.get_text_config()
    counted = getattr(config, "output_router_logits", False)  # the balance of experts leaves padding out by the mask
    bidirectional = (
        config.is_encoder_decoder
        or getattr(config, "use_bidirectional_attention", False)
        or getattr(config, "is_causal", True) is False
        or (getattr(config, "is_decoder", None) is False and hasattr(config, "type_vocab_size"))
    )
    return not counted and not bidirectional and config.model_type not in _OWN_MASKS


def _extra_loss(core: Any, outputs: Any) -> Tensor | float:
    """Return what a mixture of experts adds to its loss."""
    extra = getattr(outputs, "aux_loss", None)
    if not isinstance(extra, Tensor):
        return 0.0
    names = ("router_aux_loss_coef", "aux_loss_coef")
    places = (core, core.config.get_text_config())
    return extra * next(getattr(place, name) for place in places for name in names if hasattr(place, name))


def _plain_loss(model: Any, batch: dict[str, Any], places: _Places, label_smoothing: float) -> TokenOutput:
    """Return the model's own loss; smoothing is added to it."""
    outputs = model(**batch)
    scores = places.pick(outputs.logits, batch["labels"].shape[1]).float()
    loss = outputs.loss
    if label_smoothing:
        smoothed = functional.cross_entropy(scores, places.ids, label_smoothing=label_smoothing)
        loss = loss + smoothed - functional.cross_entropy(scores, places.ids)
    right = None if torch.is_grad_enabled() else (scores.argmax(-1) == places.ids).sum()
    return TokenOutput(loss, len(places.ids), right)
