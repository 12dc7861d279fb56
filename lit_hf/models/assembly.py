"""A model and what is put on it: what is wrong with the parts together, their shapes, and the model that trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from lit_hf.errors import Problem, collect
from lit_hf.models.accounting import count_parameters
from lit_hf.models.adaptation import Adaptation
from lit_hf.models.freezing import freeze, freeze_problems, rank_problems
from lit_hf.models.loading import Base
from lit_hf.models.loftq import start_from_loss
from lit_hf.models.packed_attention import prompt_problems
from lit_hf.models.quantization import quantization_problems
from lit_hf.models.stored import base_weights, stored_names
from lit_hf.models.switches import Switches
from lit_hf.task import Batch, Task

log = logging.getLogger(__name__)

Sample = Callable[[PreTrainedModel], Sequence[Batch]]
"""Returns batches of the training data, on the device of the model."""


@dataclass(frozen=True)
class Assembly:
    """The parts of a model.

    Attributes:
        base: The base model.
        adaptation: The adapters on it.
        frozen: Patterns of the names of parameters that do not train.
        switches: What its training may cost.
    """

    base: Base
    adaptation: Adaptation
    frozen: Sequence[str]
    switches: Switches

    @property
    def adapter(self) -> PeftConfig | None:
        """The config of the adapter that trains; None where the model itself does."""
        return self.adaptation.config

    @property
    def longest_input(self) -> int | None:
        """The longest input in tokens; the virtual tokens of prompt learning take their part of the positions."""
        limit = self.base.longest_input
        return None if limit is None else limit - (getattr(self.adapter, "num_virtual_tokens", None) or 0)

    @property
    def stores_base(self) -> bool:
        """Whether checkpoints hold the base model's weights: not where an adapter trains, and they load from theirs."""
        return self.base.checkpoint is None or self.adaptation.changes_base

    def problems(self, task: Task, of_model: Callable[[nn.Module], Iterable[Problem]]) -> Iterator[Problem]:
        """Find what is wrong with the parts, and what is with the model that they would make if nothing is.

        Args:
            task: What is to be learnt; it is bound.
            of_model: Finds what else is wrong, on the adapted model on the meta device.
        """
        found = [*self.base.problems(task), *self._length_problems(task)]
        base, merged = self.base, self.adaptation.merged
        stored, from_scratch = base.stored_quantization, base.checkpoint is None
        found += quantization_problems(base.quantization, stored, self.adapter, merged, from_scratch)
        if base.packing:
            found += prompt_problems(self.adapter)
        yield from found or collect(lambda: self._model_problems(task, of_model))

    def _length_problems(self, task: Task) -> Iterator[Problem]:
        limit, length = self.longest_input, task.tokenizer.model_max_length
        if limit is not None and limit < length:
            yield Problem(
                "data.max_length",
                f"{length:,} tokens are longer than the model takes: {limit:,}.",
                f"Set data.max_length to {limit} or less, or leave it out.",
            )

    def _model_problems(self, task: Task, of_model: Callable[[nn.Module], Iterable[Problem]]) -> Iterator[Problem]:
        base = self.base.skeleton(task)
        yield from self.switches.problems(base)
        if wrong := list(self.adaptation.problems(task, base)):
            yield from wrong
            return
        model = self.adaptation.skeleton(task, base)
        yield from self.adaptation.weight_problems(model)
        wrong = list(freeze_problems(model, self.frozen))
        yield from wrong or rank_problems(self.adapter, model, self.frozen)
        yield from of_model(model)

    def skeleton(self, task: Task) -> PreTrainedModel | PeftModel:
        """Return the model on the meta device, its adapter included: modules and shapes without weights."""
        model = self.adaptation.skeleton(task, self.base.skeleton(task))
        freeze(model, self.frozen)
        return model

    def build(self, task: Task, sample: Sample) -> tuple[PreTrainedModel | PeftModel, Collection[str] | None]:
        """Return the model with its weights, and the names of its tensors that checkpoints hold; None: all.

        Args:
            task: The task.
            sample: Asked where the adapter starts from the data.

        Raises:
            InputError: If the checkpoint is damaged, or the parts do not fit.
        """
        if self.base.checkpoint is not None and self.base.config:
            log.info("model: the checkpoint; model.config is not used beside one")
        base, new_weights = self.base.build(task, getattr(self.adapter, "modules_to_save", None) or ())
        if new_weights:
            log.info("new weights, not in the checkpoint: %s", ", ".join(new_weights))
        from_checkpoint = base_weights(base, new_weights)
        model: Any = self.adaptation.apply(base, task, new_weights, sample)
        stored = None if self.stores_base else stored_names(model, from_checkpoint)
        if self.adaptation.starts_by_loftq and self.adaptation.is_new:
            start_from_loss(model, replace(self.base, quantization=None, dtype="auto").build(task)[0])
        freeze(model, self.frozen)
        self.switches.turn_on(model)
        model.config.pad_token_id = task.tokenizer.pad_token_id
        log.info("model: %s", count_parameters(model))
        return model, stored
