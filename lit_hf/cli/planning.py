"""What a run will need of memory and time, before it is paid for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import BitsAndBytesConfig

from lit_hf.cli.trainer import DEFAULT_EPOCHS, TrainerCLI
from lit_hf.cli.workload import Workload
from lit_hf.errors import InputError, Problem
from lit_hf.models import layouts
from lit_hf.models.accounting import Parameters, count_parameters
from lit_hf.models.adaptation import Adaptation
from lit_hf.models.flops import flop_rates
from lit_hf.models.layouts import Layout
from lit_hf.models.memory import PRECISIONS, Setting, step_memory
from lit_hf.models.rates import GPUS, TERA, Gpu
from lit_hf.models.rehearsal import Peaks
from lit_hf.training.module import LitModule
from lit_hf.training.optimizers import build_optimizer, parameter_groups
from lit_hf.training.precision import default_precision

USABLE = 0.9
"""Share of a device's memory that a plan may fill: the rest is for what kernels and libraries take, and for fragments
(transformers leaves as much, `Bnb4BitHfQuantizer.adjust_max_memory`)."""

RECOMPUTED = 4 / 3
"""Work of a step with gradient checkpointing: forward, a third of it, is done twice (Chen et al., "Training Deep Nets
with Sublinear Memory Cost", 2016)."""


@dataclass(frozen=True)
class Machine:
    """Where a run is planned for.

    Attributes:
        name: What it is called.
        is_gpu: Whether it is a GPU.
        memory: Bytes of each device.
        flops: Peak operations a second of each device in the precision of the run.
        source: How that is known.
        efficiency: Share of the peak that is reached.
        link: Bytes a second between devices of one machine.
        network: Bytes a second of a device to other machines.
        devices: Devices of a machine.
        nodes: Machines.
        precision: Lightning's name of the precision of the run.
    """

    name: str
    is_gpu: bool
    memory: float
    flops: float
    source: str
    efficiency: float
    link: float
    network: float
    devices: int
    nodes: int
    precision: str

    @property
    def world(self) -> int:
        """Devices in all."""
        return self.devices * self.nodes

    def send(self, sent: float, within: bool = False) -> float:
        """Return the seconds that it takes each device to send some bytes, to devices of its machine or of all."""
        return sent / (self.link if within or self.nodes == 1 else self.network)


@dataclass(frozen=True)
class Case:
    """A way to train.

    Attributes:
        module: The model, its adapter and its optimizer.
        setting: How it trains.
        rows: Rows of a batch on a device.
    """

    module: LitModule
    setting: Setting
    rows: int


@dataclass(frozen=True)
class Change:
    """One thing done otherwise.

    Attributes:
        name: What.
        option: The options that do it.
        total: Bytes on each device; None where it cannot be done.
        fits: Whether that fits.
        why: Why it cannot be done.
    """

    name: str
    option: str
    total: float | None
    fits: bool
    why: str = ""


@dataclass(frozen=True)
class Time:
    """How long a run takes.

    Attributes:
        flops: Operations of an optimizer step, on all devices.
        computing: Seconds of it.
        sending: Seconds that a step's communication takes.
        step: Seconds of a step.
        steps: Steps of an epoch; None where the rows are not known.
        total_steps: Steps of the run.
    """

    flops: float
    computing: float
    sending: float
    step: float
    steps: int | None
    total_steps: int | None

    @property
    def total(self) -> float | None:
        """Seconds of the run."""
        return self.step * self.total_steps if self.total_steps is not None else None


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        parameters: Numbers of parameters.
        dtypes: Numbers of parameters by dtype, as the run keeps them.
        peaks: Bytes of a step on one device that has the whole model.
        layouts: The ways of sharing it among the devices, the run's own first.
        changes: What other ways to train would need, from the smallest change on.
        time: How long it takes.
    """

    parameters: Parameters
    dtypes: dict[str, int]
    peaks: Peaks
    layouts: list[Layout]
    changes: list[Change]
    time: Time


class Planner:
    """Plans a run.

    Args:
        cli: The parsed config.
        work: What it trains on.
        machine: Where.
    """

    def __init__(self, cli: TrainerCLI, work: Workload, machine: Machine) -> None:
        self.cli, self.work, self.machine = cli, work, machine
        module = cli.model
        self.case = Case(module, self._setting(module), work.rows)
        self._skeletons: dict[int, tuple[LitModule, nn.Module]] = {}

    def plan(self, with_changes: bool = True) -> Plan:
        """Return the plan.

        Args:
            with_changes: Whether to try changes, each of which takes as long as the plan itself.
        """
        model = self._skeleton(self.case.module)
        peaks = self.peaks(self.case)
        ways = self.layouts(self.case, peaks)
        changes = list(self._changes(ways)) if with_changes else []
        return Plan(count_parameters(model), self._dtypes(model), peaks, ways, changes, self._time(model, ways[0]))

    def peaks(self, case: Case) -> Peaks:
        """Return the bytes of a step on one device that has the whole model."""
        batch, task = self.work.batch(case.rows), self.cli.task
        is_scaled = case.setting.precision == "16-mixed"

        def forward(model: nn.Module) -> torch.Tensor:
            return task.forward(model, dict(batch)).loss  # type: ignore[arg-type]

        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            groups = parameter_groups(model, case.module.rates)
            return build_optimizer(case.module.optimizer, groups, is_scaled)

        return step_memory(self._skeleton(case.module), forward, optimizer, case.setting)

    def _setting(self, module: LitModule) -> Setting:
        quantization = module.base.quantized
        if quantization is not None and not isinstance(quantization, BitsAndBytesConfig):
            what = f"only bitsandbytes is planned for, not {type(quantization).__name__}."
            raise InputError(Problem("model.quantization", what, "Plan without it, or with BitsAndBytesConfig."))
        precision = self.machine.precision
        if precision not in PRECISIONS:
            what = f"{precision!r} is not planned for."
            raise InputError(Problem("trainer.precision", what, f"One of: {', '.join(PRECISIONS)}."))
        in_full = tuple(getattr(module.adapter, "modules_to_save", None) or ())
        return Setting(precision, module.switches, quantization, in_full, self.machine.is_gpu)

    # devices

    def layouts(self, case: Case, peaks: Peaks) -> list[Layout]:
        """Return the ways of sharing the model among the devices, the run's own first."""
        names = ["DDP", "FSDP2", *(["tensor parallel"] if self.machine.devices > 1 else [])]
        if self.machine.world == 1:
            return [layouts.alone(peaks)]
        return [self._layout(name, case, peaks) for name in sorted(names, key=lambda name: name != self._strategy)]

    def _layout(self, name: str, case: Case, peaks: Peaks) -> Layout:
        if self.machine.world == 1:
            return layouts.alone(peaks)
        if name == "DDP":
            return layouts.ddp(peaks, self.machine.world)
        size = layouts.sizes(self._skeleton(case.module), compute_dtype(case.setting.precision).itemsize)
        if name == "FSDP2":
            return layouts.fsdp(peaks, self._sharded_activations(case, peaks), size, self.machine.world)
        return layouts.tensor_parallel(peaks, size, self.machine.devices, case.rows * self.work.length)

    def _sharded_activations(self, case: Case, peaks: Peaks) -> float:
        """Return activations without the copies that autocast makes of weights: those that FSDP2 gathers are cast."""
        precision = case.setting.precision.replace("-mixed", "-true")
        if precision == case.setting.precision or case.setting.quantization is not None:
            return peaks.activations
        return self.peaks(replace(case, setting=replace(case.setting, precision=precision))).activations

    def _skeleton(self, module: LitModule) -> nn.Module:
        """Return a module's model on the meta device, which is made once."""
        if id(module) not in self._skeletons:
            self._skeletons[id(module)] = (module, module.skeleton())
        return self._skeletons[id(module)][1]

    @property
    def _strategy(self) -> str:
        given = self.cli.config.trainer.strategy
        name = str(given if isinstance(given, str) else getattr(given, "class_path", given)).lower()
        return "FSDP2" if "fsdp" in name or "modelparallel" in name.replace("_", "") else "DDP"

    def fits(self, total: float) -> bool:
        """Say whether that many bytes fit on a device."""
        return total <= USABLE * self.machine.memory

    # time

    def _time(self, model: nn.Module, way: Layout) -> Time:
        work, machine, trainer = self.work, self.machine, self.cli.config.trainer
        accumulated = trainer.accumulate_grad_batches
        flops = flop_rates(model).step(work.tokens, work.attended, work.trained_tokens, work.decoder_tokens)
        again = RECOMPUTED if self.case.setting.switches.gradient_checkpointing else 1
        computing = accumulated * flops * again / (machine.flops * machine.efficiency)
        within = way.name == "tensor parallel"
        sending = machine.send(accumulated * way.sent_a_batch + way.sent_a_step, within)
        step = max(computing, sending) if way.overlaps else computing + sending
        batches = None if work.batches is None else -(-work.batches // machine.world)
        steps = None if batches is None else -(-_limited(batches, trainer.limit_train_batches) // accumulated)
        return Time(flops * accumulated * machine.world, computing, sending, step, steps, self._total_steps(steps))

    def _total_steps(self, steps: int | None) -> int | None:
        trainer = self.cli.config.trainer
        most = trainer.max_steps if trainer.max_steps != -1 else None
        epochs = trainer.max_epochs if trainer.max_epochs is not None or most else DEFAULT_EPOCHS
        in_epochs = steps * epochs if steps is not None and epochs not in (None, -1) else None
        return min((value for value in (most, in_epochs) if value is not None), default=None)

    @staticmethod
    def _dtypes(model: nn.Module) -> dict[str, int]:
        found: dict[str, int] = {}
        for parameter in model.parameters():
            name = str(parameter.dtype).removeprefix("torch.")
            found[name] = found.get(name, 0) + parameter.numel()
        return found

    # changes

    def _changes(self, ways: list[Layout]) -> Iterator[Change]:
        """Yield other ways to train, from the smallest change on, each by itself."""
        case = self.case
        if not case.setting.switches.gradient_checkpointing:
            yield self._try("gradient checkpointing", "--model.gradient_checkpointing true", _checkpointed(case))
        if case.rows > 1:
            yield self._smaller_batch()
        if case.setting.precision == "32-true":
            brain = replace(case, setting=replace(case.setting, precision="bf16-mixed"))
            yield self._try("bf16-mixed", "--trainer.precision bf16-mixed", brain)
        if "bitsandbytes" not in type(self._optimizer(case)).__module__:
            option = "--model.optimizer bitsandbytes.optim.AdamW8bit"
            yield self._try("8-bit AdamW", option, replace(case, module=_with(case.module, optimizer=_adamw_8bit)))
        for way in ways[1:]:
            if way.name == "FSDP2":
                name = f"FSDP2 over {self.machine.world}"
                yield Change(name, "--trainer.strategy fsdp", way.total, self.fits(way.total))
        yield from self._smaller_models(case)

    def _smaller_models(self, case: Case) -> Iterator[Change]:
        lora = case if case.module.adapter is not None else _adapted(case)
        option = "-c configs/methods/lora.yaml"
        if case.module.adapter is None:
            yield self._try("LoRA", option, lora)
        if case.setting.quantization is None:
            eight = BitsAndBytesConfig(load_in_8bit=True)
            four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4")
            four.bnb_4bit_compute_dtype = torch.bfloat16
            yield self._try("LoRA on 8 bits", f"{option}, load_in_8bit", _quantized(lora, eight))
            option = "-c configs/methods/qlora.yaml"
            yield self._try("LoRA on nf4 (QLoRA)", option, _quantized(lora, four))
            least = replace(_checkpointed(_quantized(lora, four)), rows=1)
            name = "QLoRA, checkpointing, 1 row"
            if self.machine.world > 1:
                name += ", FSDP2"
            yield self._try(name, "all of these", least, "FSDP2")

    def _try(self, name: str, option: str, case: Case, strategy: str | None = None) -> Change:
        try:
            total = self._layout(strategy or self._strategy, case, self.peaks(case)).total
        except Exception as error:  # any library's, over a way that this model may not have
            return Change(name, option, None, False, " ".join(str(error).split())[:80])
        return Change(name, option, total, self.fits(total))

    def _smaller_batch(self) -> Change:
        """Return the largest batch that fits, by halves, with as many more batches a step."""
        halves = 1
        while self.case.rows // (2 * halves) >= 1:
            halves *= 2
            rows = self.case.rows // halves
            accumulated = halves * self.cli.config.trainer.accumulate_grad_batches
            option = f"--data.batch_size {rows} --trainer.accumulate_grad_batches {accumulated}"
            change = self._try(f"batches of {rows}, {accumulated} a step", option, replace(self.case, rows=rows))
            if change.fits:
                break
        return change

    @staticmethod
    def _optimizer(case: Case) -> torch.optim.Optimizer:
        return case.module.optimizer([nn.Parameter(torch.zeros(1))])


def _limited(batches: int, limit: Any) -> int:
    """Return what Lightning's `limit_train_batches` leaves: a share, or a number."""
    if limit is None:
        return batches
    return int(batches * limit) if isinstance(limit, float) else min(batches, limit)


def _with(module: LitModule, **values: Any) -> LitModule:
    """Return a copy of a module that is not built yet, with other settings."""
    changed = copy.copy(module)
    for name, value in values.items():
        vars(changed)[name] = value
    return changed


def _checkpointed(case: Case) -> Case:
    switches = replace(case.setting.switches, gradient_checkpointing=True)
    return replace(case, setting=replace(case.setting, switches=switches))


def _adapted(case: Case) -> Case:
    adaptation = Adaptation(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear"))
    return replace(case, module=_with(case.module, adaptation=adaptation))


def _quantized(case: Case, quantization: BitsAndBytesConfig) -> Case:
    return replace(case, setting=replace(case.setting, quantization=quantization))


def _adamw_8bit(parameters: Any) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters)


def precision_of(trainer: Any, gpu: str | None) -> str:
    """Return the precision that a run would have: the config's, or the one that lit-hf takes on that machine.

    Args:
        trainer: The trainer's settings.
        gpu: Name in the table of the GPU that is planned for; None for the device that is here.
    """
    if trainer.precision is not None:
        return _full_name(str(trainer.precision))
    if gpu is None:
        return default_precision(trainer.accelerator)
    return "bf16-mixed" if GPUS[gpu].flops["bfloat16"] else "32-true"


def compute_dtype(precision: str) -> torch.dtype:
    """Return the type in which matrices are multiplied in one of Lightning's precisions; float32 if it is unknown."""
    autocast, dtype = PRECISIONS.get(_full_name(precision), (None, None))
    return autocast or dtype or torch.float32


def _full_name(precision: str) -> str:
    return {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(precision, precision)


def peak_of(gpu: Gpu, dtype: torch.dtype, name: str) -> float:
    """Return the operations a second of a GPU of the table.

    Raises:
        InputError: If it has no such type.
    """
    of_dtype = str(dtype).removeprefix("torch.")
    if not gpu.flops[of_dtype]:
        raise InputError(Problem("trainer.precision", f"{name} has no {of_dtype}.", "Take 16-mixed."))
    return gpu.flops[of_dtype] * TERA
