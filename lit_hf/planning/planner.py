"""What a way to train needs of each device's memory, however the devices share the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from lit_hf.errors import InputError, Problem
from lit_hf.models.quantization import name_of
from lit_hf.planning import layouts
from lit_hf.planning.layouts import ALONE, DDP, FSDP2, TENSOR_PARALLEL, Layout
from lit_hf.planning.machine import Machine, compute_dtype
from lit_hf.planning.memory import PRECISIONS, Setting, step_memory
from lit_hf.planning.planned_run import PlannedRun
from lit_hf.planning.quantized_shapes import has_shapes
from lit_hf.planning.rehearsal import Peaks
from lit_hf.planning.workload import Workload
from lit_hf.training.module import LitModule
from lit_hf.training.optimizers import build_optimizer, parameter_groups


@dataclass(frozen=True)
class Case:
    """A way to train.

    Attributes:
        module: The model, its adapter and its optimizer.
        setting: How it trains.
        rows: Rows of a batch on a device.
        strategy: How the devices share the model.
    """

    module: LitModule
    setting: Setting
    rows: int
    strategy: str


class Planner:
    """Knows what each way to train a run needs of memory, on a model without weights.

    Args:
        run: The run.
        work: What it trains on.
        machine: Where.

    Attributes:
        case: How it trains by its config.
    """

    def __init__(self, run: PlannedRun, work: Workload, machine: Machine) -> None:
        self.run, self.work, self.machine = run, work, machine
        self.case = Case(run.module, self._setting(run.module), work.rows, self.strategies[0])
        self._skeletons: dict[tuple[int, int], tuple[LitModule, nn.Module]] = {}

    def peaks(self, case: Case) -> Peaks:
        """Return the bytes of a step on one device that has the whole model."""
        batch, task = self.work.batch(case.rows), self.run.task
        is_scaled = case.setting.precision == "16-mixed"

        def forward(model: nn.Module) -> torch.Tensor:
            return task.forward(model, dict(batch)).loss  # type: ignore[arg-type]

        def optimizer(model: nn.Module) -> torch.optim.Optimizer:
            groups = parameter_groups(model, case.module.rates)
            return build_optimizer(case.module.optimizer, groups, is_scaled)

        def adapt(base: nn.Module) -> nn.Module:
            return case.module.adaptation.skeleton(task, base)  # type: ignore[arg-type]

        is_new = case.module.adaptation is not self.case.module.adaptation  # it is put on the model that is planned
        skeleton = self.skeleton(self.case.module if is_new else case.module)
        return step_memory(skeleton, forward, optimizer, case.setting, adapt if is_new else None)

    def _setting(self, module: LitModule) -> Setting:
        quantization, precision = module.base.quantized, self.machine.precision
        if quantization is not None and not has_shapes(quantization):
            what = f"{name_of(quantization)} is not planned for."
            cure = "Plan with transformers.BitsAndBytesConfig, or TorchAoConfig with Int8WeightOnlyConfig."
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
        given = self.run.trainer.strategy
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
        skeleton = self.skeleton(case.module)
        if name == FSDP2:  # autocast copies what was put together as it lies
            is_copied = case.setting.precision.endswith("-mixed") and case.module.base.weights_dtype == "float32"
            size = layouts.dimensions(skeleton, 4 if is_copied else computes)
            return layouts.fsdp(peaks, self._sharded_activations(case, peaks), size, self.machine.world)
        size = layouts.dimensions(skeleton, computes)
        return layouts.tensor_parallel(peaks, size, self.machine.devices, case.rows * self.work.length)

    def _sharded_activations(self, case: Case, peaks: Peaks) -> float:
        """Return activations, without autocast's copies of weights where these are made anew for the backward pass."""
        precision = case.setting.precision.replace("-mixed", "-true")
        keeps = not case.setting.switches.gradient_checkpointing
        if keeps or precision == case.setting.precision or case.setting.quantization is not None:
            return peaks.activations
        return self.peaks(replace(case, setting=replace(case.setting, precision=precision))).activations

    def skeleton(self, module: LitModule) -> nn.Module:
        """Return a module's model on the meta device, which is made once for each base and what is put on it."""
        key = id(module.base), id(module.adaptation)
        if key not in self._skeletons:
            self._skeletons[key] = (module, module.skeleton())
        return self._skeletons[key][1]
