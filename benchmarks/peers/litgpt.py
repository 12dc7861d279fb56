"""LitGPT: its `pretrain`, which compiles the model, on lit-hf's blocks in their order."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.measuring import StepClock
from benchmarks.preparing import Prepared
from benchmarks.workloads.base import Workload


def train(peer: str, workload: Workload, prepared: Prepared, clock: StepClock, folder: Path) -> None:
    """Convert the checkpoint, pretrain on its blocks of full length, and convert it back."""
    from litgpt import pretrain
    from litgpt.args import EvalArgs, TrainArgs
    from transformers import AutoConfig

    length = workload.max_length or 0
    blocks = _Blocks(prepared, workload, length)
    clock.tokens_by_step = [workload.batch_size * length] * len(blocks.batches)
    start, out = folder.parent / "start", folder.parent / "litgpt"
    config = _convert(prepared.checkpoint, start, AutoConfig.from_pretrained(prepared.checkpoint))
    optimizer = {"lr": workload.learning_rate, "weight_decay": 0.0}
    sys.argv[1:] = [config.name]  # it keeps its own command line beside the weights, and reads it anew for that
    pretrain.setup(
        model_name=config.name,
        model_config=config,
        out_dir=out,
        precision=workload.precision,
        initial_checkpoint_dir=start,
        data=blocks.module(clock),
        train=TrainArgs(
            save_interval=None,
            log_interval=10,
            global_batch_size=workload.batch_size,
            micro_batch_size=workload.batch_size,
            max_tokens=len(blocks.batches) * workload.batch_size * (length - 1),
            max_seq_length=length - 1,  # of a block of 512 tokens, 511 are predicted
            max_norm=1.0,
            min_lr=workload.learning_rate,
            lr_warmup_steps=0,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1, initial_validation=False, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": optimizer},
        devices=1,
        logger_name="csv",
    )
    _convert_back(out / "final" / "lit_model.pth", prepared.checkpoint, folder, config)


class _Blocks:
    """The blocks of full length, in lit-hf's batches of full size."""

    def __init__(self, prepared: Prepared, workload: Workload, length: int) -> None:
        self.rows = prepared.encoded("train").select_columns("input_ids").to_list()
        full = {index for index, row in enumerate(self.rows) if len(row["input_ids"]) == length}
        order = [row for batch in prepared.batches for row in batch if row in full]
        size = workload.batch_size
        self.batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def module(self, clock: StepClock) -> Any:
        """Return LitGPT's data module of the blocks."""
        from litgpt.data import DataModule
        from torch.utils.data import DataLoader

        rows, batches = self.rows, self.batches

        class Module(DataModule):
            def connect(self, **settings: Any) -> None:
                """Nothing depends on LitGPT's settings."""

            def train_dataloader(self) -> Any:
                return DataLoader(rows, batch_sampler=batches, collate_fn=_stack)

            def val_dataloader(self) -> Any:
                return DataLoader(rows, batch_sampler=batches[:1], collate_fn=_stack)

        return Module()


def _stack(items: list[dict[str, Any]]) -> Any:
    """Return the ids of blocks of one length, shape [blocks, tokens]; where LitGPT's loader can be sent it."""
    import torch

    return torch.tensor([item["input_ids"] for item in items])


def _convert(checkpoint: Path, folder: Path, shape: Any) -> Any:
    """Write a Llama's weights as LitGPT's, and return LitGPT's config of it."""
    import torch
    from litgpt import Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from safetensors.torch import load_file

    config = Config(
        name="llama",
        block_size=shape.max_position_embeddings,
        vocab_size=shape.vocab_size,
        padded_vocab_size=shape.vocab_size,
        n_layer=shape.num_hidden_layers,
        n_head=shape.num_attention_heads,
        n_query_groups=shape.num_key_value_heads,
        n_embd=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        norm_eps=shape.rms_norm_eps,
        mlp_class_name="LLaMAMLP",
    )
    weights, converted = load_file(checkpoint / "model.safetensors"), {}
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    copy_weights_hf_llama(config, {}, converted, weights)
    folder.mkdir(parents=True)
    torch.save(converted, folder / "lit_model.pth")
    return config


def _convert_back(weights: Path, checkpoint: Path, folder: Path, config: Any) -> None:
    """Write LitGPT's weights as those of the Llama that they started from."""
    import torch
    from litgpt.scripts.convert_lit_checkpoint import copy_weights_llama
    from transformers import AutoModelForCausalLM

    # this process wrote it, with the whole loader inside
    trained = torch.load(weights, weights_only=False)["model"]
    converted: dict[str, Any] = {}
    copy_weights_llama(config, converted, trained)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.load_state_dict(converted)
    model.save_pretrained(folder)
