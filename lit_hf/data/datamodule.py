"""Stub of the data module's signature; being written."""

from typing import Any

from lightning.pytorch import LightningDataModule

from lit_hf.data.sources import Source
from lit_hf.data.tokenization import TokenizerSettings
from lit_hf.task import Task


class LitDataModule(LightningDataModule):
    """Data."""

    def __init__(
        self,
        task: Task,
        source: Source,
        tokenizer: TokenizerSettings = TokenizerSettings(),
        max_length: int | None = None,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        group_by_length: bool = True,
        pad_to_multiple_of: int | None = None,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        num_proc: int | None = None,
        checkpoint: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        seed: int = 42,
    ) -> None:
        super().__init__()
