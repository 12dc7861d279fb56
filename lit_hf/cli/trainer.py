"""The Lightning CLI behind fit, validate and test (first cut: the parser)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_hf.data.datamodule import LitDataModule
from lit_hf.task import Task
from lit_hf.tasks.text_classification import TextClassification  # noqa: F401
from lit_hf.training.module import LitModule


@dataclass
class RunSettings:
    """The run.

    Args:
        name: Name of the run; the names of the config files where it is left out. The same name resumes the same run.
        output_dir: Folder of all runs.
        tracker: Where the logged values go beside `metrics.csv`.
        monitor: Metric that tells the best checkpoint (`accuracy`, `loss`); the task's own where it is left out.
        patience: Stop after that many validations without a better one.
        merge: Merge the adapter into the base model in the export.
    """

    name: str | None = None
    output_dir: str = "runs"
    tracker: Literal["csv", "tensorboard", "wandb"] = "csv"
    monitor: str | None = None
    patience: int | None = None
    merge: bool = False


class TrainerCLI(LightningCLI):
    """One verb's CLI."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Put our own blocks first, Lightning's long tail after."""
        parser.add_subclass_arguments(Task, "task", required=True)
        parser.add_lightning_class_args(LitModule, "model")
        parser.add_lightning_class_args(LitDataModule, "data")
        parser.add_class_arguments(RunSettings)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.link_arguments("task", "data.task", apply_on="instantiate")
        parser.link_arguments("task", "model.task", apply_on="instantiate")
        for key in ("checkpoint", "revision", "trust_remote_code"):
            parser.link_arguments(f"model.{key}", f"data.{key}")
        parser.link_arguments("seed_everything", "data.seed")
