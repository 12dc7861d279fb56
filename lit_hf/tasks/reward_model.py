"""Reward modelling: a number for a text, higher for the one of a pair that people prefer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch.nn import functional

from lit_hf.data.cells import Cells
from lit_hf.data.chat_templates import render
from lit_hf.data.pairs import PairCollator, PairColumns, PairOutput, join, messages
from lit_hf.evaluation.definitions import PAIRS
from lit_hf.task import Batch, Collator, Examples, Outputs, RowProblem, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger("lit_hf")


class RewardModel(Task):
    """Learn a score from pairs of a preferred and a rejected text.

    The loss is `-log sigmoid(r_chosen - r_rejected - margin)`: the probability of the preference under the model of
    Bradley and Terry (1952), as Ouyang et al. (2022, arXiv:2203.02155) train it; the margin is that of Touvron et al.
    (2023, arXiv:2307.09288). A text that is too long loses its start, not the answer at its end.

    Args:
        chosen: Column with the preferred text, or list of messages, which the tokenizer's chat template renders; in
            prediction, with the one that is to be scored.
        rejected: Column with the other one.
        prompt: Column with what stands before both; null where they hold all.
        margin: Column with a number by which the chosen one should at least be better.
    """

    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag = "text-classification"
    definitions = PAIRS
    peft_task_type = "SEQ_CLS"

    def __init__(
        self,
        chosen: str = "chosen",
        rejected: str = "rejected",
        prompt: str | None = None,
        margin: str | None = None,
    ) -> None:
        self.prompt = prompt
        self.chosen = chosen
        self.rejected = rejected
        self.margin = margin

    @property
    def _columns(self) -> PairColumns:
        return PairColumns(self.prompt, self.chosen, self.rejected)

    @property
    def input_columns(self) -> list[str]:
        """The text to score, and the prompt where there is one."""
        return [self.prompt, self.chosen] if self.prompt else [self.chosen]

    @property
    def target_columns(self) -> list[str]:
        """The rejected text, and the margin where there is one."""
        return [self.rejected, self.margin] if self.margin else [self.rejected]

    @property
    def text_columns(self) -> list[str]:
        """Both texts, and the prompt."""
        return [*self.input_columns, self.rejected]

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Take the tokenizer, which is to cut at the start, also where the exported model is used elsewhere."""
        tokenizer.truncation_side = tokenizer.init_kwargs["truncation_side"] = "left"  # only the latter is saved
        super().bind(tokenizer, labels)

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find what is wrong with the texts, and margins that are no numbers; warn of pairs that a cut makes equal."""
        faults = list(self._columns.check(rows, getattr(self, "tokenizer", None)))
        yield from faults
        if self.is_bound and not faults and self.rejected in rows.column_names:
            self._warn_of_equals_once_cut(rows)
        if self.margin is not None and self.margin in rows.column_names:
            values = Cells(rows, self.margin)
            if wrong := [index for index, value in enumerate(values) if not isinstance(value, int | float)]:
                yield RowProblem(wrong, self.margin, f"{values[wrong[0]]!r:.60} is no number.")

    def _warn_of_equals_once_cut(self, rows: Dataset) -> None:
        limit = self.tokenizer.model_max_length
        # Equal tokens are equal text: at least a byte each, of the up to four of a character. The rest is a template's.
        common = max(limit // 8, 1)
        pairs = enumerate(zip(Cells(rows, self.chosen), Cells(rows, self.rejected), strict=True))
        alike = [
            index
            for index, (one, other) in pairs
            if one != other and _last_text(one)[-common:] == _last_text(other)[-common:]
        ]
        if not alike:
            return
        examples = rows.select(alike)[:]
        chosen, rejected = (self._tokenize(examples, column) for column in (self.chosen, self.rejected))
        if equal := sum(one == other for one, other in zip(chosen, rejected, strict=True)):
            what = "%s pairs of %s are twice the same in the last %s tokens, all that is read: raise data.max_length."
            logger.warning(what, equal, len(rows), limit)

    def encode(self, examples: Examples) -> Examples:
        """Tokenize both texts, or the one that is to be scored; the last tokens of a text are kept."""
        chosen = self._tokenize(examples, self.chosen)
        if self.rejected not in examples:
            return {"input_ids": chosen}
        rejected = self._tokenize(examples, self.rejected)
        rows = [join(*pair) for pair in zip(chosen, rejected, strict=True)]
        encoded = {name: [row[name] for row in rows] for name in ("input_ids", "chosen_length")}
        if self.margin:
            encoded["margin"] = [float(value) for value in examples[self.margin]]
        return encoded

    def _tokenize(self, examples: Examples, column: str) -> list[list[int]]:
        return [self._tokens(*pair) for pair in zip(self._columns.prompts(examples), examples[column], strict=True)]

    def _tokens(self, prompt: Any, value: Any) -> list[int]:
        if isinstance(value, str):
            text, special = (prompt or "") + value, True
        else:  # a template writes the special tokens itself
            text, special = render(self.tokenizer, messages([*(prompt or ()), *value])), False
        return list(self.tokenizer(text, truncation=True, add_special_tokens=special)["input_ids"])

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return what makes one batch of both sides of the pairs."""
        return PairCollator(self.tokenizer, pad_to_multiple_of)

    def full_row(self, length: int) -> dict[str, Any]:
        """Return a pair."""
        return join([0] * length, [0] * length)

    def model_kwargs(self) -> dict[str, Any]:
        """Return a head with one output, which a pipeline shows as it is."""
        return {"num_labels": 1, "problem_type": "regression"}

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the loss, and the rewards of both sides as logits [pairs, 2]."""
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        rewards = scores.float().view(2, -1).T
        margins = rewards[:, 0] - rewards[:, 1] - batch.get("margin", 0.0)
        return PairOutput(-functional.logsigmoid(margins).mean(), rewards)

    def metrics(self) -> MetricCollection:
        """Return the share of pairs ranked right, and the mean rewards and their margin."""
        from torchmetrics import MetricCollection

        from lit_hf.evaluation.pairs import PairRewards

        return MetricCollection({"rewards": PairRewards()})

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """Accuracy and margin."""
        return {"accuracy": "max", "margin": "max"}

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add a batch's rewards."""
        metrics.update(outputs.logits)

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return the `score` of each text."""
        return [{"score": score} for score in model(**batch).logits.float().squeeze(-1).tolist()]


def _last_text(value: Any) -> str:
    return value if isinstance(value, str) else str(messages(value)[-1].get("content"))
