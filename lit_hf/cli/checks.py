"""Checks that need two blocks of the config: settings that are right each alone and wrong together."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Timer

from lit_hf.errors import Problem, nearest
from lit_hf.task import Task
from lit_hf.training.precision import unified
from lit_hf.training.strategies import SHARDED

BYTES_FLOAT32 = 4

OTHER_SHARDING = ("fsdp", "modelparallel", "deepspeed")
"""Parts of the names of others that cut weights."""

WITHIN = ("name", "version", "sub_dir", "filename", "dirpath")
"""Arguments of loggers and profilers that name something in a folder."""


def monitored(task: Task, monitor: str | None) -> str:
    """Return the metric that tells the best checkpoint: the config's, or the task's first."""
    return (monitor or next(iter(task.monitors))).removeprefix("val/")


def monitor_mode(task: Task, monitor: str) -> str:
    """Return `max` or `min`, whichever is better for the metric."""
    return "min" if monitor == "loss" else task.monitors[monitor]


def monitor_problems(task: Task, monitor: str, has_validation: bool, patience: int | None) -> Iterator[Problem]:
    """Find a metric to monitor that is never logged, or patience that has nothing to wait for."""
    names = {"loss", *task.monitors}
    if monitor not in names:
        yield Problem("monitor", f"no metric is named {monitor!r}.", nearest(monitor, names))
    if patience is not None and not has_validation:
        yield Problem("patience", "there is no validation split to watch.", "Give data.source.validation.")


def validation_problems(trainer: Mapping[str, Any]) -> Iterator[Problem]:
    """Find validations that a resumed run would make elsewhere, or between the batches of one optimizer step.

    Args:
        trainer: The trainer's settings: `val_check_interval` is batches, a share of an epoch, or a time.
    """
    interval, accumulate = trainer["val_check_interval"], trainer["accumulate_grad_batches"]
    if not isinstance(interval, int | float | None):
        what = f"a time ({interval}) comes at another step on each device, and in a run that is resumed."
        yield Problem("trainer.val_check_interval", what, "Give a number of batches, or a share of an epoch.")
    if accumulate == 1 or not isinstance(interval, int):
        return
    if interval % accumulate:
        what = f"{interval} batches are no whole number of optimizer steps, which have {accumulate} batches each."
        cure = f"Give a multiple of trainer.accumulate_grad_batches, such as {interval + -interval % accumulate}."
        yield Problem("trainer.val_check_interval", what, cure)
    if trainer["check_val_every_n_epoch"] is None:
        what = f"batches are counted on through the epochs, whose last step may have less than {accumulate} batches."
        cure = "Set it to 1, so that they are counted from each epoch's start."
        yield Problem("trainer.check_val_every_n_epoch", what, cure)


def callback_problems(callbacks: Iterable[object]) -> Iterator[Problem]:
    """Find callbacks that would work against how a step's loss is weighed, or write where they have no business."""
    callbacks = list(callbacks)
    if any(isinstance(callback, Timer) for callback in callbacks):
        what = "a Timer may end a run between the batches of an optimizer step, where it cannot be resumed exactly."
        yield Problem("trainer.callbacks", what, "Set trainer.max_time instead.")
    if any(type(callback).__name__ == "GradientAccumulationScheduler" for callback in callbacks):
        yield Problem(
            "trainer.callbacks",
            "GradientAccumulationScheduler changes how many batches make a step, which the data must know beforehand.",
            "Set trainer.accumulate_grad_batches instead.",
        )
    for callback in callbacks:
        name = getattr(callback, "filename", None)
        if leads_out(name):
            what = f"the filename {name} of {type(callback).__name__} leads out of its folder."
            yield Problem("trainer.callbacks", what, "Give a name; where to is said by dirpath.")


def writer_problems(key: str, writers: Iterable[object]) -> Iterator[Problem]:
    """Find loggers or profilers that would write outside of the folder that is theirs.

    Args:
        key: Where they stand in the config: `trainer.logger` or `trainer.profiler`.
        writers: The plain values of the config: `class_path` and `init_args`, or a name.
    """
    for writer in writers:
        arguments = (writer.get("init_args") or {}) if isinstance(writer, Mapping) else {}
        for argument in WITHIN:
            value = arguments.get(argument)
            if leads_out(value):
                what = f"{value} leads out of the folder of the run."
                cure = "Leave it out, or give a name without .. and without a leading slash."
                yield Problem(f"{key}.init_args.{argument}", what, cure)


def leads_out(name: object) -> bool:
    """Return whether a name that is put behind a folder leads out of that folder."""
    return isinstance(name, str) and (Path(name).is_absolute() or ".." in Path(name).parts)


def guard_problems(skip: int, spike: float | None, has_moving_ranks: bool) -> Iterator[Problem]:
    """Find settings for bad losses that make no sense, or do not go with the adapter.

    Args:
        skip: Optimizer steps that may be skipped.
        spike: How many times the usual loss is a spike.
        has_moving_ranks: Whether the adapter moves ranks between its layers, by the gradients of every step.
    """
    if skip < 0:
        yield Problem("skip_nonfinite", f"{skip} is no number of steps.", "Give 0 or more.")
    if skip > 0 and has_moving_ranks:
        what = "the adapter needs the gradients of every step, so that none can be skipped."
        yield Problem("skip_nonfinite", what, "Leave it out.")
    if spike is not None and spike <= 1:
        yield Problem("loss_spike", f"{spike:g} times the usual loss is no spike.", "Give more than 1, such as 3.")


def count_problems(checkpoint_every: int | None, patience: int | None) -> Iterator[Problem]:
    """Find numbers of steps, or of validations, that are none."""
    for key, value in (("checkpoint_every", checkpoint_every), ("patience", patience)):
        if value is not None and value < 1:
            yield Problem(key, f"{value} is too few.", "Give 1 or more, or leave it out.")


def streaming_problems(trainer: Mapping[str, Any], has_reference: bool) -> Iterator[Problem]:
    """Find settings that need to know how many training rows there are, which nobody knows of a stream.

    Args:
        trainer: The trainer's settings.
        has_reference: Whether a reference model is to be run on all rows before training.
    """
    if trainer["max_steps"] == -1:
        what = "nobody knows how long a stream is, so the number of steps must be given."
        yield Problem("trainer.max_steps", what, "Set it, also for several passes through the stream.")
    for key in ("val_check_interval", "limit_train_batches"):
        value = trainer[key]
        if isinstance(value, float) and value not in (0.0, 1.0):
            what = f"{value} is a share of an epoch, and nobody knows how long a stream is."
            yield Problem(f"trainer.{key}", what, "Give a number of batches.")
    if trainer["overfit_batches"]:
        yield Problem("trainer.overfit_batches", "a stream is not read again and again.", "Leave out one of the two.")
    if has_reference:
        what = "the reference model is run on all rows before training, and a stream is not read before."
        yield Problem("data.source.streaming", what, "Leave it out, or train an adapter (model.adapter).")


def strategy_problems(strategy: object) -> Iterator[Problem]:
    """Find a strategy that cuts weights in a way in which lit-hf can neither save nor resume them.

    Args:
        strategy: The trainer's strategy, by name or as an object.
    """
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if name != SHARDED and any(part in name.lower() for part in OTHER_SHARDING):
        what = f"lit-hf neither saves nor resumes weights that {name} cuts."
        cure = f"Take {SHARDED}, which cuts weights, gradients and optimizer state among all devices."
        yield Problem("trainer.strategy", what, cure)


def sharding_problems(precision: object, optimizer: str, is_quantized: bool) -> Iterator[Problem]:
    """Find what does not go with weights that are cut into rows among the devices.

    Args:
        precision: The trainer's precision.
        optimizer: The optimizer's class path.
        is_quantized: Whether the base model is quantized.
    """
    if unified(precision) not in ("32-true", "bf16-mixed", "bf16-true"):
        what = f"weights that are cut ({SHARDED}) do not train in {precision}."
        yield Problem("trainer.precision", what, "Take bf16-mixed, or 32-true.")
    package = optimizer.partition(".")[0]
    if package in ("bitsandbytes", "torchao") or optimizer.endswith((".Adafactor", ".LBFGS")):
        what = f"{optimizer.rpartition('.')[2]} needs each weight whole, and here it is cut ({SHARDED})."
        yield Problem("model.optimizer", what, "Take torch.optim.AdamW: its state is cut among the devices, too.")
    if is_quantized:
        what = f"packed weights cannot be cut ({SHARDED})."
        yield Problem("model.quantization", what, "Leave it out, or take trainer.strategy: ddp.")


def quantization_problems(precision: object) -> Iterator[Problem]:
    """Find a precision of the trainer in which quantized weights do not train."""
    if str(precision) in ("bf16-true", "16-true", "64-true", "64"):
        what = f"{precision} turns all weights into one type, and beside quantized ones norms must stay float32."
        yield Problem("trainer.precision", what, "Take bf16-mixed, or 32-true.")


def precision_problems(precision: object, weights: str, attention: str | None, has_adapter: bool) -> Iterator[Problem]:
    """Find types of weights and of arithmetic that do not go together.

    Args:
        precision: The trainer's precision.
        weights: Type of the model's weights: `float32`, `bfloat16` or `float16`.
        attention: The model's attention implementation; None if transformers chooses.
        has_adapter: Whether an adapter trains, in float32, and not the weights.
    """
    name = unified(precision)
    computes = {"bf16": "bfloat16", "16": "float16"}.get(name.partition("-")[0], "float32")
    if {weights, computes} == {"bfloat16", "float16"}:
        what = f"{name} computes in {computes}, but the weights are {weights}."
        yield Problem("trainer.precision", what, "Leave model.dtype out: weights are float32 then, whatever computes.")
    elif name == "16-true" or (weights == "float16" and not has_adapter):
        where = "trainer.precision" if name == "16-true" else "model.dtype"
        what = "weights in float16 do not train: their gradients underflow, and cannot be scaled."
        yield Problem(where, what, "Take float32 weights (leave model.dtype out) and trainer.precision: 16-mixed.")
    if (attention or "").startswith("flash") and {weights, computes} == {"float32"}:
        what = f"{attention} computes in 16 bits only, and here all is float32."
        yield Problem("model.attention", what, "Set trainer.precision to bf16-mixed, or leave it out.")


def clipping_problems(precision: object, clip: object, fused: bool) -> Iterator[Problem]:
    """Find an optimizer whose own kernels scale gradients back, so that nobody can clip them before.

    Args:
        precision: The trainer's precision.
        clip: The trainer's `gradient_clip_val`.
        fused: Whether the config asks for the optimizer's fused kernels.
    """
    if fused and clip and unified(precision) == "16-mixed":
        what = "fused kernels scale float16's gradients back themselves, so that they cannot be clipped."
        cure = "Leave it out, take trainer.precision: bf16-mixed, or set trainer.gradient_clip_val to 0."
        yield Problem("model.optimizer.init_args.fused", what, cure)


def disk_problems(folder: Path, trainable: int, stored: int, kept: int = 0) -> Iterator[Problem]:
    """Find a disk that is too small for the checkpoints: the best, the last, and one that is being written.

    Args:
        folder: An existing folder on the disk.
        trainable: Number of trainable parameters; AdamW keeps two more numbers of each.
        stored: Number of parameters that a checkpoint holds.
        kept: Bytes of the checkpoints that are there, and go as new ones come.
    """
    one = BYTES_FLOAT32 * (stored + 2 * trainable)
    needed = max(3 * one - kept, one)
    free = shutil.disk_usage(folder).free
    if free < needed:
        yield Problem(
            "output_dir",
            f"the disk of {folder} has {free / 1e9:.1f} GB free, the checkpoints need about {needed / 1e9:.1f} GB.",
            "Free some space, or give another folder: --output_dir <folder>.",
        )
