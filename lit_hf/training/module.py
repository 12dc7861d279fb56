"""The Lightning module: a task, a model, an optimizer, and the steps of training and evaluation."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from peft import PeftConfig, PeftModel
from torch import Tensor
from torch.nn import ModuleDict
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW
from transformers import PreTrainedModel
from transformers.utils.quantization_config import QuantizationConfigMixin

from lit_hf.errors import InputError, Problem
from lit_hf.models.adaptation import Adaptation
from lit_hf.models.adapter_losses import regularization
from lit_hf.models.assembly import Assembly
from lit_hf.models.loading import Base
from lit_hf.models.quantization import quantized_parameters
from lit_hf.models.stored import misfit
from lit_hf.models.switches import Switches
from lit_hf.task import Batch, Sizes, Task
from lit_hf.training.adapter_batches import Draw, place
from lit_hf.training.callbacks.budget import RankBudget, moves_ranks
from lit_hf.training.optimizers import Rates, Schedule, base_rate, build_optimizer, parameter_groups
from lit_hf.training.precision import low_precision_note
from lit_hf.training.scores import NO_LOSS, Scores

log = logging.getLogger(__name__)


class LitModule(LightningModule):
    """The model and how it is trained.

    Args:
        task: What is to be learnt.
        checkpoint: Hub id or local folder of a pretrained model.
        revision: Branch, tag or commit of the checkpoint on the Hub.
        config: Train from scratch: a transformers config with its `model_type`; not used beside a checkpoint.
        adapter: A PEFT config, by `class_path` (`peft.LoraConfig`); without one all weights train.
        adapter_checkpoint: Folder or Hub id of an adapter that trains on, in place of a new one.
        merge_adapters: Folders or Hub ids of adapters that are merged into the base model before anything trains.
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
        add_tokens: Tokens that the model must learn; follows `data.tokenizer.add_tokens`.

    Attributes:
        model: The `transformers` or PEFT model; None until `configure_model`.
        draw_batches: Draws what an adapter starts from, where one starts from the data; set by whoever has these.
        results: The latest evaluation, by logged name: numbers, and lists for what is no single number.
        results_at: The optimizer steps that were done then.
    """

    def __init__(
        self,
        task: Task,
        checkpoint: str | None = None,
        revision: str | None = None,
        config: dict[str, Any] | None = None,
        adapter: PeftConfig | None = None,
        adapter_checkpoint: str | None = None,
        merge_adapters: list[str] | None = None,
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
        add_tokens: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.base = Base(checkpoint, revision, config or {}, dtype, attention, trust_remote_code, quantization, packing)
        self.base.added_tokens = len(add_tokens or ())
        self.adaptation = Adaptation(
            adapter, adapter_checkpoint, merge_adapters or (), add_tokens or (), revision, quantization is not None
        )
        self.frozen = freeze or []
        self.switches = Switches(gradient_checkpointing, compile, liger)
        self.optimizer = optimizer
        self.rates = rates
        self.schedule = schedule
        self.model: Any = None
        self.draw_batches: Draw | None = None
        self.scores = ModuleDict()  # by split
        self.results: dict[str, Any] = {}
        self.results_at: int | None = None
        self._step_targets: Tensor | None = None  # of all ranks, for the optimizer step that is being made
        self.stored: Collection[str] | None = None  # names of the model's tensors that go into checkpoints; None: all

    @property
    def parts(self) -> Assembly:
        """What the model is made of."""
        return Assembly(self.base, self.adaptation, self.frozen, self.switches)

    @property
    def adapter(self) -> PeftConfig | None:
        """The config of the adapter that trains; None where the model itself does."""
        return self.parts.adapter

    @property
    def longest_input(self) -> int | None:
        """The longest input in tokens; None where positions have no fixed limit."""
        return self.parts.longest_input

    def check(self) -> list[Problem]:
        """Find what is wrong with the settings, before weights are loaded; the task must be bound."""
        return [*self.schedule.problems(), *self.parts.problems(self.task, self.rates.problems)]

    def skeleton(self) -> PreTrainedModel | PeftModel:
        """Return the model on the meta device, its adapter included: modules and shapes without weights."""
        return self.parts.skeleton(self.task)

    def configure_model(self) -> None:
        """Build the model, once; Lightning calls this after the data is set up and before each stage."""
        if self.model is None:
            self.model, self.stored = self.parts.build(self.task, self._sample)
            # all ranks load the same; torchao's weights cannot be sent
            packed = [f"model.{name}" for name in quantized_parameters(self.model)]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, packed)

    def _sample(self, model: PreTrainedModel) -> Sequence[Batch]:
        draw, adapter = cast(Draw, self.draw_batches), cast(PeftConfig, self.adapter)
        return place(draw(adapter), model, self.trainer.strategy.root_device)

    def configure_callbacks(self) -> list[Callback]:
        """Return what moves an adapter's ranks between layers, where it does."""
        adapter = self.adapter
        return [RankBudget(adapter)] if adapter is not None and moves_ranks(adapter) else []

    def setup(self, stage: str) -> None:
        """Make the metrics of the stage's splits."""
        for split in {"fit": ("val",), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            self.scores[split] = Scores(self.task.metrics())

    def on_fit_start(self) -> None:
        """Speed the model up, and tell of weights that train in 16 bits."""
        self.switches.speed_up(self.model)
        if (note := low_precision_note(self.model)) and self.trainer.is_global_zero:
            log.warning(note)

    # steps

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return a batch's part of the mean loss over all targets of the optimizer step, and its own `mean_loss`."""
        outputs = self.task.forward(self.model, _inputs(batch))
        loss = outputs.loss
        if loss is None:
            raise InputError(NO_LOSS)
        values = {"loss": loss.detach(), **(getattr(outputs, "logs", None) or {})}
        added = regularization(self.model)
        if added is not None:
            values["regularization"] = added.detach()
        self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=batch["sizes"].rows)
        share = loss * self._share(batch["sizes"], batch_idx)
        return {"loss": share if added is None else share + added, "mean_loss": loss.detach()}

    def _share(self, sizes: Sizes, batch_idx: int) -> Tensor | float:
        """Return the factor by which a step's loss is the mean over all its targets.

        Lightning takes the mean of the losses of the accumulated batches and of the ranks; with unequal numbers of
        targets that is not the mean over targets. The ranks' targets are added up at the first batch of a step, which
        is at a multiple of the accumulated ones: each epoch starts a step, and runs resume between steps.
        """
        accumulated, ranks = self.trainer.accumulate_grad_batches, self.trainer.world_size
        if ranks == 1:
            return sizes.targets / max(sizes.step_targets, 1) * accumulated
        if self._step_targets is None or batch_idx % accumulated == 0:
            # not waited for, as the copy of a tensor from the host would be
            self._step_targets = torch.full((), float(sizes.step_targets), device=self.device)
            torch.distributed.all_reduce(self._step_targets)
        return sizes.targets / self._step_targets.clamp(min=1) * accumulated * ranks

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the learning rate that the step is made with."""
        # filled on the device: of a number Lightning makes a tensor that a GPU is waited for
        self.log("train/lr", torch.full((), base_rate(optimizer), device=self.device))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch of the validation split."""
        cast(Scores, self.scores["val"]).add(self.task, self.model, _inputs(batch), batch["sizes"])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate a batch of the test split."""
        cast(Scores, self.scores["test"]).add(self.task, self.model, _inputs(batch), batch["sizes"])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation split."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test split."""
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        scores = cast(Scores, self.scores[split])
        if not self.trainer.sanity_checking:
            self.results = {f"{split}/{name}": value.tolist() for name, value in scores.compute().items()}
            self.results_at = self.trainer.global_step
            numbers = {name: float(value) for name, value in self.results.items() if isinstance(value, float | int)}
            self.log_dict(numbers)
        scores.reset()

    # optimization and checkpoints

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, without decay on biases and norms, and its schedule, stepped once an optimizer step."""
        is_scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = build_optimizer(self.optimizer, parameter_groups(self.model, self.rates), is_scaled)
        scheduler = self.schedule.build(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the latest results, and what the task learnt from the data: later verbs need no training data.

        Of a model with an adapter only what is not in the base model's own checkpoint is kept.
        """
        if self.stored is not None:
            kept = {f"model.{name}" for name in self.stored}
            checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}
        checkpoint["task"] = self.task.state_dict()
        checkpoint["adapter"] = self.adaptation.state_dict()
        checkpoint["results"], checkpoint["results_at"] = self.results, self.results_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the latest results, and what the task learnt from the data."""
        self.task.load_state_dict(checkpoint["task"])
        self.results, self.results_at = checkpoint["results"], checkpoint.get("results_at")

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take a checkpoint's tensors: all that checkpoints hold must be there, and nothing that the model has not.

        Raises:
            RuntimeError: If they do not fit.
        """
        if self.stored is None:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        if strict and (what := misfit(state_dict, self.state_dict(), {f"model.{name}" for name in self.stored})):
            raise RuntimeError(what)
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def _inputs(batch: Batch) -> Batch:
    """Return the batch without its sizes: what the task's collator made."""
    return {name: value for name, value in batch.items() if name != "sizes"}
