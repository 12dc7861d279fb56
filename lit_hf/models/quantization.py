"""Quantized base models: what is wrong with the settings, how they load and train, and back to full precision."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftConfig, prepare_model_for_kbit_training
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AutoHfQuantizer, AutoQuantizationConfig
from transformers.quantizers.base import HfQuantizer, get_keys_to_not_convert
from transformers.utils.quantization_config import QuantizationMethod

from lit_hf.errors import Problem
from lit_hf.models.adapters import changes_base

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

WHERE = "model.quantization"
SKIPPED = ("llm_int8_skip_modules", "modules_to_not_convert")
"""How quantization configs call the modules that they leave as they are."""

UNFIT_ON_8_BITS = (
    *("ADAMSS", "DELORA", "FROD", "GLORA", "HRA", "OSF"),
    *("PEANUT", "PSOFT", "SUPERTUNING", "TINYLORA"),
)
UNFIT_ON_4_BITS = (*UNFIT_ON_8_BITS, "DEFT", "LOHA", "LOKR")
UNFIT_ON_TORCHAO = (*UNFIT_ON_8_BITS, "DEFT", "HIRA")
"""PEFT's tuners that compute on the weights as they lie: packed in 4 bits, scaled in 8. `tests/models/test_tuners.py`
tries all tuners on all three."""


def stored_quantization(config: PreTrainedConfig) -> QuantizationConfigMixin | None:
    """Return how the weights of a checkpoint with this config are quantized already; None if they are not."""
    for block in (config, config.get_text_config()):
        values = getattr(block, "quantization_config", None)
        if isinstance(values, dict) and AutoHfQuantizer.supports_quant_method(values):
            return AutoQuantizationConfig.from_dict(values)
        if values is not None and not isinstance(values, dict):
            return values
    return None


def name_of(quantization: QuantizationConfigMixin) -> str:
    """Return a few words for people: `bitsandbytes 4-bit nf4`, `torchao Int8WeightOnlyConfig`."""
    if isinstance(quantization, BitsAndBytesConfig):
        bits = f"4-bit {quantization.bnb_4bit_quant_type}" if quantization.load_in_4bit else "8-bit"
        return f"bitsandbytes {bits}"
    kind = getattr(quantization, "quant_type", None)
    return f"{_method(quantization)}{f' {type(kind).__name__}' if kind is not None else ''}"


def _method(quantization: QuantizationConfigMixin) -> str:
    return str(getattr(quantization.quant_method, "value", quantization.quant_method))


def quantization_problems(
    given: QuantizationConfigMixin | None,
    stored: QuantizationConfigMixin | None,
    adapter: PeftConfig | None,
    merged: Sequence[str] = (),
    from_scratch: bool = False,
) -> Iterator[Problem]:
    """Find what is wrong with quantized weights, before they are loaded.

    Args:
        given: How the weights are to be quantized as they load.
        stored: How the checkpoint's are quantized already.
        adapter: What trains on the quantized weights.
        merged: Adapters that are to be merged into the base model before.
        from_scratch: Whether there is no checkpoint.
    """
    if given is None and stored is None:
        return
    if from_scratch:
        what = "weights are quantized as they load, and there is no checkpoint to load."
        yield Problem(WHERE, what, "Give model.checkpoint, or leave model.quantization out.")
    if given is not None and stored is not None:
        what = f"the checkpoint is quantized already: {name_of(stored)}."
        yield Problem(WHERE, what, "Leave model.quantization out, or take the checkpoint that it was made from.")
    if isinstance(given, BitsAndBytesConfig) and not (given.load_in_4bit or given.load_in_8bit):
        yield Problem(WHERE, "it says neither load_in_4bit nor load_in_8bit.", "Set one of them to true.")
    if adapter is None:
        cure = "Train an adapter on them (model.adapter; see configs/methods/qlora.yaml)"
        cure += "." if given is None else ", or leave model.quantization out."
        yield Problem("model.adapter", "quantized weights do not train themselves, and there is no adapter.", cure)
    elif (quantization := given or stored) and getattr(adapter.peft_type, "value", None) in _unfit(quantization):
        what = f"{type(adapter).__name__} computes on the weights as they lie, which are {name_of(quantization)}."
        yield Problem("model.adapter", what, "Take LoRA, DoRA, AdaLoRA, IA3, OFT, VeRA or a prompt.")
    elif start := changes_base(adapter):
        what = f"{start!r} changes the base model's weights, which are quantized."
        yield Problem("model.adapter.init_args.init_lora_weights", what, "Leave it out.")
    if merged:
        what = "an adapter that is merged into quantized weights is rounded to few bits with them, and mostly lost."
        cure = "Merge it in a run without model.quantization (merge: true), and take its export as model.checkpoint."
        yield Problem("model.merge_adapters", what, cure)


def _unfit(quantization: QuantizationConfigMixin) -> Sequence[str]:
    """Return PEFT's names of the tuners that do not train on such weights, as far as that was tried."""
    if isinstance(quantization, BitsAndBytesConfig):
        return UNFIT_ON_4_BITS if quantization.load_in_4bit else UNFIT_ON_8_BITS
    return UNFIT_ON_TORCHAO if _method(quantization) == QuantizationMethod.TORCHAO.value else ()


def environment_problems(quantization: QuantizationConfigMixin, is_stored: bool, device: str) -> Iterator[Problem]:
    """Find a package that is missing, or a device that the method does not run or train on.

    Args:
        quantization: How the weights are quantized.
        is_stored: Whether they are that in the checkpoint already.
        device: Type of the device that the model trains on (`cpu`, `cuda`, `mps`).
    """
    try:
        if isinstance(quantization, BitsAndBytesConfig):
            import bitsandbytes

            if device not in bitsandbytes.supported_torch_devices:
                known = ", ".join(sorted(bitsandbytes.supported_torch_devices))
                yield Problem(
                    "trainer.accelerator", f"bitsandbytes does not run on {device!r}.", f"It runs on {known}."
                )
                return
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=is_stored)
        quantizer.validate_environment(device_map={"": device})
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        missing = isinstance(error, ImportError)
        cure = "Install what it needs, or take another one." if missing else "Take another device or method."
        yield Problem(WHERE, f"{name_of(quantization)} does not work on this machine: {text}", cure)
        return
    if not quantizer.is_trainable or "Activation" in type(getattr(quantization, "quant_type", None)).__name__:
        # torchao has no gradient of rounded activations, although transformers takes those of 8 bits for trainable
        what = f"adapters cannot be trained on {name_of(quantization)} weights."
        yield Problem(WHERE, what, "Take transformers.BitsAndBytesConfig, or torchao's Int8WeightOnlyConfig.")


def merge_problems(quantization: QuantizationConfigMixin | None) -> Iterator[Problem]:
    """Find weights without a way back to plain ones, into which an adapter could be merged.

    There is one where transformers' quantizer has it, and in torchao's tensors, which need no quantizer for it.

    Args:
        quantization: How the base model's weights are quantized; None for not at all.
    """
    if quantization is None or (method := _method(quantization)) == QuantizationMethod.TORCHAO.value:
        return
    kinds: list[Any] = [
        kind for key, kind in AUTO_QUANTIZER_MAPPING.items() if key == method or key.startswith(f"{method}_")
    ]
    if not kinds or any(kind._dequantize is HfQuantizer._dequantize for kind in kinds):
        what = (
            f"{name_of(quantization)} weights cannot be turned back into plain ones, which an adapter is merged into."
        )
        yield Problem("merge", what, "Export the adapter alone: merge: false.")


def spare(
    quantization: QuantizationConfigMixin, skeleton: PreTrainedModel, modules: Collection[str]
) -> QuantizationConfigMixin:
    """Return a copy of the config that leaves modules as they are: heads, which may be new, and what else is named.

    Args:
        quantization: The config; it is not changed, as transformers would.
        skeleton: The model, on the meta device.
        modules: Names of modules, or ends of names.
    """
    config = copy.deepcopy(quantization)
    key = next((key for key in SKIPPED if hasattr(config, key)), None)
    if key is not None:
        given = getattr(config, key)  # a list replaces transformers' own, which has tied weights
        whole = {*modules, *_heads(skeleton), *(get_keys_to_not_convert(skeleton) if given is None else given)}
        setattr(config, key, sorted(whole))
    return config


def _heads(model: PreTrainedModel) -> list[str]:
    """Return the modules that stand on the base model: `classifier`, `score`, `qa_outputs`, `lm_head`."""
    if model.base_model is model:
        return []
    return [name for name, _ in model.named_children() if name != model.base_model_prefix]


def is_quantized(module: nn.Module) -> bool:
    """Say whether a module's own weight is quantized, or would be if it were loaded; not so of the modules in it."""
    kinds = (type(module), type(getattr(module, "weight", None)))
    return any(kind.__module__.startswith(("bitsandbytes.", "torchao.")) for kind in kinds) or hasattr(
        module, "qweight"
    )


def quantized_parameters(model: nn.Module) -> list[str]:
    """Return the names of a model's quantized weights, and of what else is frozen in the same modules."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if is_quantized(module)
        for own, parameter in module.named_parameters(recurse=False)
        if not parameter.requires_grad  # what an adapter has of its own beside the weights trains
    ]


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze a model that was loaded quantized, and turn what is not quantized, norms among it, into float32."""
    return keep_packing(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False))


def keep_packing(model: PreTrainedModel) -> PreTrainedModel:
    """Have a quantized model answer alike in training and evaluation mode, and whatever order these come in.

    On processors with AVX512-BF16, bitsandbytes 0.50 repacks 4-bit weights at the first forward pass in evaluation
    mode, for inference alone: rounded to bfloat16, without a gradient to the layers below in the training that follows,
    and of some shapes not at all. It is told to leave them.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False
    return model


def placement(config: PreTrainedConfig, checkpoint: PreTrainedConfig, device: str | torch.device) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` by which a model is quantized as it was in training.

    Args:
        config: The config of the model as it was trained; it loses what goes into the arguments.
        checkpoint: The config of the checkpoint that is loaded, which may hold quantized weights itself.
        device: Where the model is to be, as some quantized weights are not moved after.
    """
    quantization = stored_quantization(config)
    if quantization is None:
        return {}
    arguments: dict[str, Any] = {"device_map": {"": device}}
    if stored_quantization(checkpoint) is None:
        del config.quantization_config
        arguments["quantization_config"] = quantization
    return arguments


def dequantize(model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Give a model plain weights of what its quantized ones stand for, in place.

    Raises:
        NotImplementedError: If it has quantized modules of a kind that cannot be read back.
    """
    for name, module in list(model.named_modules()):
        if is_quantized(module):
            model.set_submodule(name, _plain(module, dtype))
    cast(Any, model).hf_quantizer.remove_quantization_config(unmark(model))
    # of a checkpoint that was quantized already: what has read it has no way back for `save_pretrained`
    conversions = getattr(model, "_weight_conversions", None) or ()
    cast(Any, model)._weight_conversions = [one for one in conversions if not _reads_quantized(one)]
    return model.to(dtype)  # type: ignore[arg-type]  # transformers' wrapper of `to` hides its arguments


def _reads_quantized(conversion: Any) -> bool:
    return any(getattr(operation, "hf_quantizer", None) for operation in getattr(conversion, "operations", ()))


def unmark(model: PreTrainedModel) -> PreTrainedModel:
    """Take back what transformers notes on a model of bitsandbytes."""
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        if hasattr(model, mark):
            setattr(model, mark, False)
    return model


def _plain(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    if hasattr(module, "qweight") or not isinstance(module, nn.Linear):
        raise NotImplementedError(f"{type(module).__name__} cannot be dequantized.")
    weight = cast(torch.Tensor, dequantize_module_weight(module)).detach().to(dtype)
    with torch.device("meta"):
        if getattr(module, "source_cls", None) is Conv1D:  # which GPT-2 has in place of linear layers
            plain: nn.Module = Conv1D(module.out_features, module.in_features)
            weight = weight.t().contiguous()
        else:
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
    return plain.train(module.training)
