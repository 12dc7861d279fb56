"""Causal language modelling: continued pre-training, or training from scratch, on plain text and documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokenizers.processors import TemplateProcessing
from transformers import DataCollatorForTokenClassification

from lit_hf.data.blocks import byte_sizes, cut_blocks, resolve_length
from lit_hf.data.cells import Cells
from lit_hf.data.packing import PackingCollator
from lit_hf.data.texts import document_problems, is_blank, text_problems
from lit_hf.errors import InputError, Problem, raise_problems
from lit_hf.evaluation.decoding import (
    GREEDY,
    continuations,
    fit_prompt,
    generation_problems,
    room,
    with_length,
    write_generation_config,
)
from lit_hf.evaluation.definitions import LANGUAGE_MODELLING
from lit_hf.losses.tokens import FindTargets, TokenOutput, smoothing_problems, token_loss
from lit_hf.task import IGNORED, Batch, Collator, Examples, Outputs, RowProblem, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_NEW_TOKENS = 64


class CausalLM(Task):
    """Predict the next token of plain text.

    Documents are tokenized, each is ended with the tokenizer's end token, and they are joined and cut to blocks of one
    length; what is left over at the end of a thousand rows makes a shorter block. Blank rows are left out. The first
    token of a block is not predicted, all others are, the end tokens too. Within a block attention crosses from one
    document to the next: only the end token tells them apart. With `data.packing` documents stay whole, and are cut to
    blocks only where they are longer; they are packed then, and attention does not cross.

    Args:
        text: Column with the text; each row is a document.
        block_length: Tokens of a block; by default the longest input, and 1,024 at most.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in training; the losses of
            evaluation are without.
        generation: Arguments of `generate` for prediction, which continues a text; by default 64 tokens, greedily.
    """

    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    definitions = LANGUAGE_MODELLING
    peft_task_type = "CAUSAL_LM"

    def __init__(
        self,
        text: str = "text",
        block_length: int | None = None,
        label_smoothing: float = 0.0,
        generation: dict[str, Any] | None = None,
    ) -> None:
        self.text = text
        self.block_length = block_length
        self.label_smoothing = label_smoothing
        self._length = 0  # of the blocks, once bound
        self._joined = True  # or each document by itself
        self.generation: dict[str, Any] = {**GREEDY, **(generation or {})}
        problems = generation_problems("task.generation", self.generation)
        raise_problems([*problems, *smoothing_problems(label_smoothing)])

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Take the tokenizer, and see to it that it has an end token but does not end prompts with it.

        Raises:
            InputError: If it has none, or blocks or continuations would be longer than its limit.
        """
        super().bind(tokenizer, labels)
        _open_the_end(tokenizer)
        self._length = resolve_length(tokenizer, self.block_length)
        limit = int(tokenizer.model_max_length)
        self.generation = with_length(self.generation, MAX_NEW_TOKENS, limit)
        if (new_tokens := self.generation.get("max_new_tokens", 0)) >= limit:
            what = f"{new_tokens:,} new tokens leave no room for a prompt: the limit is {limit:,} together."
            raise InputError(Problem("task.generation.max_new_tokens", what, f"Set it to {limit // 2} or so."))

    def keep_documents(self) -> None:
        """Make blocks of single documents."""
        self._joined = False

    @property
    def input_columns(self) -> list[str]:
        """The text column."""
        return [self.text]

    @property
    def target_columns(self) -> list[str]:
        """None beside the text, which is its own target."""
        return []

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find text that is missing, and whether all of it is blank."""
        return document_problems(Cells(rows, self.text), self.text)

    def check_inputs(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find text that is missing or blank."""
        return text_problems(Cells(rows, self.text), self.text)

    def encode(self, examples: Examples) -> Examples:
        """Join the documents, unless they are kept apart, and cut them to blocks.

        Returns:
            `input_ids`, `attention_mask` and `labels` of a block, and `text_bytes`: how many UTF-8 bytes of text its
            labels are.
        """
        documents = self._documents([text for text in examples[self.text] if not is_blank(text)])
        blocks: list[list[int]] = []
        sizes: list[list[int]] = []
        for ids, widths in self._join(documents) if self._joined else documents:
            # a lone end token is left out: before it nothing could be read
            blocks += (block for block in cut_blocks(ids, self._length) if len(block) > 1)
            sizes += (block for block in cut_blocks(widths, self._length) if len(block) > 1)
        return {
            "input_ids": blocks,
            "attention_mask": [[1] * len(block) for block in blocks],
            "labels": [[IGNORED, *block[1:]] for block in blocks],
            "text_bytes": [sum(block[1:]) for block in sizes],
        }

    def _join(self, documents: Iterable[tuple[list[int], list[int]]]) -> Iterator[tuple[list[int], list[int]]]:
        tokens: list[int] = []
        sizes: list[int] = []
        for ids, widths in documents:
            tokens += ids
            sizes += widths
        yield tokens, sizes

    def _documents(self, texts: list[str]) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the tokens of each document, its end included, and how many bytes of its text each one is."""
        start, end = self._start(), self.tokenizer.eos_token_id
        fast = self.tokenizer.is_fast
        encoded = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        for index, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            # A tokenizer without offsets has all bytes of a document counted at its end.
            widths = (
                byte_sizes(text, encoded["offset_mapping"][index])
                if fast
                else [0] * len(ids) + [len(text.encode(errors="surrogatepass"))]
            )
            yield [*start, *ids, end], [0] * len(start) + widths

    def _start(self) -> list[int]:
        """Return the token that the tokenizer puts before every text, if it does so."""
        framed = self.tokenizer("")["input_ids"]
        return framed[:1] if framed and framed[0] == self.tokenizer.bos_token_id else []

    def encode_inputs(self, examples: Examples) -> Examples:
        """Tokenize prompts; of long ones the end is kept, so that what is generated still fits in."""
        encoded = self.tokenizer(examples[self.text], add_special_tokens=False, verbose=False)
        start = self._start()
        limit, new_tokens = room(self.generation, int(self.tokenizer.model_max_length))
        ids = [[*start, *fit_prompt(row, limit - len(start), new_tokens)] for row in encoded["input_ids"]]
        return {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return what pads blocks on the right, their labels with -100, and prompts on the left."""
        return FindTargets(_PaddingCollator(self.tokenizer, pad_to_multiple_of), shift=True)

    def packing_collator(self) -> Collator:
        """Return what lays documents side by side."""
        return FindTargets(PackingCollator(), shift=True)

    def full_row(self, length: int) -> dict[str, Any]:
        """Return a block, all of it trained."""
        return {"input_ids": [0] * length, "labels": [0] * length}

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the loss over the predicted tokens."""
        inputs = {name: value for name, value in batch.items() if name != "text_bytes"}
        smoothing = self.label_smoothing if model.training else 0.0
        return token_loss(model, inputs, shift=True, label_smoothing=smoothing)

    def metrics(self) -> MetricCollection:
        """Return perplexity and bits per byte."""
        from torchmetrics import MetricCollection

        from lit_hf.evaluation.language_modelling import BitsPerByte, Perplexity

        return MetricCollection({"perplexity": Perplexity(), "bits_per_byte": BitsPerByte()})

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add a batch's loss, and how many tokens and bytes it is about."""
        targets = cast(TokenOutput, outputs).targets
        metrics.update(loss=outputs.loss.detach(), targets=targets, text_bytes=batch["text_bytes"].sum())

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return the continuation of each text as `generated_text`, without the text itself."""
        texts = continuations(model, self.tokenizer, batch, self.generation)
        return [{"generated_text": text} for text in texts]

    def export_files(self, folder: Path) -> None:
        """Write how text is continued, so that plain `generate` does it alike."""
        write_generation_config(folder, self.tokenizer, self.generation)


class _PaddingCollator:
    """Pads blocks on the right and prompts on the left. A class, so that workers can be sent it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None) -> None:
        self._tokenizer = tokenizer
        self._pad_to_multiple_of = pad_to_multiple_of
        self._blocks = DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=pad_to_multiple_of)

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        if "labels" in rows[0]:
            return self._blocks(rows)
        padded = self._tokenizer.pad(
            rows, padding_side="left", pad_to_multiple_of=self._pad_to_multiple_of, return_tensors="pt"
        )
        return dict(padded)


def _open_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make sure that a tokenizer has an end token, and does not put it after every text: prompts are to be continued.

    Raises:
        InputError: If it has neither an end token nor a separator, which then ends documents.
    """
    if tokenizer.eos_token_id is None:
        if tokenizer.sep_token is None:
            cure = "Choose the tokenizer of a decoder (GPT-2, Llama, Qwen), or train one (data.tokenizer.train)."
            raise InputError(Problem("data.tokenizer", "the tokenizer has no end token, which ends a document.", cure))
        tokenizer.eos_token = tokenizer.sep_token
    framed = tokenizer("")["input_ids"]
    if tokenizer.is_fast and framed[-1:] == [tokenizer.eos_token_id]:
        start = tokenizer.bos_token if framed[0] == tokenizer.bos_token_id != framed[-1] else None
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[start, "$A"] if start else ["$A"],
            pair=[start, "$A", "$B:1"] if start else ["$A", "$B:1"],
            special_tokens=[(start, tokenizer.bos_token_id)] if start else [],
        )
