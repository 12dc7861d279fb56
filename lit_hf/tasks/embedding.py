"""Sentence embeddings by contrastive learning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from lit_hf.data.cells import Cells
from lit_hf.data.texts import text_problems
from lit_hf.errors import Problem, raise_problems
from lit_hf.evaluation.definitions import RETRIEVAL
from lit_hf.task import Batch, Collator, Examples, Outputs, RowProblem, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Embedding(Task):
    """Learn embeddings of texts from pairs that belong together: a question and its answer, a title and its text.

    The loss is the multiple negatives ranking loss of Henderson et al., "Efficient Natural Language Response
    Suggestion for Smart Reply" (2017), which is InfoNCE (van den Oord et al., 2018) in one direction: each anchor has
    to pick its own positive out of all positives, and all negatives, of its batch. More rows in a batch make it harder.
    Across devices the negatives are not shared: under DDP each rank has those of its own batch, and accumulated
    batches do not add up either. The loss of an evaluation depends on the size of its batches in the same way; the
    retrieval metrics do not.

    Args:
        anchor: Column with the text that is looked for; prediction reads it alone.
        positive: Column with the text that belongs to it.
        negative: Column with a text that does not belong to it though it is like it, if there is one.
        pooling: The embedding is the mean over the tokens, or that of the first token.
        normalize: Scale embeddings to length 1, so that similarity is the cosine and not the dot product.
        temperature: What similarities are divided by in the loss; 0.05 is a scale of 20.
    """

    auto_class = "AutoModel"
    pipeline_tag = "sentence-similarity"
    definitions = RETRIEVAL
    peft_task_type = "FEATURE_EXTRACTION"

    def __init__(
        self,
        anchor: str = "anchor",
        positive: str = "positive",
        negative: str | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        temperature: float = 0.05,
    ) -> None:
        self.anchor = anchor
        self.positive = positive
        self.negative = negative
        self.pooling = pooling
        self.normalize = normalize
        self.temperature = temperature
        raise_problems(self._setting_problems())

    def _setting_problems(self) -> Iterator[Problem]:
        if not self.temperature > 0:
            yield Problem("task.temperature", f"{self.temperature} is not above 0.", "0.05 is usual.")

    @property
    def input_columns(self) -> list[str]:
        """The anchor."""
        return [self.anchor]

    @property
    def target_columns(self) -> list[str]:
        """The positive, and the negative if there is one."""
        return [self.positive] if self.negative is None else [self.positive, self.negative]

    @property
    def text_columns(self) -> list[str]:
        """All columns."""
        return self.input_columns + self.target_columns

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find text that is missing or blank."""
        for column in self.text_columns:
            if column in rows.column_names:
                yield from text_problems(Cells(rows, column), column)

    def encode(self, examples: Examples) -> Examples:
        """Tokenize the texts: the anchor as `input_ids`, the others as `positive_input_ids`, `negative_input_ids`."""
        encoded: Examples = {}
        for prefix, column in zip(_PREFIXES, self.text_columns, strict=False):
            if column in examples:
                inputs = self.tokenizer(examples[column], truncation=True)
                encoded |= {prefix + name: values for name, values in inputs.items()}
        return encoded

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return what makes one tall batch of the texts: all anchors, then all positives, then all negatives."""
        return _TallCollator(self.tokenizer, pad_to_multiple_of)

    def full_row(self, length: int) -> dict[str, Any]:
        """Return a text for each column."""
        return {f"{prefix}input_ids": [0] * length for prefix, _ in zip(_PREFIXES, self.text_columns, strict=False)}

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the loss, the similarities as `logits` [rows, candidates], and the embeddings."""
        output = model(**batch)
        anchors, *candidates = self._embeddings(output, batch).chunk(len(self.text_columns))
        logits = anchors @ torch.cat(candidates).T / self.temperature
        loss = functional.cross_entropy(logits, torch.arange(len(logits), device=logits.device))
        if (pooled := getattr(output, "pooler_output", None)) is not None:
            # The pooler has no part in the loss, and DDP waits for the gradients of all weights.
            loss = loss + 0.0 * pooled.float().sum()
        return _ContrastiveOutput(loss, logits, anchors, candidates[0])

    def _embeddings(self, output: Any, batch: Batch) -> Tensor:
        """Return embeddings in float32, shape [texts, dimensions]."""
        states = output.last_hidden_state.float()
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def metrics(self) -> MetricCollection:
        """Return recall at 1, 5 and 10 and the mean reciprocal rank, all positives of the split being candidates."""
        from torchmetrics import MetricCollection

        from lit_hf.evaluation.retrieval import Retrieval

        return MetricCollection({"retrieval": Retrieval()})

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """The mean reciprocal rank, and the other single numbers of the retrieval."""
        return {"mrr": "max", "recall@1": "max", "recall@5": "max", "recall@10": "max"}

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add the embeddings of a batch."""
        assert isinstance(outputs, _ContrastiveOutput)
        metrics.update(outputs.anchors, outputs.positives)

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return the `embedding` of each anchor, a list of numbers."""
        return [{"embedding": row} for row in self._embeddings(model(**batch), batch).tolist()]

    def export_files(self, folder: Path) -> None:
        """Write the files by which `SentenceTransformer(folder)` knows the pooling and the longest input."""
        from transformers import AutoConfig

        plain = folder / "model_config"
        config = AutoConfig.from_pretrained(plain if plain.is_dir() else folder, trust_remote_code=False)
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * self.normalize
        module_list = [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(modules)
        ]
        pooling = {
            "word_embedding_dimension": config.get_text_config().hidden_size,
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        }
        _write_json(folder / "modules.json", module_list)
        _write_json(folder / "1_Pooling" / "config.json", pooling)
        length = {"max_seq_length": self.tokenizer.model_max_length, "do_lower_case": False}
        _write_json(folder / "sentence_bert_config.json", length)
        similarity = {"similarity_fn_name": "cosine" if self.normalize else "dot"}
        _write_json(folder / "config_sentence_transformers.json", similarity)


_PREFIXES = ("", "positive_", "negative_")


@dataclass
class _ContrastiveOutput:
    """What `forward` returns; the embeddings are [rows, dimensions]."""

    loss: Tensor
    logits: Tensor
    anchors: Tensor
    positives: Tensor


class _TallCollator:
    """Pads the texts of all columns together, column by column. A class, so that workers can be sent it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None) -> None:
        from transformers import DataCollatorWithPadding

        self._pad = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=pad_to_multiple_of)

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        names = [name for name in rows[0] if not name.startswith(_PREFIXES[1:])]
        present = [prefix for prefix in _PREFIXES if f"{prefix}input_ids" in rows[0]]
        return dict(self._pad([{name: row[prefix + name] for name in names} for prefix in present for row in rows]))


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
