"""How a model is adapted: adapters merged into its base, the adapter that trains, and where that starts."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from safetensors import safe_open
from transformers import PreTrainedModel

from lit_hf.errors import InputError, Problem
from lit_hf.models.adapter_losses import leave_loss_alone
from lit_hf.models.adapter_starts import Loss, data_driven, finish, prepare
from lit_hf.models.adapters import adapter_problems, add_adapter, changes_base, reference_problems
from lit_hf.models.folder import ADAPTER_WEIGHTS, fetch, is_adapter
from lit_hf.models.loftq import as_plain_lora, asks_for_loftq, loftq_problems
from lit_hf.models.vocabulary import grow, token_problems, train_tokens
from lit_hf.task import Batch, Task

log = logging.getLogger("lit_hf")


class Adaptation:
    """What is put on a base model before it trains.

    Args:
        adapter: A PEFT config.
        checkpoint: Folder or Hub id of an adapter that trains on, instead of a new one.
        merged: Folders or Hub ids of adapters that are merged into the base model first, in this order.
        tokens: Tokens that are added to the vocabulary; their embeddings train beside the adapter.
        revision: The base model's revision, which the adapter's config keeps.
        is_quantized: Whether the base model is quantized as it loads.

    Attributes:
        starts_by_loftq: Whether the adapter starts from what quantization takes from the weights.
    """

    def __init__(
        self,
        adapter: PeftConfig | None = None,
        checkpoint: str | None = None,
        merged: Sequence[str] = (),
        tokens: Sequence[str] = (),
        revision: str | None = None,
        is_quantized: bool = False,
    ) -> None:
        self._given = adapter
        self.checkpoint = checkpoint
        self.merged = list(merged)
        self.tokens = list(tokens)
        self.revision = revision
        self._kept: PeftConfig | None = None
        self.starts_by_loftq = is_quantized and asks_for_loftq(adapter)
        if self.starts_by_loftq:
            as_plain_lora(adapter)
        if getattr(adapter, "lora_ga_config", None) is not None:
            adapter.init_lora_weights = "lora_ga"  # type: ignore[union-attr]  # PEFT's type hint has no such value

    @property
    def config(self) -> PeftConfig | None:
        """The adapter's config: a checkpoint's, that of the adapter to start from, or the given one."""
        if self._kept is not None:
            return self._kept
        return self._given if self.checkpoint is None else self._start_config

    @cached_property
    def _start_config(self) -> PeftConfig:
        config = _read_config("model.adapter_checkpoint", str(self.checkpoint))
        config.inference_mode = False
        return config

    # what a run keeps

    def state_dict(self) -> dict[str, Any] | None:
        """Return the adapter's config as plain values: its ranks may not be those it was asked for."""
        if self.config is None:
            return None
        return json.loads(json.dumps(self.config.to_dict(), default=_plain))

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Take back a run's adapter, whose weights and base model come from its checkpoint."""
        if state is not None:
            self._kept = PeftConfig.from_peft_type(**state)

    @property
    def changes_base(self) -> bool:
        """Whether the base model's own weights change: all of them train, or they do on the way to the adapter."""
        return self.config is None or bool(self.merged) or changes_base(self.config) is not None

    @property
    def is_new(self) -> bool:
        """Whether this is the start of a run, and not a run that has a checkpoint."""
        return self._kept is None

    # before weights are loaded

    def problems(self, task: Task, base: PreTrainedModel) -> Iterator[Problem]:
        """Find what is wrong with the adapters' settings.

        Args:
            task: What is to be learnt.
            base: The base model, on the meta device.
        """
        if self._given is not None and self.checkpoint is not None:
            what = "model.adapter makes a new adapter, and this one is there already."
            yield Problem("model.adapter_checkpoint", what, "Leave out one of the two.")
            return
        for index, name in enumerate(self.merged if self.is_new else ()):
            where = f"model.merge_adapters[{index}]"
            try:
                if _read_config(where, name).is_prompt_learning:
                    yield Problem(where, f"{name} is a prompt, which no model's weights can hold.", "Leave it out.")
            except InputError as error:
                yield from error.problems
        if self.config is None:
            return
        if self.starts_by_loftq:
            yield from loftq_problems(self.config)
        if task.reference_columns:
            yield from reference_problems(self.config)
        yield from token_problems(self.config, self.tokens)
        if self.is_new:
            # PEFT adds heads of all names to the config of an adapter that was trained
            ignored = "" if self.checkpoint is None else ".modules_to_save"
            yield from (
                one for one in adapter_problems(self.config, base) if not ignored or not one.where.endswith(ignored)
            )

    def weight_problems(self, adapted: PreTrainedModel | PeftModel) -> Iterator[Problem]:
        """Find weights of the adapter to start from that the adapted model has not, or has in another shape."""
        config: Any = self.config
        if self.checkpoint is not None and self.is_new and config is not None and not config.is_prompt_learning:
            yield from _weight_problems(fetch(self.checkpoint), adapted, PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type])

    def skeleton(self, task: Task, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        """Return a base model on the meta device with the adapter on it: modules and shapes without weights.

        Raises:
            InputError: If PEFT has no such adapter for this model.
        """
        if self.config is None:
            return base
        config = self._filled(base, task, copy.deepcopy(self.config))
        if data_driven(config):
            config.init_lora_weights = True
        try:
            with torch.device("meta"):
                return add_adapter(copy.deepcopy(base), copy.deepcopy(config), task.peft_task_type, ())
        except InputError:  # some adapters compute on the weights as they are made: let them have zeros
            zeros = base.to_empty(device="cpu")
            with torch.no_grad():
                for tensor in [*zeros.parameters(), *zeros.buffers()]:
                    tensor.zero_()
            return add_adapter(zeros, config, task.peft_task_type, ()).to("meta")

    def _filled(self, model: PreTrainedModel, task: Task, config: Any) -> Any:
        """Let the model grow by the added tokens, and return the adapter's config, in which they train."""
        if self.tokens:
            grow(model, len(task.tokenizer))
            if config is not None:
                train_tokens(config, model, self.tokens, task.tokenizer)
        return config

    # on the loaded model

    def apply(
        self,
        model: PreTrainedModel,
        task: Task,
        new_weights: Collection[str],
        sample: Callable[[PreTrainedModel], Sequence[Batch]],
    ) -> PreTrainedModel | PeftModel:
        """Merge, add, and start the adapter.

        Args:
            model: The base model with its weights.
            task: Names PEFT's task, and computes the loss where a start needs it.
            new_weights: Names of the model's weights that no checkpoint has trained.
            sample: Returns batches of the training data on the model's device, if need be another one; asked only where
                a start needs them.

        Raises:
            InputError: If PEFT has no such adapter for this model, or its start fails.
        """
        if self.is_new:
            for name in self.merged:
                model = _merge(model, name)
        config: Any = self._filled(model, task, self.config)
        if config is None:
            return model
        config.revision = self.revision
        start = data_driven(config)
        if start is not None and not self.is_new:
            return self._restored(model, task, new_weights)
        if start is not None:
            return self._started(model, task, new_weights, sample(model))
        adapted = add_adapter(model, config, task.peft_task_type, new_weights)
        leave_loss_alone(adapted)
        if self.checkpoint is not None and self.is_new:
            set_peft_model_state_dict(adapted, load_peft_weights(str(fetch(self.checkpoint)), device="cpu"))
            log.info("adapter: goes on from %s", self.checkpoint)
        return adapted

    def _restored(self, model: PreTrainedModel, task: Task, new_weights: Collection[str]) -> PeftModel:
        """Put on an adapter whose start was computed when the run began; its weights are loaded later."""
        config: Any = self.config
        start, config.init_lora_weights = config.init_lora_weights, True
        adapted = add_adapter(model, config, task.peft_task_type, new_weights)
        config.init_lora_weights = start
        return adapted

    def _started(
        self, model: PreTrainedModel, task: Task, new_weights: Collection[str], batches: Sequence[Batch]
    ) -> PeftModel:
        config: Any = self.config
        loss: Loss = lambda model, batch: task.forward(model, batch).loss  # noqa: E731
        with torch.device("meta"):
            skeleton: Any = self.skeleton(task, type(model)(model.config))
        targets = skeleton.peft_config["default"].target_modules
        try:
            prepare(model, config, targets, batches, loss)
            adapted = add_adapter(model, config, task.peft_task_type, new_weights)
            if data_driven(config) == "eva":
                finish(adapted, batches, loss)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            where, start = "model.adapter.init_args.init_lora_weights", config.init_lora_weights
            text = " ".join(str(error).split())
            raise InputError(Problem(where, f"{start!r} cannot start on this task's batches: {text}.")) from error
        log.info("adapter: started by %s from %s batches of the training data", config.init_lora_weights, len(batches))
        return adapted


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _read_config(where: str, name: str) -> PeftConfig:
    """Read an adapter's config from a folder or the Hub.

    Raises:
        InputError: If there is no adapter.
    """
    try:
        folder = fetch(name)
    except InputError as error:
        raise InputError(*(problem._replace(where=where) for problem in error.problems)) from error
    if not is_adapter(folder) or not (folder / ADAPTER_WEIGHTS).is_file():
        what = f"{name} holds no adapter (adapter_config.json and {ADAPTER_WEIGHTS})."
        raise InputError(Problem(where, what, "Give the folder of an exported adapter: runs/<name>/export."))
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(Problem(where, f"the adapter's config in {name} cannot be read: {error}.")) from error


def _weight_problems(folder: Path, adapted: Any, prefix: str) -> Iterator[Problem]:
    """Find weights of an adapter that the adapted model has not, or has in another shape; reads the header only.

    Args:
        folder: The adapter's.
        adapted: The model, on the meta device.
        prefix: Of the names of the adapter's own weights, which those of heads beside it do not have.
    """
    there = {name: tuple(value.shape) for name, value in adapted.state_dict().items()}
    there |= {name.replace(".default", "").replace(".modules_to_save", ""): shape for name, shape in there.items()}
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    wrong = {name: shape for name, shape in shapes.items() if name in there and there[name] != shape}
    where, cure = "model.adapter_checkpoint", "Start from an adapter of the same base model and labels."
    for name, shape in list(wrong.items())[:1]:
        more = f" ({len(wrong)} of its weights do not fit)" if len(wrong) > 1 else ""
        yield Problem(where, f"{name} has the shape {shape}, the model wants {there[name]}{more}.", cure)
    if lost := [name for name in shapes if prefix in name and name not in there]:
        what = f"{len(lost)} of its weights belong to no module of the model ({lost[0]}, ...)."
        yield Problem(where, what, cure)


def _merge(model: PreTrainedModel, name: str) -> PreTrainedModel:
    config = _read_config("model.merge_adapters", name)
    # a head that trained beside the adapter is another task's, or is loaded anew: the base alone is adapted
    try:
        merged = PeftModel.from_pretrained(model, str(fetch(name)), config=config).merge_and_unload(safe_merge=True)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InputError(Problem("model.merge_adapters", f"{name} cannot be merged: {text}.")) from error
    log.info("adapter %s: merged into the base model", name)
    return merged.requires_grad_(True)  # PEFT froze it
