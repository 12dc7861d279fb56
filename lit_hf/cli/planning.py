"""What a run will need of memory and time, before it is paid for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from lit_hf.cli.machine import Machine, compute_dtype
from lit_hf.cli.plan_changes import Case, Change, changes
from lit_hf.cli.plan_time import Time, estimate_time
from lit_hf.cli.trainer import TrainerCLI
from lit_hf.cli.workload import Workload
from lit_hf.errors import InputError, Problem
from lit_hf.models import layouts
from lit_hf.models.accounting import Parameters, count_parameters
from lit_hf.models.layouts import ALONE, DDP, FSDP2, TENSOR_PARALLEL, Layout
from lit_hf.models.memory import PRECISIONS, Setting, step_memory
from lit_hf.models.rehearsal import Peaks
from lit_hf.training.module import LitModule
from lit_hf.training.optimizers import build_optimizer, parameter_groups


@dataclass(frozen=True)
class Plan:
    """A plan.

    Attributes:
        parameters: Numbers of parameters.
        dtypes: Numbers of parameters by dtype, as the run keeps them.
        peaks: Bytes of a step on one device that has the whole model.
        layouts: The ways of sharing it among the devices, the run's own first.
        changes: What other ways to train would need, from the smallest change on; only if none of them fits are there
            combinations, up to the first that does.
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
        self.case = Case(cli.model, self._setting(cli.model), work.rows)
        self._skeletons: dict[tuple[int, int], tuple[LitModule, nn.Module]] = {}

    def plan(self, with_changes: bool = True) -> Plan:
        """Return the plan.

        Args:
            with_changes: Whether to try changes, each of which takes as long as the plan itself.
        """
        model = self._skeleton(self.case.module)
        peaks = self.peaks(self.case)
        ways = [self.layout(name, self.case, peaks) for name in self.strategies]
        tried = list(changes(self, self.machine.fits(ways[0].total))) if with_changes else []
        time = estimate_time(
            model,
            ways[0],
            self.work,
            self.machine,
            self.cli.config.trainer,
            self.case.setting.switches.gradient_checkpointing,
        )
        return Plan(count_parameters(model), _dtypes(model), peaks, ways, tried, time)

    def peaks(self, case: Case) -> Peaks:
        """Return the bytes of a step on one device that has the whole model."""
        batch, task = self.work.batch(case.rows), self.cli.task
        is_scaled = case.setting.precision == "16-mixed"

        def forward(model: nn.Module) -> torch.Tensor:
            return task.forward(model, dict(batch)).loss  # type: ignore[arg-type]

        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            groups = parameter_groups(model, case.module.rates)
            return build_optimizer(case.module.optimizer, groups, is_scaled)

        def adapt(base: nn.Module) -> nn.Module:
            return case.module.adaptation.skeleton(task, base)  # type: ignore[arg-type]

        is_new = case.module.adaptation is not self.case.module.adaptation  # it is put on the model that is planned
        skeleton = self._skeleton(self.case.module if is_new else case.module)
        return step_memory(skeleton, forward, optimizer, case.setting, adapt if is_new else None)

    def _setting(self, module: LitModule) -> Setting:
        quantization, precision = module.base.quantized, self.machine.precision
        if quantization is not None and not isinstance(quantization, BitsAndBytesConfig):
            what = f"only bitsandbytes is planned for, not {type(quantization).__name__}."
            cure = "Plan with transformers.BitsAndBytesConfig of as many bits instead, which needs about as much."
            raise InputError(Problem("model.quantization", what, cure))
        if precision not in PRECISIONS:
            what = f"{precision!r} is not planned for."
            raise InputError(Problem("trainer.precision", what, f"One of: {', '.join(PRECISIONS)}."))
        in_full = tuple(getattr(module.adapter, "modules_to_save", None) or ())
        return Setting(precision, module.switches, quantization, in_full, self.machine.is_gpu)

    @property
    def strategies(self) -> list[str]:
        """The ways of sharing a model among the devices, the run's own first."""
        if self.machine.world == 1:
            return [ALONE]
        given = self.cli.config.trainer.strategy
        name = str(given if isinstance(given, str) else getattr(given, "class_path", given)).lower()
        own = FSDP2 if "fsdp" in name or "fullysharding" in name else DDP
        names = [DDP, FSDP2, *([TENSOR_PARALLEL] if self.machine.devices > 1 else [])]
        return sorted(names, key=lambda name: name != own)

    def layout(self, name: str, case: Case, peaks: Peaks) -> Layout:
        """Return what one of the strategies needs on each device."""
        if name == ALONE:
            return layouts.alone(peaks)
        if name == DDP:
            return layouts.ddp(peaks, self.machine.world)
        computes = compute_dtype(case.setting.precision).itemsize
        skeleton = self._skeleton(case.module)
        if name == FSDP2:  # autocast copies what was put together as it lies
            is_copied = case.setting.precision.endswith("-mixed") and case.module.base.weights_dtype == "float32"
            size = layouts.sizes(skeleton, 4 if is_copied else computes)
            return layouts.fsdp(peaks, self._sharded_activations(case, peaks), size, self.machine.world)
        size = layouts.sizes(skeleton, computes)
        return layouts.tensor_parallel(peaks, size, self.machine.devices, case.rows * self.work.length)

    def _sharded_activations(self, case: Case, peaks: Peaks) -> float:
        """Return activations, without autocast's copies of weights where these are made anew for the backward pass."""
        precision = case.setting.precision.replace("-mixed", "-true")
        keeps = not case.setting.switches.gradient_checkpointing
        if keeps or precision == case.setting.precision or case.setting.quantization is not None:
            return peaks.activations
        return self.peaks(replace(case, setting=replace(case.setting, precision=precision))).activations

    def _skeleton(self, module: LitModule) -> nn.Module:
        """Return a module's model on the meta device, which is made once for each base and what is put on it."""
        key = id(module.base), id(module.adaptation)
        if key not in self._skeletons:
            self._skeletons[key] = (module, module.skeleton())
        return self._skeletons[key][1]


def _dtypes(model: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for parameter in model.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        found[name] = found.get(name, 0) + parameter.numel()
    return found
