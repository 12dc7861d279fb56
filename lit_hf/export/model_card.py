"""The model card of an export: what it is, how it is loaded, what it was trained on, and how well it does."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from peft import PeftModel

from lit_hf import __version__
from lit_hf.errors import without_secrets
from lit_hf.evaluation.definitions import definition
from lit_hf.export.card_sources import Described, described_sources, public
from lit_hf.export.loading_snippet import loading_snippet
from lit_hf.hub import is_local
from lit_hf.models.folder import CARD, MANIFEST, is_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_hf.export.merging import Loss
    from lit_hf.task import Task

TAGS = ["lit-hf"]

HUB_METRICS = {
    "accuracy": "accuracy",
    "auroc": "roc_auc",
    "bleu": "bleu",
    "chrf": "chrf",
    "exact_match": "exact_match",
    "f1": "f1",
    "f1_macro": "f1",
    "f1_micro": "f1",
    "mcc": "matthews_correlation",
    "mse": "mse",
    "pearson": "pearsonr",
    "perplexity": "perplexity",
    "precision": "precision",
    "recall": "recall",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
    "rougeLsum": "rouge",
    "spearman": "spearmanr",
}
"""The Hub's names of our metrics; one that has none there goes by its own."""

SETTINGS = {
    "model": (
        "config",
        "adapter",
        "adapter_checkpoint",
        "merge_adapters",
        "quantization",
        "dtype",
        "freeze",
        "optimizer",
        "rates",
        "schedule",
    ),
    "data": ("tokenizer", "max_length", "batch_size", "batch_tokens", "packing"),
    "trainer": ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val"),
}
"""What of a run's config the card shows, beside the task and the seed."""


class Provenance(NamedTuple):
    """The run that a model comes from.

    Attributes:
        config: Its whole config, as plain values.
        record: Its `run.json`.
        checkpoint: Name of the checkpoint whose weights the model has.
        results: The metrics of the validation at that checkpoint, by name.
        epoch: The epoch it was reached in, from 1.
        step: The optimizer steps that were done.
    """

    config: Mapping[str, Any]
    record: Mapping[str, Any]
    checkpoint: str
    results: Mapping[str, Any]
    epoch: int
    step: int


def write_card(
    folder: Path, model: PreTrainedModel, task: Task, origin: Provenance | None = None, lost: Loss | None = None
) -> str:
    """Write the card of an exported model into its folder, and return the hash by which it is known as unedited.

    Args:
        folder: Where the model lies.
        model: The model that was trained, with its adapter if it has one.
        task: The task that it was trained for.
        origin: The run that it comes from; without one, the card says less.
        lost: How a merged model differs from the quantized one that was evaluated.
    """
    card = _Card(folder, model, task, origin, lost)
    text = without_secrets(str(ModelCard(f"---\n{card.metadata().to_yaml()}\n---\n\n{card.text()}")))
    (folder / CARD).write_text(text, encoding="utf-8")
    return _digest(folder / CARD)


def keep_edited_card(before: Path, folder: Path) -> None:
    """Copy the card of the export that is replaced, if somebody has edited it, over the new one.

    A card is unedited as long as it has the hash that its own `lit_hf.json` names.
    """
    if (before / CARD).is_file() and not _is_unedited(before):
        shutil.copyfile(before / CARD, folder / CARD)


def _is_unedited(folder: Path) -> bool:
    try:
        digest = json.loads((folder / MANIFEST).read_text("utf-8")).get("card")
    except (OSError, ValueError, AttributeError):
        return False
    return digest == _digest(folder / CARD)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class _Card:
    """What the card says, part by part."""

    folder: Path
    model: PreTrainedModel
    task: Task
    origin: Provenance | None
    lost: Loss | None

    @cached_property
    def is_adapter(self) -> bool:
        return is_adapter(self.folder)

    @cached_property
    def adapter(self) -> str | None:
        """What kind of adapter was trained."""
        return self.model.active_peft_config.peft_type.value if isinstance(self.model, PeftModel) else None

    @cached_property
    def base(self) -> str | None:
        """The id or folder of the base model."""
        if self.origin and (checkpoint := self.origin.config["model"]["checkpoint"]):
            return checkpoint
        return self.model.active_peft_config.base_model_name_or_path if isinstance(self.model, PeftModel) else None

    @cached_property
    def sources(self) -> list[Described]:
        return described_sources(self.origin.config["data"]["source"]) if self.origin else []

    @cached_property
    def results(self) -> dict[str, float]:
        """The metrics that are single numbers."""
        found = self.origin.results if self.origin else {}
        numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
        return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}

    @property
    def library(self) -> str:
        if self.is_adapter:
            return "peft"
        return "sentence-transformers" if (self.folder / "modules.json").is_file() else "transformers"

    def metadata(self) -> ModelCardData:
        """Return what stands in the card's head, for the Hub."""
        on_hub = self.base if self.base and not is_local(self.base) else None
        results = [self._result(name) for name in self.results if name != "loss"]
        metrics = dict.fromkeys(HUB_METRICS[name] for name in self.results if name in HUB_METRICS)
        return ModelCardData(
            base_model=on_hub,
            base_model_relation=("adapter" if self.is_adapter else "finetune") if on_hub else None,
            datasets=[source.id for source in self.sources if source.id] or None,
            eval_results=results or None,
            library_name=self.library,
            metrics=list(metrics) or None,
            model_name=self.origin.config["name"] if self.origin and results else None,
            pipeline_tag=self.task.pipeline_tag,
            tags=TAGS,
        )

    def _result(self, name: str) -> EvalResult:
        """Return a metric as the Hub has it; that of several sources is of all of them together."""
        only = self.sources[0] if len(self.sources) == 1 else None
        return EvalResult(
            task_type=self.task.pipeline_tag,
            dataset_type="mixture" if only is None else only.id or "local",
            dataset_name=", ".join(dict.fromkeys(source.title for source in self.sources)),
            dataset_config=only and only.config,
            dataset_split="validation",
            dataset_revision=only and only.revision,
            metric_type=HUB_METRICS.get(name, name),
            metric_name=name,
            metric_value=round(self.results[name], 6),
        )

    def text(self) -> str:
        """Return the card's text."""
        name = self.origin.config["name"] if self.origin else type(self._plain).__name__
        parts = [f"# {name}", *self._summary(), "## Use", *self._use()]
        if self.origin:
            parts += ["## Data", "\n".join(line for source in self.sources for line in source.lines())]
            parts += ["## Evaluation", *self._evaluation(self.origin)]
            parts += ["## Training", *self._training(self.origin)]
        versions = self.origin.record.get("versions", {}) if self.origin else {"lit_hf": __version__}
        parts.append("Versions: " + ", ".join(f"{library} {version}" for library, version in versions.items()) + ".")
        return "\n\n".join(parts) + "\n"

    @property
    def _plain(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _summary(self) -> Iterator[str]:
        trained = f"`{self.task.pipeline_tag}` with lit-hf"
        if self.is_adapter:
            yield f"An adapter ({self.adapter}) for {self._named_base()}, which it needs; trained for {trained}."
        elif self.base:
            how = f", by an adapter ({self.adapter}) that is merged into it" if self.adapter else ""
            yield f"{self._named_base()}, fine-tuned for {trained}{how}."
        else:
            scratch = ", from scratch" if self.origin else ""
            yield f"A `{type(self._plain).__name__}`, trained for {trained}{scratch}."
        if labels := self.task.labels:
            more = f" and {len(labels) - 20} more" if len(labels) > 20 else ""
            yield f"Labels: {', '.join(f'`{label}`' for label in labels[:20])}{more}."
        yield "Its limits, its intended uses and its licence are for whoever shares it to add."

    def _named_base(self) -> str:
        if self.base is None:
            return "a base model"
        if is_local(self.base):
            return f"`{public(self.base)}` (a local folder)"
        return f"[{self.base}](https://huggingface.co/{self.base})"

    def _use(self) -> Iterator[str]:
        base = self.base or "..."
        config = self.origin.config if self.origin else {}
        yield loading_snippet(
            self.task.auto_class,
            self.task.pipeline_tag,
            self.library,
            base=public(base) if is_local(base) else base,
            revision=config.get("model", {}).get("revision"),
            added_tokens=bool(config.get("data", {}).get("tokenizer", {}).get("add_tokens")),
            trust_remote_code=bool(config.get("model", {}).get("trust_remote_code")),
        )
        yield "Or with lit-hf, whose task and columns the folder knows: `lit-hf predict <name> --input rows.jsonl`."

    def _evaluation(self, origin: Provenance) -> Iterator[str]:
        if not self.results:
            yield "It was not evaluated."
            return
        best = origin.record.get("best") or {}
        chosen = str(best.get("checkpoint", "")).endswith(origin.checkpoint)
        why = f", the best of the run by `{str(best['metric']).removeprefix('val/')}`" if chosen else ""
        yield f"On the validation split, after epoch {origin.epoch}, step {origin.step}{why}:"
        rows = [
            f"| `{name}` | {round(value, 4):g} | {definition(name, self.task.definitions)} |"
            for name, value in self.results.items()
        ]
        yield "\n".join(["| metric | value | what it is |", "| --- | ---: | --- |", *rows])
        if self.lost:
            yield f"These are of the quantized model with its adapter. This one is {self.lost}."

    def _training(self, origin: Provenance) -> Iterator[str]:
        record, config = origin.record, origin.config
        hardware = record.get("hardware") or {}
        shown = {
            "task": config["task"],
            **{block: {key: config[block].get(key) for key in keys} for block, keys in SETTINGS.items()},
            "seed_everything": config.get("seed_everything"),
        }
        text = yaml.safe_dump(public(_turned_on(shown)), sort_keys=False, allow_unicode=True)
        processes = hardware.get("world_size", 1)
        devices = f"on {processes} device{'s' if processes != 1 else ''}"
        yield f"{origin.step} optimizer steps {devices}, in `{hardware.get('precision')}`, with these settings:"
        yield f"```yaml\n{text}```"


def _turned_on(value: Any) -> Any:
    """Return settings without those that are turned off: null, false, empty, and -1 for no limit."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: _turned_on(item) for key, item in value.items()}
    return {key: item for key, item in kept.items() if item is not None and item is not False and item not in ({}, -1)}
