"""The Lightning CLI: one parser for fit, validate and test, and the objects that a config makes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from peft import PeftConfig

import lit_hf.tasks  # noqa: F401 - so that the tasks are known by their short names
from lit_hf.checkpoints import size_of_all
from lit_hf.cli import safety
from lit_hf.cli.adapter_settings import complete
from lit_hf.cli.arguments import read_arguments
from lit_hf.cli.checks import (
    callback_problems,
    clipping_problems,
    count_problems,
    disk_problems,
    guard_problems,
    monitor_mode,
    monitor_problems,
    monitored,
    precision_problems,
    quantization_problems,
    sharding_problems,
    strategy_problems,
    streaming_problems,
    validation_problems,
    writer_problems,
)
from lit_hf.cli.config import instantiate, parse
from lit_hf.data.datamodule import LitDataModule, Stage
from lit_hf.data.encoding import tokenizer_fingerprint
from lit_hf.errors import Problem, collect, raise_problems
from lit_hf.export.package import check as export_problems
from lit_hf.models.accounting import count_parameters
from lit_hf.models.adapter_starts import start_batches
from lit_hf.models.adapters import export_problems as lone_adapter_problems
from lit_hf.models.quantization import environment_problems, merge_problems
from lit_hf.models.sharding import adapter_problems as uncut_adapters
from lit_hf.models.sharding import model_problems as uncut_models
from lit_hf.run import RunFolder, check_name, run_name
from lit_hf.task import Batch, Task
from lit_hf.training.callbacks.budget import moves_ranks
from lit_hf.training.callbacks.checkpoints import RunCheckpoints
from lit_hf.training.callbacks.exact_resume import ExactResume
from lit_hf.training.callbacks.in_hand import BatchInHand
from lit_hf.training.callbacks.last_validation import ValidateAtLastStep
from lit_hf.training.callbacks.nonfinite import StopOnNonFinite
from lit_hf.training.callbacks.patience import StopOnPatience
from lit_hf.training.callbacks.preemption import EndTogether
from lit_hf.training.callbacks.progress import Progress
from lit_hf.training.callbacks.recompiles import WarnOnRecompiles
from lit_hf.training.callbacks.record import RunRecorder, versions
from lit_hf.training.callbacks.spikes import LossSpikes
from lit_hf.training.callbacks.throughput import Throughput
from lit_hf.training.callbacks.time_limit import StopOnTime
from lit_hf.training.host_memory import keep_freed_memory
from lit_hf.training.module import LitModule
from lit_hf.training.precision import default_precision, precision_note
from lit_hf.training.ranks import watch_ranks
from lit_hf.training.reference import reference_key, run_reference
from lit_hf.training.saving import CheckpointFiles, Writer
from lit_hf.training.settings import device_type, epochs, limits
from lit_hf.training.slurm import own_environment
from lit_hf.training.strategies import SHARDED, FullySharding
from lit_hf.training.tracking import trackers

log = logging.getLogger(__name__)

TRAINER_DEFAULTS = {
    "enable_model_summary": False,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 1,
    "use_distributed_sampler": False,
}
"""Where Lightning's own defaults do not serve fine-tuning: our loader shards itself, and gradients are clipped."""


@dataclass
class RunSettings:
    """The run.

    Args:
        name: Name of the run; by default the names of the config files. The same name resumes the same run.
        output_dir: Folder of all runs.
        tracker: Where the logged values go beside `metrics.csv`.
        monitor: Metric that tells the best checkpoint (`accuracy`, `loss`); by default the task's own.
        patience: Stop after that many validations without a better one.
        merge: Merge the adapter into the base model in the export.
        checkpoint_every: Save a checkpoint every so many optimizer steps, beside those after each validation.
        skip_nonfinite: Optimizer steps that are skipped, in the whole run, for a loss or gradients that are not finite;
            the one after them ends the run. By default the first one does.
        loss_spike: Warn of training losses more than that many times the median of the last hundred.
    """

    name: str | None = None
    output_dir: str = "runs"
    tracker: Literal["csv", "tensorboard", "wandb"] = "csv"
    monitor: str | None = None
    patience: int | None = None
    merge: bool = False
    checkpoint_every: int | None = None
    skip_nonfinite: int = 0
    loss_spike: float | None = None


class TrainerCLI(LightningCLI):
    """Parses a config, and makes the task, the data, the model and the trainer of it.

    Args:
        arguments: The options after the verb.
        verb: The verb, as its help names it.

    Attributes:
        run: The run's folder.
        task: The task, the same object in data and model.
        resolved: The whole config as plain values, with the run's name; it parses to the same config again.
        in_hand: What a fit is at.

    Raises:
        InputError: With everything that is wrong in the config.
    """

    def __init__(self, arguments: Sequence[str], verb: str = "fit") -> None:
        super().__init__(
            LitModule,
            LitDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=42,
            args=list(arguments),
            # one parser for one verb; Lightning's own subcommands would also merge a checkpoint's hyper-parameters
            run=False,
            # Lightning's would ask for the parameters before the model is built
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False, "prog": f"lit-hf {verb}"},
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Put our own blocks first, Lightning's long tail after."""
        parser.add_subclass_arguments(Task, "task", required=True, help="What is to be learnt.")
        parser.add_lightning_class_args(LitModule, "model")
        parser.add_lightning_class_args(LitDataModule, "data")
        parser.add_class_arguments(RunSettings)
        parser.add_lightning_class_args(Trainer, "trainer")
        parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER_DEFAULTS.items()})
        parser.link_arguments("task", "data.task", apply_on="instantiate")
        parser.link_arguments("task", "model.task", apply_on="instantiate")
        for key in ("checkpoint", "revision", "trust_remote_code"):
            parser.link_arguments(f"model.{key}", f"data.{key}")
        parser.link_arguments("data.packing", "model.packing")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("data.tokenizer.add_tokens", "model.add_tokens")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse strictly: every problem of the config at once."""
        safe = safety.FLAG in args
        args = [argument for argument in args if argument != safety.FLAG]
        self.config = parse(parser, args, safe)
        configs = [argument.text for argument in read_arguments(args)[0] if argument.key == "config"]
        self.config.name = check_name(self.config.name or run_name(configs))
        if self.config.model.trust_remote_code:
            log.warning("model.trust_remote_code is on: code that comes with %s is run.", self.config.model.checkpoint)
        self.run = RunFolder(Path(self.config.output_dir) / self.config.name)
        self.resolved: dict[str, Any] = yaml.safe_load(parser.dump(self.config, skip_unset=False))

    def instantiate_classes(self) -> None:
        """Make the task, the data and the model; nothing is loaded yet."""
        complete(self.config.model.adapter)
        self.config_init = instantiate(self.parser, self.config)
        self.task: Task = self.config_init.task
        self.datamodule: LitDataModule = self.config_init.data
        self.model: LitModule = self.config_init.model
        # no method: a copy of the model would copy what that is bound to, the data among it
        self.model.draw_batches = lambda adapter: _draw_batches(self.datamodule, adapter)
        self.in_hand = BatchInHand()

    # before the trainer starts

    def prepare(self, stage: Stage) -> None:
        """Load and check the data, then check all that can be checked before weights are loaded.

        Raises:
            InputError: With everything that is wrong.
        """
        raise_problems(
            collect(
                self._read_model_config,
                lambda: self.datamodule.load(stage),
                lambda: self.model.check() if self.task.is_bound else (),
                lambda: self._monitor_problems(stage) if self.task.is_bound else (),
                lambda: strategy_problems(self.config_init.trainer.strategy),
                lambda: self._sharding_problems() if self._is_sharded else (),
                self._quantization_problems,
                self._precision_problems,
                self._guard_problems,
                lambda: callback_problems(_listed(self.config_init.trainer.callbacks)),
                self._writer_problems,
                lambda: validation_problems(self.config_init.trainer),
                lambda: self._streaming_problems() if stage == "fit" else (),
            )
        )
        if stage == "fit":
            raise_problems(self._size_problems())
        self.datamodule.prepare(stage)
        self._set_seed()  # so that the weights are the same whether the data came from the cache or not

    def _read_model_config(self) -> Iterable[Problem]:
        self.datamodule.longest_input = self.model.longest_input
        return ()

    def _quantization_problems(self) -> Iterator[Problem]:
        base, trainer = self.model.base, self.config_init.trainer
        if (quantized := base.quantized) is not None:
            yield from quantization_problems(trainer.precision)
            yield from environment_problems(quantized, base.quantization is None, device_type(trainer.accelerator))
            yield from merge_problems(quantized) if self.config.merge else ()

    def _streaming_problems(self) -> Iterable[Problem]:
        has_reference = bool(self.task.reference_columns) and self.model.adapter is None
        trainer = self.config_init.trainer
        return streaming_problems(trainer, has_reference) if self.datamodule.stream is not None else ()

    def _precision_problems(self) -> Iterator[Problem]:
        trainer, optimizer = self.config_init.trainer, self.resolved["model"]["optimizer"]
        precision = default_precision(trainer.accelerator) if trainer.precision is None else trainer.precision
        base, has_adapter = self.model.base, self.model.adapter is not None
        yield from precision_problems(precision, base.weights_dtype, base.attention, has_adapter)
        fused = bool(((optimizer or {}).get("init_args") or {}).get("fused"))
        yield from clipping_problems(precision, trainer.gradient_clip_val, fused)
        if self.model.switches.liger and trainer.accelerator == "cpu":
            what = "liger-kernel needs a CUDA GPU, and trainer.accelerator is cpu."
            yield Problem("model.liger", what, "Leave one of them out.")

    @property
    def _is_sharded(self) -> bool:
        strategy = self.config_init.trainer.strategy
        return strategy == SHARDED or isinstance(strategy, FullySharding)

    def _sharding_problems(self) -> Iterator[Problem]:
        trainer, optimizer = self.config_init.trainer, self.resolved["model"]["optimizer"]
        precision = default_precision(trainer.accelerator) if trainer.precision is None else trainer.precision
        class_path = (optimizer or {}).get("class_path", "")
        yield from sharding_problems(precision, class_path, self.model.base.quantized is not None)
        yield from uncut_adapters(self.model.adapter)

    def _monitor_problems(self, stage: str) -> Iterator[Problem]:
        monitor = monitored(self.task, self.config.monitor)
        return monitor_problems(self.task, monitor, stage != "fit" or self._validates, self.config.patience)

    def _writer_problems(self) -> Iterator[Problem]:
        for key in ("logger", "profiler"):
            yield from writer_problems(f"trainer.{key}", _listed(self.resolved["trainer"][key]))

    def _guard_problems(self) -> Iterator[Problem]:
        config = self.config
        yield from guard_problems(config.skip_nonfinite, config.loss_spike, moves_ranks(self.model.adapter))
        yield from count_problems(config.checkpoint_every, config.patience)

    def _size_problems(self) -> Iterator[Problem]:
        self.run.create()
        skeleton = self.model.skeleton()
        trainable, total = count_parameters(skeleton)
        yield from uncut_models(skeleton) if self._is_sharded else ()
        stored, kept = total if self.model.parts.stores_base else trainable, size_of_all(self.run.checkpoints)
        yield from disk_problems(self.run.path, trainable, stored, kept)
        yield from export_problems(skeleton, self.config.merge)
        yield from lone_adapter_problems(self.model.adapter, self.model.adaptation.merged, self.config.merge)

    def make_trainer(self, stage: str) -> Trainer:
        """Return the trainer of a stage, with the callbacks that the run needs; for a fit, `start_trackers` comes next.

        Args:
            stage: `fit`, `validate` or `test`.
        """
        settings = dict(self.config_init.trainer)
        given = _listed(settings["plugins"])
        if settings["precision"] is None and not any(isinstance(one, Precision) for one in given):
            settings["precision"] = precision = default_precision(settings["accelerator"])
            log.info("precision: %s", precision_note(precision))
        settings["plugins"] = [*given, *own_environment(given, settings["strategy"])]
        given = _listed(settings["callbacks"])
        throughput = Throughput()
        own: list[Callback] = []
        if settings["enable_progress_bar"] is not False and not any(isinstance(one, ProgressBar) for one in given):
            own.append(Progress(throughput))
        if stage == "fit":
            own += [throughput, self.in_hand, EndTogether(), ValidateAtLastStep()]
            own += [StopOnNonFinite(skip=self.config.skip_nonfinite)]
            own += [] if self.config.loss_spike is None else [LossSpikes(self.config.loss_spike)]
            own += [RunRecorder(self.run, throughput, self.fingerprints, limits(self.resolved))]
            own += [ExactResume(self.datamodule.batches.seed)]
            own += self._checkpoint_callbacks(settings)
            own += [WarnOnRecompiles()] if self.model.switches.compile else []
            settings["logger"] = [] if isinstance(settings["logger"], bool) else _listed(settings["logger"])
            own += [] if settings["max_time"] is None else [StopOnTime(settings["max_time"])]
            settings |= {"max_epochs": epochs(settings["max_epochs"], settings["max_steps"]), "max_time": None}
        else:
            given = [one for one in given if not isinstance(one, Checkpoint)]
            settings |= {"logger": False, "enable_checkpointing": False}
        # ours first: Lightning takes the first checkpoint callback for the one that tells the best
        settings["callbacks"] = [*own, *given]
        self.trainer = Trainer(**{**settings, "default_root_dir": str(self.run.path)})
        watch_ranks(self.trainer)
        if self.trainer.strategy.root_device.type == "cpu":
            keep_freed_memory()
        return self.trainer

    def start_trackers(self, steps_done: int, exact: bool) -> None:
        """Start what logs, once nothing can be refused any more: some write to the run or to a server as they start.

        Args:
            steps_done: Optimizer steps of the checkpoint that the run resumes from.
            exact: Whether the steps after them, where there were some, will be what they were.
        """
        own = trackers(self.config.tracker, self.run, self.resolved, steps_done, exact)
        self.trainer.loggers = [*own, *self.trainer.loggers]

    def add_reference(self) -> None:
        """Give the rows what the task must know of the model before it is trained or its weights are loaded."""
        if self.task.reference_columns and self.model.adapter is None:
            compute = partial(run_reference, self.model, self.trainer)
            self.datamodule.add_columns(compute, reference_key(self.model, self.trainer, self.config.seed_everything))

    @property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the model that the run started from, the tokenizer, and the rows of each prepared split."""
        tokenizer = tokenizer_fingerprint(self.task.tokenizer)
        return {"model": self.model.base.fingerprint, "tokenizer": tokenizer, **self.datamodule.fingerprints}

    def _checkpoint_callbacks(self, settings: dict[str, Any]) -> list[Callback]:
        monitor = monitored(self.task, self.config.monitor)
        mode = monitor_mode(self.task, monitor)
        callbacks: list[Callback] = []
        if settings["enable_checkpointing"] is not False:
            files = CheckpointFiles(Writer())
            settings["plugins"] = [*_listed(settings["plugins"]), files]
            monitored_value = f"val/{monitor}" if self._validates else None
            callbacks.append(
                RunCheckpoints(self.run, files.writer, monitored_value, mode, self.config.checkpoint_every, versions())
            )
        if self.config.patience is not None:
            callbacks.append(StopOnPatience(f"val/{monitor}", self.config.patience, mode))
        return callbacks

    @property
    def _validates(self) -> bool:
        return "validation" in self.datamodule.splits and self.config.trainer.limit_val_batches != 0

    @rank_zero_only
    def save_inputs(self) -> None:
        """Keep in the run's folder what later verbs need: the config and the tokenizer."""
        self.run.create()
        self.run.write_config(self.resolved)
        self.task.tokenizer.save_pretrained(self.run.tokenizer)


def _draw_batches(data: LitDataModule, adapter: PeftConfig) -> list[Batch]:
    collate = data.task.collator(training=True)
    return start_batches(adapter, data.encoded["train"], data.batches.size, collate, data.batches.seed)


def _listed(value: Any) -> list[Any]:
    """Return a setting that may be one thing, several or none, as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
