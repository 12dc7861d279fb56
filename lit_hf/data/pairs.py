"""Pairs of a preferred and a rejected text: how they are read, what is wrong with them, and how they are batched."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from lit_hf.data.cells import Cells
from lit_hf.data.chat_templates import TemplateError, render
from lit_hf.data.conversations import Columns, ConversationError, Message, conversation
from lit_hf.task import Batch, Examples, RowProblem

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("lit_hf")


class Text(NamedTuple):
    """A prompt and what follows it.

    Attributes:
        prompt: The text before the completion.
        completion: The rest.
        rendered: Whether the tokenizer's chat template made both, special tokens included.
    """

    prompt: str
    completion: str
    rendered: bool


@dataclass
class PairOutput:
    """What a task of pairs makes of a batch.

    Attributes:
        loss: The mean over pairs.
        logits: The rewards of the chosen and of the rejected texts, of shape [pairs, 2].
    """

    loss: Tensor
    logits: Tensor

    @property
    def logs(self) -> dict[str, Tensor]:
        """The batch's mean rewards, and the share of pairs whose chosen text has the higher one."""
        chosen, rejected = self.logits.detach().float().unbind(-1)
        return {
            "accuracy": (chosen > rejected).float().mean(),
            "margin": (chosen - rejected).mean(),
            "reward_chosen": chosen.mean(),
            "reward_rejected": rejected.mean(),
        }


@dataclass
class PairColumns:
    """The columns of pairs.

    Attributes:
        prompt: Column with the prompt, a text or messages; None where the others hold all.
        chosen: Column with the preferred text, or messages.
        rejected: Column with the other one.
    """

    prompt: str | None
    chosen: str
    rejected: str

    def prompts(self, examples: Examples) -> list[Any]:
        """Return the prompt of each row; None where there is no column for it."""
        rows = len(next(iter(examples.values())))
        return list(examples[self.prompt]) if self.prompt else [None] * rows

    def check(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[RowProblem]:
        """Find texts that are missing, empty or no text, and conversations that cannot be rendered.

        Args:
            rows: Rows of a split; without the column `rejected` they are rows to predict.
            tokenizer: Renders the conversations; without one that is not tried.
        """
        found: dict[tuple[str, str, str], dict[int, None]] = defaultdict(dict)
        columns = [name for name in (self.chosen, self.rejected) if name in rows.column_names]
        prompts: Sequence[Any] = Cells(rows, self.prompt) if self.prompt else [None] * len(rows)
        if self.prompt and not columns:
            for index, value in enumerate(prompts):
                if fault := _value_fault(value):
                    found[self.prompt, *fault][index] = None
        for column in columns:
            for index, (prompt, value) in enumerate(zip(prompts, Cells(rows, column), strict=True)):
                name, fault = self._fault(column, prompt, value, tokenizer, len(columns) > 1)
                if fault:
                    found[name, *fault][index] = None
        if len(columns) > 1:
            sides = Cells(rows, self.chosen), Cells(rows, self.rejected)
            _warn_of_equals(*sides)
            for index in _other_prompts(*sides):
                what = "the conversations differ before their last turn, and only the last one can be compared."
                found[self.rejected, what, "Give both the same turns before it."][index] = None
        for (column, what, cure), indices in found.items():
            yield RowProblem(list(indices), column, what, cure)

    def _fault(
        self, column: str, prompt: Any, value: Any, tokenizer: PreTrainedTokenizerBase | None, answered: bool
    ) -> tuple[str, tuple[str, str] | None]:
        """Return the column that a fault is in, and the fault with its cure."""
        if self.prompt and (fault := _value_fault(prompt)):
            return self.prompt, fault
        if fault := _value_fault(value):
            return column, fault
        if isinstance(prompt, str) and isinstance(value, list):
            cure = "If the messages start with the prompt: task.prompt: null."
            return column, ("the prompt is a text, but this is a list of messages.", cure)
        if isinstance(prompt, list) and isinstance(value, str):
            return column, ("the prompt is a list of messages, but this is a text.", "Give both in one way.")
        if isinstance(value, list) and answered and (role := messages(value)[-1]["role"]) != "assistant":
            return column, (f"the last turn is of {role!r}, not of 'assistant'.", "End with the answer.")
        return column, _render_fault(prompt, value, tokenizer) if tokenizer and isinstance(value, list) else None


def _value_fault(value: Any) -> tuple[str, str] | None:
    if value is None or value in ("", []):
        return "the text is missing or empty.", "Fill it in or remove the row."
    if isinstance(value, str):
        return None
    try:
        messages(value)
    except ConversationError as error:
        return error.what, error.cure
    return None


def _render_fault(prompt: Any, value: list[Any], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    if not tokenizer.chat_template:
        return "these are messages, and the tokenizer has no chat template.", "Give data.tokenizer.chat_template."
    try:
        split(prompt, value, tokenizer)
    except TemplateError as error:
        return f"{error}.", "Mend the messages or the template."
    return None


def _warn_of_equals(chosen: Sequence[Any], rejected: Sequence[Any]) -> None:
    if equal := sum(one == other for one, other in zip(chosen, rejected, strict=True)):
        logger.warning("%s pairs of %s are twice the same text: nothing can be learnt from them.", equal, len(chosen))


def _other_prompts(chosen: Sequence[Any], rejected: Sequence[Any]) -> Iterator[int]:
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=True)):
        if isinstance(one, list) and isinstance(other, list) and one[:-1] != other[:-1]:
            yield index


def messages(value: list[Any]) -> list[Message]:
    """Return messages of any known shape as those that a chat template reads.

    Raises:
        ConversationError: If they are none.
    """
    return conversation({"messages": value}, Columns(messages="messages"))


def split(prompt: Any, value: Any, tokenizer: PreTrainedTokenizerBase) -> Text:
    """Return prompt and completion as texts; of a conversation the last turn is the completion.

    Args:
        prompt: A text, messages, or None.
        value: What follows: a text or messages.
        tokenizer: Its chat template renders messages.

    Raises:
        TemplateError: If the template does not render them, or not so that the conversation starts with its prompt.
    """
    if isinstance(value, str):
        return Text(prompt or "", value, False)
    turns = messages([*(prompt or ()), *value])
    before = render(tokenizer, turns[:-1], add_generation_prompt=True) if len(turns) > 1 else ""
    whole = render(tokenizer, turns)
    if not whole.startswith(before):
        raise TemplateError("the template renders the prompt otherwise once its answer follows")
    return Text(before, whole[len(before) :], True)


def join(chosen: list[int], rejected: list[int]) -> dict[str, Any]:
    """Return two sequences of tokens as one row: its length is that of both, for grouping by length."""
    return {"input_ids": [*chosen, *rejected], "chosen_length": len(chosen)}


class PairCollator:
    """Pads rows of pairs to one batch, so that one forward pass sees the chosen sequences and then the rejected ones.

    Rows that are no pairs, in prediction, are padded as they are. All other columns become tensors of shape [pairs].

    Args:
        tokenizer: Pads.
        pad_to_multiple_of: Pad to a multiple of that many tokens.
        single_side: Where rows that are no pairs are padded; generation needs `left`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pad_to_multiple_of: int | None = None,
        single_side: Literal["left", "right"] = "right",
    ) -> None:
        self._tokenizer = tokenizer
        self._pad_to_multiple_of = pad_to_multiple_of
        self._single_side = single_side

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Return `input_ids` and `attention_mask` of shape [2 * pairs, tokens], and the other columns."""
        sequences, side = [row["input_ids"] for row in rows], self._single_side
        if "chosen_length" in rows[0]:
            ends = [row["chosen_length"] for row in rows]
            chosen = [ids[:end] for ids, end in zip(sequences, ends, strict=True)]
            rejected = [ids[end:] for ids, end in zip(sequences, ends, strict=True)]
            sequences, side = chosen + rejected, "right"  # not all models count positions from the first real token
        batch = pad_without_fast_tokenizer_warning(
            self._tokenizer,
            {"input_ids": sequences},
            padding_side=side,
            pad_to_multiple_of=self._pad_to_multiple_of,
            return_attention_mask=True,
            return_tensors="pt",
        )
        others = [name for name in rows[0] if name not in ("input_ids", "chosen_length")]
        return {**batch, **{name: torch.tensor([row[name] for row in rows]) for name in others}}
