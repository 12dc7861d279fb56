"""The Lightning module: a task, a model, an optimizer, and the steps of training and evaluation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch.nn import ModuleDict
from torch.optim import AdamW
from torchmetrics import MetricCollection
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from lit_hf.errors import InputError, Problem, collect
from lit_hf.evaluation.metrics import MeanLoss
from lit_hf.models.accounting import count_parameters
from lit_hf.models.adapters import adapter_problems, add_adapter, reference_problems
from lit_hf.models.freezing import freeze, freeze_problems
from lit_hf.models.loading import Base
from lit_hf.models.packed_attention import prompt_problems
from lit_hf.models.switches import Switches
from lit_hf.task import Batch, Sizes, Task
from lit_hf.training.optimizers import Rates, Schedule, base_rate, build_optimizer, parameter_groups
from lit_hf.training.precision import low_precision_note

log = logging.getLogger(__name__)


class LitModule(LightningModule):
    """The model and how it is trained.

    Args:
        task: What is to be learnt.
        checkpoint: Hub id or local folder of a pretrained model.
        revision: Branch, tag or commit of the checkpoint on the Hub.
        config: Train from scratch: a transformers config with its `model_type`; not used beside a checkpoint.
        adapter: A PEFT config, by `class_path` (`peft.LoraConfig`); without one all weights train.
        quantization: A transformers quantization config, by `class_path`.
        dtype: Type of the weights: float32 master weights by default; `auto` takes the checkpoint's own.
        attention: Attention implementation (`eager`, `sdpa`, `flex_attention`, `flash_attention_2`).
        freeze: Regular expressions; parameters with one of them in their names do not train.
        gradient_checkpointing: Save memory: compute activations again in the backward pass.
        compile: Compile the layers with `torch.compile`.
        liger: Use liger-kernel's Triton kernels, on a CUDA GPU.
        trust_remote_code: Run Python code that comes with the checkpoint.
        packing: Whether training rows hold several documents; follows `data.packing`.
        optimizer: Any optimizer, by `class_path`; biases and norms never decay.
        rates: Learning rates of parts of the model: of the matrices B of LoRA, and by layer.
        schedule: How the learning rate goes.

    Attributes:
        model: The `transformers` or PEFT model; None until `configure_model`.
        results: The latest evaluation, by logged name: numbers, and lists for what is no single number.
    """

    def __init__(
        self,
        task: Task,
        checkpoint: str | None = None,
        revision: str | None = None,
        config: dict[str, Any] | None = None,
        adapter: PeftConfig | None = None,
        quantization: QuantizationConfigMixin | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        attention: str | None = None,
        freeze: list[str] | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        liger: bool = False,
        trust_remote_code: bool = False,
        packing: bool = False,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=5e-5),
        rates: Rates = Rates(),  # noqa: B008 - a settings block, read only
        schedule: Schedule = Schedule(),  # noqa: B008 - a settings block, read only
    ) -> None:
        super().__init__()
        self.task = task
        self.base = Base(checkpoint, revision, config or {}, dtype, attention, trust_remote_code, quantization, packing)
        self.adapter = adapter
        self.frozen = freeze or []
        self.switches = Switches(gradient_checkpointing, compile, liger)
        self.optimizer = optimizer
        self.rates = rates
        self.schedule = schedule
        self.model: Any = None
        self.losses = ModuleDict()  # by split: the mean over targets
        self.metrics = ModuleDict()  # by split: the task's
        self.results: dict[str, Any] = {}

    def check(self) -> list[Problem]:
        """Find what is wrong with the settings, before weights are loaded; the task must be bound."""
        if self.base.quantization is not None:
            what = "training on quantized weights is not there yet."
            return [
                Problem("model.quantization", what, "Leave it out; train an adapter (model.adapter) to save memory.")
            ]
        problems = [*self.schedule.problems(), *self.base.problems(self.task), *self._length_problems()]
        if self.adapter is not None and self.task.needs_reference:
            problems += reference_problems(self.adapter)
        if self.base.packing:
            problems += prompt_problems(self.adapter)
        if not problems:
            problems = collect(self._model_problems)
        return problems

    def _model_problems(self) -> Iterator[Problem]:
        base = self.base.skeleton(self.task)
        yield from self.switches.problems(base)
        if self.adapter is not None and (unmatched := list(adapter_problems(self.adapter, base))):
            yield from unmatched
            return
        model = self._adapted(base)
        yield from freeze_problems(model, self.frozen)
        yield from self.rates.problems(model)

    @property
    def longest_input(self) -> int | None:
        """The longest input in tokens; the virtual tokens of prompt learning take their part of the positions."""
        limit = self.base.longest_input
        return None if limit is None else limit - (getattr(self.adapter, "num_virtual_tokens", None) or 0)

    def _length_problems(self) -> Iterator[Problem]:
        limit, length = self.longest_input, self.task.tokenizer.model_max_length
        if limit is not None and limit < length:
            yield Problem(
                "data.max_length",
                f"{length:,} tokens are longer than the model takes: {limit:,}.",
                f"Set data.max_length to {limit} or less, or leave it out.",
            )

    def skeleton(self) -> PreTrainedModel | PeftModel:
        """Return the model on the meta device, its adapter included: modules and shapes without weights."""
        model = self._adapted(self.base.skeleton(self.task))
        freeze(model, self.frozen)
        return model

    def _adapted(self, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        if self.adapter is None:
            return base
        with torch.device("meta"):
            return add_adapter(base, copy.deepcopy(self.adapter), self.task.peft_task_type, ())

    def configure_model(self) -> None:
        """Build the model, once; Lightning calls this after the data is set up and before each stage."""
        if self.model is not None:
            return
        if self.base.checkpoint is not None and self.base.config:
            log.info("model: the checkpoint; model.config is not used beside one")
        model, new_weights = self.base.build(self.task)
        if new_weights:
            log.info("new weights, not in the checkpoint: %s", ", ".join(new_weights))
        self.model = model
        if self.adapter is not None:
            self.adapter.revision = self.base.revision
            self.model = add_adapter(model, self.adapter, self.task.peft_task_type, new_weights)
        freeze(self.model, self.frozen)
        self.switches.turn_on(self.model)
        model.config.pad_token_id = self.task.tokenizer.pad_token_id
        log.info("model: %s", count_parameters(self.model))

    def setup(self, stage: str) -> None:
        """Make the metrics of the stage's splits."""
        for split in {"fit": ("val",), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            self.losses[split] = MeanLoss()
            self.metrics[split] = self.task.metrics()

    def on_fit_start(self) -> None:
        """Compile the layers, and tell of weights that train in 16 bits."""
        self.switches.compile_layers(self.model)
        if (note := low_precision_note(self.model)) and self.trainer.is_global_zero:
            log.warning(note)

    # steps

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return a batch's part of the mean loss over all targets of the optimizer step, and its own `mean_loss`."""
        outputs = self.task.forward(self.model, _inputs(batch))
        loss = outputs.loss
        if loss is None:
            raise InputError(
                Problem("task", "the model returned no loss: its batches have no labels.", "Check the task's columns.")
            )
        values = {"loss": loss.detach(), **(getattr(outputs, "logs", None) or {})}
        self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=batch["sizes"].rows)
        return {"loss": loss * self._share(batch["sizes"]), "mean_loss": loss.detach()}

    def _share(self, sizes: Sizes) -> Tensor | float:
        """Return the factor by which a step's loss is the mean over all its targets.

        Lightning takes the mean of the losses of the accumulated batches and of the ranks; with unequal numbers of
        targets that is not the mean over targets.
        """
        accumulated, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if ranks == 1:
            return sizes.targets / max(sizes.step_targets, 1) * accumulated
        all_targets = torch.tensor(float(sizes.step_targets), device=self.device)
        torch.distributed.all_reduce(all_targets)
        return sizes.targets / all_targets.clamp(min=1) * accumulated * ranks

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the learning rate that the step is made with."""
        self.log("train/lr", base_rate(optimizer))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch of the validation split."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch of the test split."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Batch, split: str) -> None:
        sizes, metrics = batch["sizes"], cast(MetricCollection, self.metrics[split])
        if sizes.rows == 0:  # keeps the ranks in step where a forward pass communicates; its result is dropped
            self.task.evaluate(self.model, _inputs(batch), self.task.metrics().to(self.device))
            return
        loss = self.task.evaluate(self.model, _inputs(batch), metrics)
        cast(MeanLoss, self.losses[split]).update(loss.detach(), sizes.targets)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        mean, metrics = cast(MeanLoss, self.losses[split]), cast(MetricCollection, self.metrics[split])
        if not self.trainer.sanity_checking:
            values = {"loss": mean.compute(), **metrics.compute()}
            self.results = {f"{split}/{name}": value.tolist() for name, value in values.items()}
            self.log_dict({name: value for name, value in self.results.items() if isinstance(value, float)})
        mean.reset()
        metrics.reset()

    # optimization and checkpoints

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, without decay on biases and norms, and its schedule, stepped once an optimizer step."""
        is_scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # and then could not be clipped
        optimizer = build_optimizer(self.optimizer, parameter_groups(self.model, self.rates), fuse=not is_scaled)
        scheduler = self.schedule.build(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the latest results, and what the task learnt from the data: later verbs need no training data."""
        checkpoint["task"] = self.task.state_dict()
        checkpoint["results"] = self.results

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back what the task learnt from the data."""
        self.task.load_state_dict(checkpoint["task"])


def _inputs(batch: Batch) -> Batch:
    """Return the batch without its sizes: what the task's collator made."""
    return {name: value for name, value in batch.items() if name != "sizes"}
