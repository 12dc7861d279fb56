"""Stub of the module's signature; being written."""

from typing import Any, Literal

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from peft import PeftConfig
from torch.optim import AdamW
from transformers.utils.quantization_config import QuantizationConfigMixin

from lit_hf.task import Task
from lit_hf.training.optimizers import Schedule


class LitModule(LightningModule):
    """Model."""

    def __init__(
        self,
        task: Task,
        checkpoint: str | None = None,
        revision: str | None = None,
        config: dict[str, Any] | None = None,
        adapter: PeftConfig | None = None,
        quantization: QuantizationConfigMixin | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        attention: str | None = None,
        trust_remote_code: bool = False,
        optimizer: OptimizerCallable = lambda params: AdamW(params, lr=5e-5),
        schedule: Schedule = Schedule(),
    ) -> None:
        super().__init__()
