"""Other ways to train than the config's: what each change would need, and which of them make it fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, UnsupportedOperatorException
from transformers import BitsAndBytesConfig

from lit_hf.errors import InputError, raise_problems
from lit_hf.models.adaptation import Adaptation
from lit_hf.models.devices import GPUS
from lit_hf.models.sharding import adapter_problems, model_problems
from lit_hf.planning.layouts import DDP, FSDP2
from lit_hf.planning.memory import Setting
from lit_hf.planning.planner import Case, Planner
from lit_hf.training.module import LitModule

REFUSALS = (InputError, ImportError, ValueError, DynamicOutputShapeException, UnsupportedOperatorException)
"""What a way to train that a model does not have ends in: a library's word, a missing one, or a step that cannot be
rehearsed."""

CHECKPOINTING, SHARDING = "--model.gradient_checkpointing true", "--trainer.strategy fsdp2"
LORA, QLORA = "-c configs/methods/lora.yaml", "-c configs/methods/qlora.yaml"
EIGHT_BITS = (
    f"{LORA} --model.quantization '{{class_path: transformers.BitsAndBytesConfig, init_args: {{load_in_8bit: true}}}}'"
)


@dataclass(frozen=True)
class Change:
    """One thing done otherwise, or several.

    Attributes:
        names: What, one after the other.
        options: The options that do it.
        total: Bytes on each device; None where it cannot be done.
        fits: Whether that fits.
        why: Why it cannot be done.
    """

    names: tuple[str, ...]
    options: tuple[str, ...]
    total: float | None
    fits: bool
    why: str = ""


class Step(NamedTuple):
    """A change that can be made to a case.

    Attributes:
        name: What it does.
        option: The option that does it.
        apply: Returns the changed case.
    """

    name: str
    option: str
    apply: Callable[[Case], Case]


def changes(planner: Planner, fits: bool) -> Iterator[Change]:
    """Yield what single changes need, from the smallest change on; if nothing fits, combinations up to one that does.

    Args:
        planner: Knows the case that is changed.
        fits: Whether that case fits as it is.
    """
    steps = _steps(planner)
    for step in steps:
        change = _try(planner, [step])
        fits = fits or change.fits
        yield change
    for combined in () if fits else _combinations(planner, steps):
        change = _try(planner, combined)
        yield change
        if change.fits:
            return


def _try(planner: Planner, steps: Sequence[Step]) -> Change:
    names, options = tuple(step.name for step in steps), tuple(step.option for step in steps)
    case = planner.case
    try:
        for step in steps:
            case = step.apply(case)
        total = planner.layout(case.strategy, case, planner.peaks(case)).total
    except REFUSALS as error:
        return Change(names, options, None, False, " ".join(str(error).split())[:80])
    return Change(names, options, total, planner.machine.fits(total))


def _steps(planner: Planner) -> list[Step]:
    """Return the changes that can be made to a run, from the smallest on."""
    case, found = planner.case, []
    if not case.setting.switches.gradient_checkpointing:
        found.append(Step("gradient checkpointing", CHECKPOINTING, _checkpointed))
    if _most_parts(planner) > 1:
        found.append(_smaller_batch(planner))
    optimizer, is_cut = type(case.module.optimizer([nn.Parameter(torch.zeros(1))])), case.strategy == FSDP2
    if case.strategy == DDP and _can_be_cut(case.setting, optimizer):
        found.append(_sharding(planner))
    if case.setting.precision == "32-true":
        found.append(_half(planner))
    if not is_cut and "bitsandbytes" not in optimizer.__module__:
        found.append(Step("8-bit AdamW", "--model.optimizer bitsandbytes.optim.AdamW8bit", _with_adamw_8bit))
    if case.module.adapter is None:
        found.append(Step("LoRA", LORA, _adapted))
    if case.setting.quantization is None and not is_cut:  # packed weights cannot be cut
        found.append(Step("LoRA on 8 bits", EIGHT_BITS, _on_eight_bits))
        found.append(Step("LoRA on 4 bits (QLoRA)", QLORA, _on_four_bits))
    return found


def _can_be_cut(setting: Setting, optimizer: type) -> bool:
    """Say whether FSDP2 trains in such a precision, with such weights, and by an optimizer that sees a part of each."""
    is_whole = optimizer.__module__.partition(".")[0] in ("bitsandbytes", "torchao")
    is_whole = is_whole or optimizer.__name__ in ("Adafactor", "LBFGS")
    return not is_whole and setting.quantization is None and setting.precision != "16-mixed"


def _sharding(planner: Planner) -> Step:
    """Return the change to weights, gradients and optimizer state that are cut among the devices."""

    def apply(case: Case) -> Case:
        raise_problems([*adapter_problems(case.module.adapter), *model_problems(planner.skeleton(case.module))])
        return replace(case, strategy=FSDP2)

    return Step(FSDP2, SHARDING, apply)


def _half(planner: Planner) -> Step:
    """Return the change to 16 bits: bfloat16, but on GPUs that have none."""
    gpu = GPUS.get(planner.machine.name)
    precision = "bf16-mixed" if gpu is None or gpu.flops["bfloat16"] else "16-mixed"

    def apply(case: Case) -> Case:
        return replace(case, setting=replace(case.setting, precision=precision))

    return Step(precision, f"--trainer.precision {precision}", apply)


def _smaller_batch(planner: Planner) -> Step:
    """Return the largest batch that fits, by halves, with as many more batches a step; or the smallest of them."""
    most, halves = _most_parts(planner), 1
    while 2 * halves <= most:
        halves *= 2
        step = _batch(planner, halves)
        if _try(planner, [step]).fits:
            break
    return step


def _most_parts(planner: Planner) -> int:
    """Return into how many parts a batch can be divided: down to one row, and to a budget that has room for any."""
    rows, work = planner.case.rows, planner.work
    return rows if work.batch_tokens is None else min(rows, work.batch_tokens // work.longest_row)


def _batch(planner: Planner, parts: int) -> Step:
    work, rows = planner.work, planner.case.rows // parts
    accumulated = parts * planner.run.trainer.accumulate_grad_batches
    if work.batch_tokens is not None:
        size, option = f"{work.batch_tokens // parts:,} tokens", f"--data.batch_tokens {work.batch_tokens // parts}"
    else:
        size, option = f"{rows} row{'s' * (rows > 1)}", f"--data.batch_size {rows}"
    option += f" --trainer.accumulate_grad_batches {accumulated}"
    return Step(f"batches of {size}, {accumulated} a step", option, lambda case: replace(case, rows=rows))


def _combinations(planner: Planner, steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Yield changes that go together, from the smallest combination on."""
    by_option = {step.option: step for step in steps}
    most = _most_parts(planner)
    smallest = _batch(planner, most) if most > 1 else None
    checkpointing, sharding, lora, qlora = map(by_option.get, (CHECKPOINTING, SHARDING, LORA, QLORA))
    half = by_option.get(_half(planner).option) if planner.machine.is_gpu else None
    seen: list[list[Step]] = []
    for method, cut, batch in product((None, lora, qlora), (None, sharding), (None, smallest)):
        is_cut = cut is not None
        if is_cut and method is not None and method.option == QLORA:
            continue  # packed weights cannot be cut
        precise = None if is_cut and half is not None and half.name == "16-mixed" else half  # nor is its loss scaled
        chosen = [step for step in (precise, checkpointing, cut, batch, method) if step is not None]
        if len(chosen) > 1 and chosen not in seen:
            seen.append(chosen)
            yield chosen


# what each of them does to a case


def _with(module: LitModule, **values: Any) -> LitModule:
    """Return a copy of a module that is not built yet, with other settings."""
    changed = copy.copy(module)
    for name, value in values.items():
        vars(changed)[name] = value
    return changed


def _checkpointed(case: Case) -> Case:
    switches = replace(case.setting.switches, gradient_checkpointing=True)
    return replace(case, setting=replace(case.setting, switches=switches))


def _with_adamw_8bit(case: Case) -> Case:
    from bitsandbytes.optim import AdamW8bit

    return replace(case, module=_with(case.module, optimizer=AdamW8bit))


def _adapted(case: Case) -> Case:
    if case.module.adapter is not None:
        return case
    return replace(case, module=_with(case.module, adaptation=_lora()))


@cache
def _lora() -> Adaptation:
    """Return the adapter of configs/methods/lora.yaml."""
    return Adaptation(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear"))


def _on_eight_bits(case: Case) -> Case:
    return _quantized(_adapted(case), BitsAndBytesConfig(load_in_8bit=True))


def _on_four_bits(case: Case) -> Case:
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_quant_type="nf4")
    four.bnb_4bit_compute_dtype = torch.bfloat16
    return _quantized(_adapted(case), four)


def _quantized(case: Case, quantization: BitsAndBytesConfig) -> Case:
    return replace(case, setting=replace(case.setting, quantization=quantization))
