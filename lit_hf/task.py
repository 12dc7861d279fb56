"""The Task contract: the one type that every room knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import RenderableType
    from torch import Tensor
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Examples = dict[str, list[Any]]
"""A batch of rows as columns, the way `datasets.map(batched=True)` passes it."""

Batch = dict[str, Any]
"""What a collator returns: tensors of shape [rows, ...], by the name of the model's argument."""

Collator = Callable[[list[dict[str, Any]]], Batch]

IGNORED = -100
"""Label of a position where nothing is learnt: what torch's and transformers' losses leave out."""

TARGETS = "targets"
"""Where a batch of pairs has the tokens of the completions, -100 at all others, of shape [2 * pairs, tokens]."""

TARGET_PLACES = "target_places"
"""Where a batch has rows and columns of its targets, shape [2, targets], if they were found as it was collated."""


class Outputs(Protocol):
    """What a `transformers` model returns, as far as every task's has it.

    Attributes:
        loss: The mean over the batch's targets, a scalar.
        logits: Scores, of shape [rows, ...]; None where `forward` computed its loss without keeping them, and returns
            instead what `update` reads.
    """

    loss: Tensor
    logits: Any


class Sizes(NamedTuple):
    """What a batch holds, counted on the host when it was collated, so that nobody has to ask the device.

    Attributes:
        rows: Rows; 0 in a filler batch, which only keeps the ranks in step and counts nowhere.
        tokens: Tokens that are not padding.
        padded_tokens: Tokens, padding included.
        targets: Targets that the loss is a mean over: labelled tokens, or rows where a row has one label.
        step_targets: Targets of all the batches on this rank that make one optimizer step, this one among them.
        attended: Pairs of tokens that see each other: the squares of the inputs' lengths, summed up.
    """

    rows: int
    tokens: int
    padded_tokens: int
    targets: int
    step_targets: int
    attended: int = 0


class RowProblem(NamedTuple):
    """A fault in the rows of a split, found before the model loads.

    Attributes:
        rows: The indices of all rows that have the fault, in the split.
        column: The column that has it.
        what: What is wrong, without the place.
        cure: How to mend it.
    """

    rows: Sequence[int]
    column: str
    what: str
    cure: str = ""


class Task(ABC):
    """All that differs between one task and another, and nothing else.

    A task is made from the config's `task:` block, is bound once to a tokenizer and the labels, and is then handed to
    the data module and the Lightning module, the same instance to both. It knows no Lightning and no trainer.

    Attributes:
        auto_class: Name of the `transformers` Auto class that builds its model.
        pipeline_tag: The Hub's name of the task, also that of its `transformers.pipeline` where there is one.
        peft_task_type: PEFT's name of the task, by which PEFT finds the head that must train beside an adapter.
        tokenizer: The tokenizer; set by `bind`. It already truncates at the length the config asks for.
        labels: Label names by id; None until they are known and for tasks without labels.
        generation: Arguments of `generate` for a task that generates text, else None.
        reference_columns: Where `forward` compares with the model as it was before training, the columns that
            `reference` adds to the encoded rows for that; they are not needed where an adapter trains, as then that is
            the model with the adapter off.
    """

    auto_class: ClassVar[str]
    pipeline_tag: str
    peft_task_type: ClassVar[str | None] = None
    reference_columns: tuple[str, ...] = ()

    tokenizer: PreTrainedTokenizerBase
    labels: list[str] | None = None
    generation: dict[str, Any] | None = None

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Give the task what is known only once data and tokenizer are loaded.

        Args:
            tokenizer: Truncates at `model_max_length`, so that `tokenizer(text, truncation=True)` is all a task needs.
            labels: Label names by id, from `learn_labels` or from a checkpoint.
        """
        self.tokenizer = tokenizer
        if labels is not None:
            self.labels = labels

    @property
    def is_bound(self) -> bool:
        """Whether tokenizer and labels are known."""
        return "tokenizer" in vars(self)

    def state_dict(self) -> dict[str, Any]:
        """Return what was learnt from the data, as JSON values; kept in every checkpoint."""
        return {"labels": self.labels}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.labels = state["labels"]

    @property
    @abstractmethod
    def input_columns(self) -> list[str]:
        """The columns that must be there always, in prediction too; `translation.en` is inside of another one."""

    @property
    @abstractmethod
    def target_columns(self) -> list[str]:
        """The columns that must be there to train and to evaluate."""

    @property
    def optional_columns(self) -> list[str]:
        """The columns that are read where they are there; a row may have no value in them."""
        return []

    @property
    def text_columns(self) -> list[str]:
        """The columns with text that a tokenizer can be trained on."""
        return self.input_columns

    def learn_labels(self, rows: Dataset) -> list[str] | None:
        """Return the label names by id, from the features or the values of the training rows; None if it has none."""
        return self.labels

    def check(self, rows: Dataset) -> Iterable[RowProblem]:
        """Find faults in the rows of a split: empty text, labels that are missing or unknown, and the like.

        Called after `labels` is known and before anything is tokenized. Look at whole columns, not at single rows.
        """
        return ()

    def check_inputs(self, rows: Dataset) -> Iterable[RowProblem]:
        """Find faults in rows that are to be predicted; the task is not bound yet.

        By default as `check`, which then has to do without the target columns where these are missing.
        """
        return self.check(rows)

    @abstractmethod
    def encode(self, examples: Examples) -> Examples:
        """Turn rows into the model's inputs; called in batches by `datasets.map`, whose result is cached on disk.

        Args:
            examples: Columns of rows. Where the target columns are missing, encode without labels.

        Returns:
            The model's inputs as columns. More or fewer rows than went in are allowed; where they are more, the column
            `row` says of which of the given rows, counted from 0, each is a part.
        """

    def encode_inputs(self, examples: Examples) -> Examples:
        """Turn rows into what `predict` reads; by default as `encode`.

        For a task whose column holds inputs and targets both, so that the columns do not tell prediction from training.
        """
        return self.encode(examples)

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return what makes a batch of encoded rows; by default it pads to the longest row of the batch.

        Args:
            training: Whether the batches are for training; in evaluation nothing may be left to chance.
            pad_to_multiple_of: Pad to a multiple of that many tokens.

        Returns:
            The collator. What it returns beside tensors (lists of text, say) reaches `forward`, `evaluate` and
            `predict` as it is.
        """
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(self.tokenizer, pad_to_multiple_of=pad_to_multiple_of)

    def packing_collator(self) -> Collator | None:
        """Return what lays encoded rows side by side in one, for `data.packing`; None if the task's cannot be.

        See `lit_hf.data.packing` for collators, and for what such a batch has for the model.
        """
        return None

    def full_row(self, length: int) -> dict[str, Any] | None:
        """Return a row as `encode` makes it of texts that have that many tokens each, for a plan without the data.

        Which tokens these are counts nothing. None if nobody knows, so that nothing is planned without the data.
        """
        return None

    def keep_documents(self) -> None:
        """Keep documents whole in `encode`, one a row: called before it, and before `bind`, where they are packed."""
        return None

    def model_kwargs(self) -> dict[str, Any]:
        """Return the task's part of the model's config (`num_labels`, `id2label`, `problem_type`, ...)."""
        return {}

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Run the model on a batch with targets.

        Args:
            model: The plain `transformers` (or PEFT) model. It is handed over whole, so that a preference loss can
                call it twice.
            batch: What the collator made, on the model's device.

        Returns:
            A model output whose `loss` is the mean over the batch's targets. Where it has `logs`, scalar tensors by
            name, these are logged in training beside the loss.
        """
        return model(**batch)

    def reference(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """Return what `forward` needs to know of the model as it was: columns of the encoded rows, of shape [rows].

        Called once for each batch of every split, before training, if it has `reference_columns`; kept on disk.
        """
        return {}

    def metrics(self) -> MetricCollection:
        """Return fresh metrics, named as they are logged after the split's name (`val/accuracy`)."""
        from torchmetrics import MetricCollection

        return MetricCollection({})

    @property
    def definitions(self) -> Mapping[str, str]:
        """What the metrics are, in words, for the model card: by name, `f1_*` for all whose name begins so."""
        return {}

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """The metrics that can tell the best checkpoint, and whether more or less of each is better.

        The first one does, unless the config names another. `loss` can in any case, whether it is named here or not.
        """
        directions = {"loss": False} | {name: metric.higher_is_better for name, metric in self.metrics().items()}
        return {name: "max" if higher else "min" for name, higher in directions.items() if higher is not None}

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add a batch to the metrics.

        Args:
            metrics: What `metrics` returned, on the model's device.
            outputs: What `forward` returned.
            batch: What `forward` was given.
        """
        return None

    def evaluate(self, model: PreTrainedModel, batch: Batch, metrics: MetricCollection) -> Tensor:
        """Evaluate a batch: by default `forward` and `update`; a generating task also generates here.

        Returns:
            The loss, a mean over the batch's targets.
        """
        outputs = self.forward(model, batch)
        self.update(metrics, outputs, batch)
        return outputs.loss

    def report(self, results: Mapping[str, Any]) -> Iterable[RenderableType]:
        """Return what people should see of an evaluation beside its numbers.

        Args:
            results: The metrics by name; what is no single number as nested lists.
        """
        return ()

    @abstractmethod
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Predict a batch without targets.

        Returns:
            One dict a row of the batch, in its order, of what is added to the user's row: JSON values, with scores.
        """

    def merge(self, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the prediction of a row of which `encode` made several inputs, from theirs, in their order."""
        return predictions[0]

    def export_files(self, folder: Path) -> None:
        """Write beside the exported model what other libraries need to load it for this task."""
        return None


def value_at(row: Mapping[str, Any], column: str, default: Any = None) -> Any:
    """Return a row's value in a column, or inside of one: `translation.en` is the key `en` of `translation`."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def named_labels(labels: Sequence[str]) -> Mapping[str, Any]:
    """Return a model config's `num_labels`, `id2label` and `label2id` for labels in the order of their ids."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
