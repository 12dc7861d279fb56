"""Training with weights, gradients and optimizer state cut into rows among the devices: FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from lit_hf.models.sharding import computing_layers
from lit_hf.training.saving import CheckpointFiles
from lit_hf.training.shards import COMMON, cut_like, read, rows_file, split

SHARDED = "fsdp2"
"""Its short name in a config."""


class FullySharding(ModelParallelStrategy):
    """Cuts all weights into rows, one part for each device, and puts a layer together while it computes.

    What is in no layer (embeddings, the head, the last norm) is together from the forward pass to the end of the
    backward pass, so that a loss may use the head after the model's own pass.

    What autocast computes in 16 bits it copies: a layer's copies are kept for the backward pass, unless that computes
    the layer again (gradient checkpointing).

    Args:
        process_group_backend: How devices talk to each other: by default `nccl` on GPUs, `gloo` on CPUs.
        timeout: How long one waits for another.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self._writers: Any = None  # the group of the threads that write checkpoints

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the trainer hands the optimizer's state over, as it does by default."""
        return True

    def setup_environment(self) -> None:
        """Meet the other ranks: all of them share one cut."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_processes * self.num_nodes, 1
        super().setup_environment()
        # a disk may be slow for one of them; a rank that is lost is noticed at once
        self._writers = distributed.new_group(backend="gloo", timeout=timedelta(hours=6))

    def setup(self, trainer: Trainer) -> None:
        """Cut the model, which is built by now, and make the optimizer of what is left here."""
        module = cast(Any, self.lightning_module)
        self.precision_plugin.convert_module(module)
        shard(module.model, self.device_mesh["data_parallel"])
        # autocast would keep a copy of each weight for as long as a pass takes, though that is cut again meanwhile
        torch.set_autocast_cache_enabled(False)
        super().setup(trainer)

    # checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the module's tensors, cut as they are."""
        return cast(nn.Module, self.lightning_module).state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state, cut as it is."""
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write this rank's rows to a file of its own, beside the training; if one rank cannot, none has."""
        files, folder = cast(CheckpointFiles, self.checkpoint_io), Path(filepath)
        common, rows = split(checkpoint, self.world_size)
        folder.mkdir(exist_ok=True)
        files.write(rows, folder / rows_file(self.global_rank), ranks=self.world_size)
        if self.is_global_zero:
            files.write(common, folder / COMMON)
        files.writer.agree(self._all_could_write)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint, also one that was cut otherwise or not at all; rows are read when they are needed."""
        path = Path(checkpoint_path)
        return read(path) if path.is_dir() else self.checkpoint_io.load_checkpoint(path)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this rank's rows of a checkpoint's weights."""
        module = cast(nn.Module, self.lightning_module)
        own, saved = module.state_dict(), checkpoint["state_dict"]
        module.load_state_dict({name: cut_like(saved[name], own.get(name)) for name in saved}, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's rows of a checkpoint's optimizer state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                index: {name: cut_like(value, parameters[index]) for name, value in values.items()}
                for index, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _all_could_write(self, could: bool) -> bool:
        flag = torch.tensor(int(could))
        distributed.all_reduce(flag, distributed.ReduceOp.MIN, group=self._writers)
        return bool(flag)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Cut a model's parameters among the devices of a mesh, each layer for itself, and what is in none together."""
    for module in [*computing_layers(model).values(), model]:
        named = type(module)
        fully_shard(module, mesh=mesh)
        # who asks a model what it is gets the answer of before
        for name in ("__name__", "__qualname__", "__module__"):
            setattr(type(module), name, getattr(named, name))
    if hasattr(model, "generate"):
        register_fsdp_forward_method(model, "generate")


StrategyRegistry.register(SHARDED, FullySharding, description="All weights cut into rows among the devices")
