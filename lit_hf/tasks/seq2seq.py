"""Summarization and translation: a text to a text, with an encoder and a decoder."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import DataCollatorForSeq2Seq

from lit_hf.data.cells import Cells
from lit_hf.data.texts import text_problems
from lit_hf.errors import Problem, nearest, raise_problems
from lit_hf.evaluation.decoding import generate, generation_problems, with_length, write_generation_config
from lit_hf.evaluation.definitions import TEXTS
from lit_hf.losses.tokens import FindTargets, smoothing_problems, token_loss
from lit_hf.task import Batch, Collator, Examples, Outputs, RowProblem, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Scores = Literal["rouge", "bleu", "chrf"]

DEFAULT_METRICS: dict[str, list[Scores]] = {"summarization": ["rouge"], "translation": ["bleu", "chrf"]}
BEST = {"rouge": "rougeL", "bleu": "bleu", "chrf": "chrf"}
"""Which score of a metric tells the best checkpoint."""

MODEL_INPUTS = ("input_ids", "attention_mask")

logger = logging.getLogger("lit_hf")


class Seq2Seq(Task):
    """Write a text for a text: its summary, or its translation.

    Args:
        source: Column with the text to read; a dot leads into an object (`translation.en`).
        target: Column with the text to write.
        kind: What is written; it decides the default metrics and what the exported model is called.
        prefix: Text put before each source (`"summarize: "`), as T5 was trained with.
        source_language: Language code of the sources, for tokenizers that have such (mBART, NLLB, M2M100).
        target_language: Language code of the targets.
        max_target_length: Longest target in tokens; longer ones are cut, and no more tokens are generated.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in training; the losses of
            evaluation are without.
        generation: How to generate, as arguments of `transformers.GenerationConfig` (`{num_beams: 4}`).
        metrics: Scores of generated text: `rouge`, `bleu`, `chrf`; by default those of the kind.
        references: Column with several right texts (or one) to score against, in the splits that have it.
        predict_with_generate: Generate and score text in evaluation; without it the loss alone is computed.
    """

    auto_class = "AutoModelForSeq2SeqLM"
    definitions = TEXTS
    peft_task_type = "SEQ_2_SEQ_LM"
    generation: dict[str, Any]

    def __init__(
        self,
        source: str = "source",
        target: str = "target",
        kind: Literal["summarization", "translation"] = "summarization",
        prefix: str = "",
        source_language: str | None = None,
        target_language: str | None = None,
        max_target_length: int = 128,
        label_smoothing: float = 0.0,
        generation: dict[str, Any] | None = None,
        metrics: list[Scores] | None = None,
        references: str | None = None,
        predict_with_generate: bool = True,
    ) -> None:
        self.source = source
        self.target = target
        self.kind = self.pipeline_tag = kind
        self.prefix = prefix
        self.source_language = source_language
        self.target_language = target_language
        self.max_target_length = max_target_length
        self.label_smoothing = label_smoothing
        self.generation = dict(generation or {})
        self.scores = list(dict.fromkeys(DEFAULT_METRICS[kind] if metrics is None else metrics))
        self.references = references
        self.predict_with_generate = predict_with_generate and bool(self.scores)
        raise_problems(self._setting_problems())
        self.generation = with_length(self.generation, max_target_length)

    def _setting_problems(self) -> Iterator[Problem]:
        if self.source == self.target:
            yield Problem("task.target", f"the target is the source: {self.target!r}.", "Name two columns.")
        if self.max_target_length < 2:
            what = f"{self.max_target_length} tokens are too few for a text and its end."
            yield Problem("task.max_target_length", what, "Give 2 or more.")
        if (self.source_language is None) != (self.target_language is None):
            missing = "source_language" if self.source_language is None else "target_language"
            yield Problem(f"task.{missing}", "languages go in pairs.", "Give both, the same for a summary.")
        yield from generation_problems("task.generation", self.generation)
        yield from smoothing_problems(self.label_smoothing)

    @property
    def input_columns(self) -> list[str]:
        """The column of the sources."""
        return [self.source]

    @property
    def target_columns(self) -> list[str]:
        """The column of the targets."""
        return [self.target]

    @property
    def optional_columns(self) -> list[str]:
        """The column of the references, if one is named."""
        return [self.references] if self.references else []

    @property
    def text_columns(self) -> list[str]:
        """Sources and targets: both are written with the same tokens."""
        return [self.source, self.target]

    # tokenizer

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Take the tokenizer, set its languages, and let generation start with the target's.

        Raises:
            InputError: If it has no end token, or not these languages.
        """
        if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
            tokenizer.eos_token = tokenizer.sep_token
        raise_problems(self._tokenizer_problems(tokenizer))
        if self.target_language is not None:
            tokenizer.src_lang = self.source_language
            tokenizer.tgt_lang = self.target_language
            first, last = tokenizer(text_target="")["input_ids"]
            if first != tokenizer.eos_token_id:
                self.generation["forced_bos_token_id"] = first
            else:  # mBART's labels end with the language, and its decoder starts with their last token
                self.generation["decoder_start_token_id"] = last
        super().bind(tokenizer, labels)

    def _tokenizer_problems(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[Problem]:
        if tokenizer.eos_token_id is None:
            what = "the tokenizer has no end token, so the model could never learn to stop."
            yield Problem("data.tokenizer", what, "Use another tokenizer, or train one (data.tokenizer.train).")
        name = type(tokenizer).__name__
        has_languages = hasattr(tokenizer, "src_lang") and hasattr(tokenizer, "tgt_lang")
        languages = {"source_language": self.source_language, "target_language": self.target_language}
        known = _language_codes(tokenizer) if has_languages else []
        for key, code in languages.items():
            if code is not None and not has_languages:
                yield Problem(f"task.{key}", f"{name} knows no languages.", "Leave it out.")
            elif code is None and has_languages:
                yield Problem(f"task.{key}", f"{name} needs to be told the language.", _some_codes(known))
            elif code is not None and code not in known:
                yield Problem(f"task.{key}", f"{name} has no language {code!r}.", nearest(code, known))

    # rows

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find sources and targets that are missing, empty or no text, and rows without references."""
        for column in (self.source, self.target):
            if column in rows.column_names:
                yield from text_problems(Cells(rows, column), column)
        if self.references is None or self.target not in rows.column_names:
            return
        if self.references in rows.column_names:
            yield from _reference_problems(self.references, Cells(rows, self.references))
        elif close := difflib.get_close_matches(self.references, rows.column_names, n=1, cutoff=0.8):
            what = f"there is no such column, but {close[0]!r}: is it misspelled in task.references?"
            yield RowProblem(range(len(rows)), self.references, what)
        else:
            logger.info("no column %r in this split: it is scored against %r", self.references, self.target)

    def encode(self, examples: Examples) -> Examples:
        """Tokenize sources and targets; the targets' text, or the references, goes along to score against."""
        tokenizer = self.tokenizer
        texts = [self.prefix + text for text in examples[self.source]]
        encoded = tokenizer(texts, truncation=True)
        columns: Examples = {name: encoded[name] for name in MODEL_INPUTS}
        if self.target in examples:
            targets = examples[self.target]
            labels = tokenizer(text_target=targets, truncation=True, max_length=self.max_target_length)
            given = examples.get(self.references or "") or [None] * len(targets)
            columns["labels"] = labels["input_ids"]
            columns["references"] = [_as_list(row, text) for row, text in zip(given, targets, strict=True)]
        return columns

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return Hugging Face's collator for sequences to sequences; in evaluation it passes the references on."""
        pad = DataCollatorForSeq2Seq(self.tokenizer, pad_to_multiple_of=pad_to_multiple_of)
        beside = _ReferencesBeside(pad, keep=not training and self.predict_with_generate)
        return FindTargets(beside, shift=False)

    def full_row(self, length: int) -> dict[str, Any]:
        """Return a source and a target that are both full."""
        return {"input_ids": [0] * length, "labels": [0] * length}

    # model

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the loss over the targets' tokens."""
        smoothing = self.label_smoothing if model.training else 0.0
        return token_loss(model, batch, shift=False, label_smoothing=smoothing)

    def metrics(self) -> MetricCollection:
        """Return the scores of generated text; none where evaluation does not generate."""
        from torchmetrics import MetricCollection

        from lit_hf.evaluation.generation import TextScores

        return MetricCollection({"text": TextScores(self.scores)} if self.predict_with_generate else {})

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """All scores, first ROUGE-L, BLEU or chrF, whichever metric is named first; the loss where none is computed."""
        from lit_hf.evaluation.generation import score_names

        if not self.predict_with_generate:
            return {"loss": "min"}
        return dict.fromkeys([BEST[self.scores[0]], *score_names(self.scores)], "max")

    def evaluate(self, model: PreTrainedModel, batch: Batch, metrics: MetricCollection) -> Tensor:
        """Compute the loss, generate, and add the texts to the metrics."""
        references = batch.get("references")
        inputs = {name: value for name, value in batch.items() if name != "references"}
        loss = self.forward(model, inputs).loss
        if references is not None:
            metrics.update(self._generate(model, inputs), references)
        return loss

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return the `generated_text` of each row."""
        return [{"generated_text": text} for text in self._generate(model, batch)]

    def _generate(self, model: PreTrainedModel, batch: Batch) -> list[str]:
        tokens = generate(model, {name: batch[name] for name in MODEL_INPUTS}, self.generation)
        return self.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def export_files(self, folder: Path) -> None:
        """Write how to generate, so that plain `generate` writes the same text."""
        write_generation_config(folder, None, self.generation)


class _ReferencesBeside:
    """Collates without the references, which are text, and passes them on as they are. A class, to be pickled."""

    def __init__(self, pad: Collator, keep: bool) -> None:
        self._pad = pad
        self._keep = keep

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        tokens = [{name: value for name, value in row.items() if name != "references"} for row in rows]
        batch = dict(self._pad(tokens))
        if self._keep and "references" in rows[0]:
            batch["references"] = [row["references"] for row in rows]
        return batch


def _as_list(references: list[str] | str | None, target: str) -> list[str]:
    """Return a row's references: those given, or else its target."""
    return [references] if isinstance(references, str) else list(references or [target])


def _reference_problems(column: str, values: Sequence[Any]) -> Iterator[RowProblem]:
    if wrong := [i for i, value in enumerate(values) if not _are_texts([value] if isinstance(value, str) else value)]:
        what = f"these are no references: {values[wrong[0]]!r:.60}."
        yield RowProblem(wrong, column, what, "Give one or more texts, none of them empty.")


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(text, str) and text.strip() for text in values)


def _language_codes(tokenizer: Any) -> list[str]:
    return list(getattr(tokenizer, "lang_code_to_id", None) or tokenizer.extra_special_tokens)


def _some_codes(codes: list[str]) -> str:
    return f"Give one of its {len(codes)} codes: {', '.join(sorted(codes)[:8])}, ..."
