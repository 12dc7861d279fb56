"""Masked language modelling: continued pre-training of encoders, or training from scratch, on plain text."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling, DataCollatorForTokenClassification

from lit_hf.data.blocks import cut_blocks, resolve_length
from lit_hf.data.cells import Cells
from lit_hf.data.texts import document_problems, is_blank, text_problems
from lit_hf.errors import InputError, Problem, raise_problems
from lit_hf.evaluation.definitions import LANGUAGE_MODELLING
from lit_hf.losses.tokens import FindTargets, TokenOutput, token_loss
from lit_hf.task import Batch, Collator, Examples, Outputs, RowProblem, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class MaskedLM(Task):
    """Predict the masked tokens of a text from those on both sides.

    In training other tokens are masked each time a row is read. In evaluation which ones are masked depends on
    the row alone, so that epochs, batch sizes and numbers of devices can be compared. At least one is, in every row.

    Args:
        text: Column with the text.
        join: Join the texts, a separator between them, and cut them to blocks; otherwise each row is one input, and
            long ones are cut off. Blank rows are left out.
        block_length: Tokens of a block; by default the longest input, and 1,024 at most.
        mlm_probability: Share of the tokens that are to be predicted: of these 80% are masked, 10% replaced by others.
        whole_word: Mask all pieces of a word or none; all that are to be predicted are masked then.
        top_k: Candidates that prediction gives for each mask.
    """

    auto_class = "AutoModelForMaskedLM"
    pipeline_tag = "fill-mask"
    definitions = LANGUAGE_MODELLING

    def __init__(
        self,
        text: str = "text",
        join: bool = True,
        block_length: int | None = None,
        mlm_probability: float = 0.15,
        whole_word: bool = False,
        top_k: int = 5,
    ) -> None:
        self.text = text
        self.join = join
        self.block_length = block_length
        self.mlm_probability = mlm_probability
        self.whole_word = whole_word
        self.top_k = top_k
        self._length = 0  # that of the blocks, once bound
        raise_problems(self._setting_problems())

    def _setting_problems(self) -> Iterator[Problem]:
        if not 0 < self.mlm_probability < 1:
            yield Problem("task.mlm_probability", f"{self.mlm_probability} is not between 0 and 1.")
        if self.top_k < 1:
            yield Problem("task.top_k", f"{self.top_k} is too small.", "Give 1 or more.")
        if self.block_length is not None and not self.join:
            yield Problem("task.block_length", "only joined texts are cut to blocks.", "Set data.max_length instead.")

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Take the tokenizer.

        Raises:
            InputError: If it has no mask token, cannot tell words apart, or the blocks would be longer than its limit.
        """
        super().bind(tokenizer, labels)
        if tokenizer.mask_token_id is None:
            cure = "Choose an encoder's (BERT, RoBERTa, ModernBERT); for a decoder the task is CausalLM."
            raise InputError(Problem("data.tokenizer", "the tokenizer has no mask token.", cure))
        if self.whole_word and not tokenizer.is_fast:
            what = "this tokenizer does not say which tokens make a word."
            raise InputError(Problem("task.whole_word", what, "Leave whole_word out, or choose a fast tokenizer."))
        self._length = resolve_length(tokenizer, self.block_length)

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

    # rows

    def encode(self, examples: Examples) -> Examples:
        """Tokenize the texts, joined and cut to blocks or each by itself; nothing is masked yet.

        Returns:
            `input_ids`, `attention_mask` and `special_tokens_mask`; for whole words `offset_mapping`, which is made
            for the collator: the tokens of a word touch each other, and no others do.
        """
        frame = _Frame.of(self.tokenizer)
        texts = [text for text in examples[self.text] if not is_blank(text)]
        inputs = list(self._joined(texts, frame) if self.join else self._single(texts))
        inputs = [pieces for pieces in inputs if not all(pieces.special)]
        encoded: Examples = {
            "input_ids": [pieces.ids for pieces in inputs],
            "attention_mask": [[1] * len(pieces.ids) for pieces in inputs],
            "special_tokens_mask": [pieces.special for pieces in inputs],
        }
        if self.whole_word:
            encoded["offset_mapping"] = [_touching(pieces.words) for pieces in inputs]
        return encoded

    def _single(self, texts: list[str]) -> Iterator[_Pieces]:
        encoded = self.tokenizer(texts, truncation=True, return_special_tokens_mask=True)
        for index, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
            yield _Pieces(ids, special, encoded.word_ids(index) if self.whole_word else [None] * len(ids))

    def _joined(self, texts: list[str], frame: _Frame) -> Iterator[_Pieces]:
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)
        separator = [] if self.tokenizer.sep_token_id is None else [self.tokenizer.sep_token_id]
        ids: list[int] = []
        special: list[int] = []
        words: list[Any] = []
        for index, row in enumerate(encoded["input_ids"]):
            ids += [*row, *separator]
            special += [0] * len(row) + [1] * len(separator)
            words += encoded.word_ids(index) if self.whole_word else [None] * len(row)
            words += [None] * len(separator)
        ids, special, words = (column[: len(column) - len(separator)] for column in (ids, special, words))
        room = max(1, self._length - len(frame.start) - len(frame.end))
        for parts in zip(*(cut_blocks(column, room) for column in (ids, special, words)), strict=True):
            yield frame.around(_Pieces(*parts))

    def encode_inputs(self, examples: Examples) -> Examples:
        """Tokenize texts that hold mask tokens."""
        encoded = self.tokenizer(examples[self.text], truncation=True)
        return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return what masks rows and pads them; in training at random, in evaluation each row always alike."""
        mask = DataCollatorForLanguageModeling(
            self.tokenizer,
            mlm_probability=self.mlm_probability,
            whole_word_mask=self.whole_word,
            mask_replace_prob=1.0 if self.whole_word else 0.8,
            random_replace_prob=0.0 if self.whole_word else 0.1,
        )
        pad = DataCollatorForTokenClassification(self.tokenizer, pad_to_multiple_of=pad_to_multiple_of)
        return FindTargets(_MaskingCollator(mask, pad, training), shift=False)

    def full_row(self, length: int) -> dict[str, Any]:
        """Return words of one token each, which are masked as any others."""
        row: dict[str, Any] = {"input_ids": [0] * length, "attention_mask": [1] * length}
        words = {"offset_mapping": _touching(range(length))} if self.whole_word else {}
        return {**row, **words, "special_tokens_mask": [0] * length}

    # model

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the loss over the masked tokens."""
        return token_loss(model, batch, shift=False)

    def metrics(self) -> MetricCollection:
        """Return the perplexity of the masked tokens."""
        from torchmetrics import MetricCollection

        from lit_hf.evaluation.language_modelling import Perplexity

        return MetricCollection({"perplexity": Perplexity()})

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add a batch's loss, and how many tokens it is about."""
        metrics.update(loss=outputs.loss.detach(), targets=cast(TokenOutput, outputs).targets)

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return the text with its masks filled in as `filled_text`, and in `fills` the candidates of each mask."""
        logits = model(**batch).logits
        return [self._fill(ids, scores) for ids, scores in zip(batch["input_ids"], logits, strict=True)]

    def _fill(self, ids: Tensor, logits: Tensor) -> dict[str, Any]:
        """Fill in one text.

        Args:
            ids: Shape [tokens].
            logits: Shape [tokens, vocabulary].
        """
        masks = (ids == self.tokenizer.mask_token_id).nonzero().flatten()
        scores, candidates = logits[masks].float().softmax(-1).topk(min(self.top_k, logits.shape[-1]))
        filled = ids.clone()
        filled[masks] = candidates[:, 0]
        fills = [
            [{"token": self.tokenizer.decode([token]), "score": score} for token, score in zip(*of_mask, strict=True)]
            for of_mask in zip(candidates.tolist(), scores.tolist(), strict=True)
        ]
        return {"filled_text": self.tokenizer.decode(filled, skip_special_tokens=True), "fills": fills}


class _Pieces(NamedTuple):
    """The tokens of an input: their ids, whether they are special, and the number of the word each belongs to."""

    ids: list[int]
    special: list[int]
    words: Sequence[int | None]


class _Frame(NamedTuple):
    """The special tokens that a tokenizer puts before and after a text."""

    start: list[int]
    end: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> _Frame:
        encoded = tokenizer("a", return_special_tokens_mask=True)
        ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
        if 0 not in special:
            return cls([], [])
        first, last = special.index(0), len(special) - special[::-1].index(0)
        return cls(ids[:first], ids[last:])

    def around(self, pieces: _Pieces) -> _Pieces:
        """Return the tokens with the special ones around them."""
        before, after = len(self.start), len(self.end)
        return _Pieces(
            [*self.start, *pieces.ids, *self.end],
            [1] * before + pieces.special + [1] * after,
            [*[None] * before, *pieces.words, *[None] * after],
        )


def _touching(words: Sequence[int | None]) -> list[list[int]]:
    """Return made-up offsets of tokens, of which those of the same word touch and no others do."""
    offsets: list[list[int]] = []
    for index, word in enumerate(words):
        continued = index > 0 and word is not None and word == words[index - 1]
        offsets.append([2 * index - 1 if continued else 2 * index, 2 * index + 1])
    return offsets


class _MaskingCollator:
    """Masks each row by itself, and pads the rows. A class, so that workers can be sent it."""

    def __init__(
        self, mask: DataCollatorForLanguageModeling, pad: DataCollatorForTokenClassification, training: bool
    ) -> None:
        self._mask = mask
        self._pad = pad
        self._training = training

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        if "special_tokens_mask" not in rows[0]:
            return dict(self._pad.tokenizer.pad(rows, return_tensors="pt"))
        return dict(self._pad([self._masked(row) for row in rows]))

    def _masked(self, row: dict[str, Any]) -> dict[str, Any]:
        if not self._training:
            seed = zlib.crc32(np.asarray(row["input_ids"], dtype=np.int64).tobytes())
            self._mask.generator = torch.Generator().manual_seed(seed)
        masked = {name: values[0].tolist() for name, values in self._mask([row]).items()}
        if max(masked["labels"]) < 0:  # chance has left nothing to predict, and the mean over nothing is no number
            for place in self._one_word(row):
                masked["labels"][place] = row["input_ids"][place]
                masked["input_ids"][place] = self._mask.tokenizer.mask_token_id
        return masked

    def _one_word(self, row: dict[str, Any]) -> range:
        """Draw a token, or all tokens of a word."""
        places = [place for place, special in enumerate(row["special_tokens_mask"]) if not special]
        first = places[int(torch.randint(len(places), (1,), generator=self._mask.generator))]
        last = first
        if offsets := row.get("offset_mapping"):
            while first > 0 and offsets[first - 1][1] == offsets[first][0]:
                first -= 1
            while last + 1 < len(offsets) and offsets[last][1] == offsets[last + 1][0]:
                last += 1
        return range(first, last + 1)
