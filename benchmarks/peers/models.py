"""The same model and the same batches for the peers that are given them."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.peers.pairs import collate_pairs
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import AUTO_CLASSES, Workload


def load_model(workload: Workload, prepared: Prepared) -> Any:
    """Return the starting weights, without the adapter that is to be trained."""
    import torch
    import transformers

    dtype = getattr(torch, workload.dtype)
    options: dict[str, Any] = {"dtype": dtype}
    if workload.nf4:
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    if workload.on_gpu:
        options["device_map"] = {"": 0}
    return getattr(transformers, AUTO_CLASSES[workload.kind]).from_pretrained(prepared.checkpoint, **options)


def with_adapter(workload: Workload, model: Any) -> Any:
    """Return the model with its new adapter, if the workload trains one."""
    if workload.lora is None:
        return model
    from peft import get_peft_model, prepare_model_for_kbit_training

    if workload.nf4:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, lora_config(workload))


def lora_config(workload: Workload) -> Any:
    """Return the adapter's config, None where all weights train."""
    if workload.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **workload.lora)


def load_tokenizer(workload: Workload, prepared: Prepared) -> Any:
    """Return the tokenizer, which cuts at the workload's length."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared.checkpoint)
    tokenizer.model_max_length = workload.max_length or tokenizer.model_max_length
    return tokenizer


def collator(workload: Workload, prepared: Prepared) -> Any:
    """Return what pads encoded rows to a batch."""
    import transformers

    tokenizer = load_tokenizer(workload, prepared)
    if workload.kind == "preference":
        return partial(collate_pairs, pad=tokenizer.pad_token_id)
    if workload.kind == "text_classification":
        return transformers.DataCollatorWithPadding(tokenizer)
    if workload.kind == "seq2seq":
        return transformers.DataCollatorForSeq2Seq(tokenizer)
    return transformers.DataCollatorForTokenClassification(tokenizer)


def trainable(model: Any) -> list[Any]:
    """Return the parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
