"""Hold the memory that `lit-hf plan` predicts against what training takes, and write both down.

Each configuration trains a few steps, through lit-hf's own parser, data and Lightning module.
On a CPU the peak is that of the allocator: the weights as they lie there when training starts, and every allocation and
release after that, as torch's profiler has them. On a GPU it is `torch.cuda.max_memory_allocated`. Neither shares
anything with the prediction.

Example:
    python -m benchmarks.memory --output benchmarks/results
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

STEPS = 3
"""Optimizer steps that are measured: from the second on the optimizer has its state."""

ROWS = 8


def bits_and_bytes(**settings: Any) -> dict[str, Any]:
    """Return a quantization by bitsandbytes."""
    return {"class_path": "transformers.BitsAndBytesConfig", "init_args": settings}


LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 8, "target_modules": "all-linear"}}
FOUR = bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
TORCHAO = {
    "class_path": "transformers.TorchAoConfig",
    "init_args": {"quant_type": {"class_path": "torchao.quantization.Int8WeightOnlyConfig"}},
}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "LoRA on nf4": {"model": {"adapter": LORA}, "quantization": FOUR},
    "LoRA on 8 bits": {"model": {"adapter": LORA}, "quantization": bits_and_bytes(load_in_8bit=True)},
    "full, 16k words": {"words": 16000},
    "full, checkpointing": {"model": {"gradient_checkpointing": True}},
    "full, 512 tokens": {"length": 512},
    "LoRA": {"model": {"adapter": LORA}},
    "LoRA on nf4, checkpointing": {"model": {"adapter": LORA, "gradient_checkpointing": True}, "quantization": FOUR},
    "full, bf16-mixed": {"precision": "bf16-mixed"},
    "full, 8-bit AdamW": {
        "model": {"optimizer": {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 0.001}}}
    },
    "full, checkpointing, 512 tokens": {"model": {"gradient_checkpointing": True}, "length": 512},
    "BERT, full": {"model_type": "bert"},
    "LoRA, checkpointing": {"model": {"adapter": LORA, "gradient_checkpointing": True}},
    "full, SGD": {"model": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}}},
    "full, bf16-true": {"precision": "bf16-true"},
    "LoRA on 8 bits of torchao": {"model": {"adapter": LORA}, "quantization": TORCHAO},
    "LoRA on 8 bits of torchao, bf16-mixed, checkpointing": {
        "model": {"adapter": LORA, "gradient_checkpointing": True},
        "quantization": TORCHAO,
        "precision": "bf16-mixed",
    },
}

SHAPES = {
    "llama": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "intermediate_size": 1024,
    },
    "bert": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536},
}


def config_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a run that starts from random weights."""
    kind, words, length = settings.get("model_type", "llama"), settings.get("words", 4000), settings.get("length", 256)
    shape = {"model_type": kind, **SHAPES[kind], "max_position_embeddings": length}
    model: dict[str, Any] = {**settings.get("model", {})}
    model["config"] = shape
    task = {"class_path": "CausalLM", "init_args": {"text": "code", "block_length": length}}
    if kind == "bert":
        task = {"class_path": "TextClassification", "init_args": {"text": "code", "label": "package"}}
    return {
        "task": task,
        "model": model,
        "data": {
            "source": {"generator": "lit_hf.data.standard_library.functions", "limit": {"train": 600}},
            "tokenizer": {"train": {"vocab_size": words}},
            "max_length": length,
            # so that the few steps that are measured all have the largest batch, which is what is predicted
            "pad_to_multiple_of": length,
            "batch_size": ROWS,
        },
        "trainer": {
            "max_steps": STEPS,
            "limit_val_batches": 0,
            "precision": settings.get("precision", "32-true"),
            "enable_progress_bar": False,
            "enable_checkpointing": False,
        },
    }


def quantized(config: dict[str, Any], quantization: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the config of a run on quantized weights, for which a checkpoint is made, as only these are quantized."""
    from transformers import AutoConfig, AutoModelForCausalLM

    cli = parsed({**config, "model": {"config": config["model"]["config"]}}, folder)
    cli.datamodule.prepare("fit")
    place = str(folder / "checkpoint")
    cli.datamodule.tokenizer.save_pretrained(place)
    values = {**config["model"]["config"], "vocab_size": len(cli.datamodule.tokenizer)}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**values)).save_pretrained(place)
    return {**config, "model": {**config["model"], "checkpoint": place, "config": None, "quantization": quantization}}


def parsed(config: dict[str, Any], folder: Path) -> Any:
    """Return the command line of a config."""
    import yaml

    from lit_hf.cli.trainer import TrainerCLI

    path = folder / "memory.yaml"
    path.write_text(yaml.safe_dump(config))
    return TrainerCLI(["-c", str(path), "--output_dir", str(folder)], "plan")


def parts(tensors: list[Any]) -> list[Any]:
    """Return tensors with those in the place of a wrapper, such as torchao's, that it is made of."""
    found = []
    for one in tensors:
        names = one.__tensor_flatten__()[0] if hasattr(one, "__tensor_flatten__") else ()
        found += parts([getattr(one, name) for name in names]) if names else [one]
    return found


def measure(name: str) -> dict[str, Any]:
    """Predict and measure one configuration, in this process."""
    import torch

    from lit_hf.cli.plan import planned_run
    from lit_hf.planning.machine import Machine
    from lit_hf.planning.planner import Planner
    from lit_hf.planning.workload import read_workload

    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as place:
        settings = CONFIGURATIONS[name]
        config = config_of(settings)
        if "quantization" in settings:
            config = quantized(config, settings["quantization"], Path(place))
        cli = parsed(config, Path(place))
        planned = planned_run(cli)
        work = read_workload(planned, with_data=True)
        machine = Machine("", on_gpu, 1e12, 1e12, "", 1, 1, 1, 1, 1, config["trainer"]["precision"])
        planner = Planner(planned, work, machine)
        predicted = planner.peaks(planner.case)
        peak = _peak(on_gpu)
        cli.config_init.trainer["callbacks"] = [peak]
        trainer = cli.make_trainer("fit")
        cli.save_inputs()
        trainer.fit(cli.model, datamodule=cli.datamodule)
    parameters = sum(one.numel() for one in planner.case.module.skeleton().parameters())
    return {
        "name": name,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "torch": torch.__version__,
        "parameters": parameters,
        "predicted": predicted.total,
        "measured": peak.peak,
        "error": predicted.total / peak.peak - 1,
    }


def _peak(on_gpu: bool) -> Any:
    """Return a callback whose `peak` is the most bytes from the start of training to its end."""
    import torch
    from lightning.pytorch import Callback, Trainer

    class Peak(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
                return
            tensors = parts([*pl_module.model.parameters(), *pl_module.model.buffers()])
            tensors += [state.absmax for one in tensors if (state := getattr(one, "quant_state", None)) is not None]
            storages = {id(storage): storage.nbytes() for storage in (one.untyped_storage() for one in tensors)}
            self.base = sum(storages.values())
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
            self.profile.start()

        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            if on_gpu:
                self.peak = torch.cuda.max_memory_allocated()
                return
            self.profile.stop()
            events = [event for event in self.profile.profiler.kineto_results.events() if event.name() == "[memory]"]
            live = self.peak = self.base
            for event in sorted(events, key=lambda event: event.start_ns()):
                live += event.nbytes()
                self.peak = max(self.peak, live)

    return Peak()


def main() -> None:
    """Measure all configurations, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", choices=CONFIGURATIONS, help="measure this one here, and print it as JSON")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    for name in CONFIGURATIONS:
        rows.append(measure(name))
        gc.collect()
        print(_line(rows[-1]), flush=True)
        # after each one, so that an interrupted run has what it measured
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "memory.json").write_text(json.dumps(rows, indent=2) + "\n")
        (options.output / "memory.md").write_text(_page(rows))


def _line(row: dict[str, Any]) -> str:
    predicted, measured = row["predicted"] / 2**20, row["measured"] / 2**20
    return (
        f"| {row['name']} | {row['parameters'] / 1e6:.1f} M | {predicted:.1f} | {measured:.1f} | {row['error']:+.1%} |"
    )


def _page(rows: list[dict[str, Any]]) -> str:
    worst = max((abs(row["error"]) for row in rows), default=0.0)
    head = [
        "# Memory: predicted against measured",
        "",
        f"Peak of a training step on a {rows[0]['device']} ({platform.processor() or platform.machine()}), torch "
        f"{rows[0]['torch']}, by `python -m benchmarks.memory`. Measured are {STEPS} optimizer steps of a run, "
        "from the start of training to its end: the most bytes of memory that its tensors take at once, weights, "
        f"gradients, optimizer state and activations. Each batch has {ROWS} rows, padded to 256 tokens; the models are "
        "Llamas with a vocabulary of 4,000 words that train in float32, where not said otherwise. Predicted is what "
        "`lit-hf plan` says before.",
        "",
        f"The largest error of the {len(rows)} is {worst:.1%}.",
        "",
        "| training | parameters | predicted, MiB | measured, MiB | error |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *map(_line, rows), ""])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
