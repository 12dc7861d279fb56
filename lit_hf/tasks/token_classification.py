"""Token classification: a tag for each word of a sentence, and the entities that the tags name."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from transformers import DataCollatorForTokenClassification

from lit_hf.data.cells import Cells
from lit_hf.data.labels import check_order, class_names
from lit_hf.errors import InputError, Problem
from lit_hf.evaluation.definitions import TAGGING
from lit_hf.evaluation.entities import OUTSIDE, entity_table, entity_types, find_entities
from lit_hf.task import IGNORED, Batch, Collator, Examples, Outputs, RowProblem, Task, named_labels

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.console import RenderableType
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TokenClassification(Task):
    """Give each word of a sentence a tag: entities (IOB2, IOBES), parts of speech and the like.

    The words go to the tokenizer as one text, with a blank between them, so that a `pipeline`, which is given text,
    sees the same tokens as training. A word's tag is the one of its first piece. Words that truncation cuts off are
    tagged `O` in prediction, and count nowhere in evaluation.

    Args:
        tokens: Column with the words: a list, or a text whose words stand between white space.
        tags: Column with a tag for each word, names or ids, in the same form.
        labels: Tag names in the order of their ids; taken from the training data where they are left out.
        align: Learn the tag on the `first` piece of a word only, or on `all` (where a B tag goes on as I).
    """

    auto_class = "AutoModelForTokenClassification"
    pipeline_tag = "token-classification"
    definitions = TAGGING
    peft_task_type = "TOKEN_CLS"

    def __init__(
        self,
        tokens: str = "tokens",
        tags: str = "ner_tags",
        labels: list[str] | None = None,
        align: Literal["first", "all"] = "first",
    ) -> None:
        self.tokens = tokens
        self.tags = tags
        self.align = align
        self.labels = labels
        if labels is not None and len(set(labels)) < len(labels):
            raise InputError(
                Problem("task.labels", "a tag stands there twice.", "Give each once, in the order of the ids.")
            )

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Take the tokenizer and the labels.

        Raises:
            InputError: If the tokenizer cannot say which characters a piece stands for.
        """
        super().bind(tokenizer, labels)
        if not tokenizer.is_fast:
            what = f"{type(tokenizer).__name__} cannot say which word a piece belongs to."
            raise InputError(Problem("data.tokenizer", what, "Use a checkpoint with a tokenizer.json."))

    @property
    def input_columns(self) -> list[str]:
        """The column with the words."""
        return [self.tokens]

    @property
    def target_columns(self) -> list[str]:
        """The column with the tags."""
        return [self.tags]

    def learn_labels(self, rows: Dataset) -> list[str]:
        """Return the names of a ClassLabel, or the tags in the rows: `O` first, then by type.

        Raises:
            InputError: If the tags are numbers that nothing names, or `labels` has the names of a ClassLabel in another
                order.
        """
        names = class_names(rows.features, self.tags)
        if self.labels is not None:
            check_order(self.labels, names or [], self.tags)
            return self.labels
        if names:
            return names
        values = {tag for tags in Cells(rows, self.tags) for tag in _items(tags) if tag is not None and tag != ""}
        if any(not isinstance(tag, str) for tag in values):
            what = "the tags are numbers, and nothing says what they mean."
            cure = "Name them in the order of their ids, as in task.labels: [O, B-PER, I-PER]."
            raise InputError(Problem(f"column {self.tags}", what, cure))
        return sorted(values, key=lambda tag: (tag != OUTSIDE, tag.partition("-")[2], tag))

    # rows

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find rows without words, words that are no text, tags that are missing or unknown, and unequal numbers."""
        words = [_items(cell) for cell in Cells(rows, self.tokens)]
        empty = [row for row, items in enumerate(words) if not any(str(item).strip() for item in items)]
        if empty:
            yield RowProblem(empty, self.tokens, "the row has no words.", "Fill them in or remove the row.")
        odd = {row: item for row, items in enumerate(words) for item in items if not isinstance(item, str)}
        if odd:
            first = next(iter(odd.values()))
            yield RowProblem(list(odd), self.tokens, f"this is no word: {first!r:.60}.", "Every word is a text.")
        if self.tags in rows.column_names:
            yield from self._tag_problems(words, [_items(cell) for cell in Cells(rows, self.tags)])

    def _tag_problems(self, words: list[list[Any]], tags: list[list[Any]]) -> Iterator[RowProblem]:
        uneven = [row for row, (left, right) in enumerate(zip(words, tags, strict=True)) if len(left) != len(right)]
        if uneven:
            counts = len(words[uneven[0]]), len(tags[uneven[0]])
            what = f"the row has {counts[0]} words, but {counts[1]} tags."
            yield RowProblem(uneven, self.tags, what, "Every word needs one tag.")
        ids = self._ids()
        unknown = {row: tag for row, items in enumerate(tags) for tag in items if not _is_known(tag, ids)}
        if unknown:
            first = next(iter(unknown.values()))
            names = self.labels or []
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            cure = f"The tags are: {shown} (ids 0 to {len(names) - 1}). Name them all in task.labels."
            yield RowProblem(list(unknown), self.tags, f"{first!r:.60} is not a tag.", cure)

    def _ids(self) -> dict[Any, int]:
        """Return the id of each tag by its name, and by its id as number and as text."""
        names = self.labels or []
        ids: dict[Any, int] = {number: number for number in range(len(names))}
        return ids | {str(number): number for number in ids} | {name: number for number, name in enumerate(names)}

    def encode(self, examples: Examples) -> Examples:
        """Tokenize the words.

        Returns:
            Beside the model's inputs: `word_starts`, of each piece the word that it begins, counted from 0, or -100;
            `labels` where there are tags; the `words` themselves where there are none, for the prediction.
        """
        rows = [_items(cell) for cell in examples[self.tokens]]
        texts = [" ".join(words) for words in rows]
        encoded = dict(self.tokenizer(texts, truncation=True, return_offsets_mapping=True))
        offsets = encoded.pop("offset_mapping")
        pieces = [_words_of_pieces(*row) for row in zip(rows, texts, offsets, strict=True)]
        encoded["word_starts"] = [_starts(row) for row in pieces]
        if self.tags not in examples:
            return {**encoded, "words": rows}
        ids = self._ids()
        tags = [[ids[tag] for tag in _items(cell)] for cell in examples[self.tags]]
        encoded["labels"] = [self._labels(*row) for row in zip(pieces, encoded["word_starts"], tags, strict=True)]
        return encoded

    def _labels(self, pieces: list[int], starts: list[int], tags: list[int]) -> list[int]:
        if self.align == "first":
            return [tags[word] if word != IGNORED else IGNORED for word in starts]
        names = self.labels or []
        inside = {index: names.index(f"I{name[1:]}") for index, name in enumerate(names) if self._goes_on(name)}
        labels = []
        for word, start in zip(pieces, starts, strict=True):
            tag = tags[word] if word != IGNORED else IGNORED
            labels.append(tag if start != IGNORED else inside.get(tag, tag))
        return labels

    def _goes_on(self, name: str) -> bool:
        return (name == "B" or name.startswith("B-")) and f"I{name[1:]}" in (self.labels or [])

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return transformers' own collator, which also pads what it does not know."""
        return _Collator(DataCollatorForTokenClassification(self.tokenizer, pad_to_multiple_of=pad_to_multiple_of))

    def full_row(self, length: int) -> dict[str, Any]:
        """Return words of one token each."""
        return {"input_ids": [0] * length, "labels": [0] * length, "word_starts": list(range(length))}

    # model

    def model_kwargs(self) -> dict[str, Any]:
        """Return the number and names of the tags."""
        return dict(named_labels(self.labels or []))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the model's output; its loss is the mean over labelled pieces."""
        return model(**_inputs(batch))

    def metrics(self) -> MetricCollection:
        """Return the accuracy over words, and precision, recall and F1 of the entities, overall and by type."""
        # prediction needs no metrics, and importing them takes two seconds
        from lit_hf.evaluation.entity_scores import tagging_metrics

        return tagging_metrics(self.labels or [])

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """F1 over entities, the other scores of all and of each type, and the accuracy, alone where tags name none."""
        types = entity_types(self.labels or [])
        suffixes = ["", *(f"_{kind}" for kind in types)] if types else []
        names = [f"{name}{suffix}" for suffix in suffixes for name in ("f1", "precision", "recall")]
        return dict.fromkeys([*names, "accuracy"], "max")

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add the tags of a batch's words, each read from the word's first piece."""
        targets = batch["labels"].masked_fill(batch["word_starts"] == IGNORED, IGNORED)
        metrics.update(outputs.logits.argmax(-1), targets)

    def report(self, results: Mapping[str, Any]) -> Iterator[RenderableType]:
        """Return the scores of each entity type."""
        if types := entity_types(self.labels or []):
            yield entity_table(results["entity_counts"], types)

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return a row's `tags`, one a word, and its `entities`: type, text, score, and words from `start` to `end`.

        `end` is the word after the last, and the score is the mean of the words' probabilities.
        """
        scores, ids = model(**_inputs(batch)).logits.float().softmax(-1).max(-1)
        rows = zip(batch["words"], batch["word_starts"].tolist(), ids.tolist(), scores.tolist(), strict=True)
        return [self._prediction(*row) for row in rows]

    def _prediction(self, words: list[str], starts: list[int], ids: list[int], scores: list[float]) -> dict[str, Any]:
        names, tags, certainty = self.labels or [], [OUTSIDE] * len(words), [0.0] * len(words)
        for word, index, score in zip(starts, ids, scores, strict=True):
            if word != IGNORED:
                tags[word], certainty[word] = names[index], score
        entities = [
            {
                "type": kind,
                "text": " ".join(words[start:end]),
                "start": start,
                "end": end,
                "score": sum(certainty[start:end]) / (end - start),
            }
            for kind, start, end in find_entities(tags)
        ]
        return {"tags": tags, "entities": entities}


class _Collator:
    """Pads `word_starts` as transformers' collator pads labels, and leaves the words as they are."""

    def __init__(self, collate: DataCollatorForTokenClassification) -> None:
        self._collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        own = ("word_starts", "words")
        batch = dict(self._collate([{name: row[name] for name in row if name not in own} for row in rows]))
        starts = [{"input_ids": row["input_ids"], "labels": row["word_starts"]} for row in rows]
        batch["word_starts"] = self._collate(starts)["labels"]
        if "words" in rows[0]:
            batch["words"] = [row["words"] for row in rows]
        return batch


def _inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name not in ("word_starts", "words")}


def _items(cell: Any) -> list[Any]:
    """Return the words, or the tags, of a row: a text is split at white space."""
    if cell is None:
        return []
    if isinstance(cell, str):
        return cell.split()
    return list(cell) if isinstance(cell, list | tuple) else [cell]


def _is_known(tag: Any, ids: Mapping[Any, int]) -> bool:
    return isinstance(tag, str | int | float) and tag in ids


def _words_of_pieces(words: list[str], text: str, offsets: list[tuple[int, int]]) -> list[int]:
    """Return of each piece the word that it belongs to; -100 for special tokens and white space."""
    begins = list(accumulate((len(word) + 1 for word in words), initial=0))
    found = []
    for start, end in offsets:
        blanks = len(text[start:end]) - len(text[start:end].lstrip())
        inside = start + blanks
        found.append(bisect_right(begins, inside) - 1 if inside < end else IGNORED)
    return found


def _starts(pieces: list[int]) -> list[int]:
    """Return of each piece the word that it begins; -100 for the other pieces of a word and what is in no word."""
    seen: set[int] = set()
    starts = []
    for word in pieces:
        starts.append(IGNORED if word in seen else word)
        seen.add(word)
    return starts
