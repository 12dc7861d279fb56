"""Preference optimization: make the preferred completion of a prompt more likely than the rejected one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch.nn import functional

from lit_hf.data.cells import Cells
from lit_hf.data.chat_templates import render, turn_end
from lit_hf.data.packing import BOUNDS, PACKED_INPUTS, PairPackingCollator, document_sums
from lit_hf.data.pairs import PairCollator, PairColumns, PairOutput, Text, join, messages, split
from lit_hf.errors import LitHFError, Problem, raise_problems
from lit_hf.evaluation.decoding import (
    GREEDY,
    continuations,
    fit_prompt,
    generation_problems,
    room,
    with_length,
    write_generation_config,
)
from lit_hf.evaluation.definitions import PAIRS
from lit_hf.losses.tokens import FindTargets, token_log_probs
from lit_hf.task import IGNORED, TARGET_PLACES, TARGETS, Batch, Collator, Examples, Outputs, RowProblem, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from torch import Tensor
    from torchmetrics import MetricCollection
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BETA = {"dpo": 0.1, "ipo": 0.1, "orpo": 0.1, "simpo": 2.0}
"""The losses, and the beta that each one's paper starts from."""

WITH_REFERENCE = ("dpo", "ipo")
PER_TOKEN = ("ipo", "orpo", "simpo")
"""Losses of the mean log-probability of a token, not of the sum over the completion."""

MODEL_INPUTS = ("input_ids", "attention_mask", *PACKED_INPUTS)
REFERENCE = ("reference_chosen", "reference_rejected")

MAX_NEW_TOKENS = 128


class LogProbs(NamedTuple):
    """Log-probabilities of the completions, one a pair, of shape [pairs]."""

    chosen: Tensor
    rejected: Tensor


def dpo_loss(rewards: LogProbs, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimization (Rafailov et al., 2023, arXiv:2305.18290).

    `-log sigmoid(r_chosen - r_rejected)` with `r = beta * (log p(y|x) - log p_reference(y|x))`. Smoothing by e is
    conservative DPO, for labels that are wrong with probability e: `(1 - e) * loss + e * loss of the swapped pair`.

    Returns:
        The loss of each pair.
    """
    margins = rewards.chosen - rewards.rejected
    right, swapped = -functional.logsigmoid(margins), -functional.logsigmoid(-margins)
    return (1 - label_smoothing) * right + label_smoothing * swapped


def ipo_loss(rewards: LogProbs, beta: float) -> Tensor:
    """Identity preference optimization (Azar et al., 2023, arXiv:2310.12036).

    `((r_chosen - r_rejected) / beta - 1 / (2 * beta)) ** 2` with the rewards of DPO, of mean log-probabilities of a
    token as its authors advise.

    Returns:
        The loss of each pair.
    """
    return ((rewards.chosen - rewards.rejected) / beta - 1 / (2 * beta)) ** 2


def orpo_loss(means: LogProbs, beta: float) -> Tensor:
    """Odds ratio preference optimization (Hong et al., 2024, arXiv:2403.07691).

    `-m_chosen - beta * log sigmoid(log odds_chosen - log odds_rejected)` with `odds = p / (1 - p)`, `log p = m`: the
    mean log-probability of a token. The first term is the loss of supervised fine-tuning on the chosen completion.

    Returns:
        The loss of each pair.
    """
    odds = [mean - torch.log1p(-torch.exp(mean.clamp(max=-1e-6))) for mean in means]
    return -means.chosen - beta * functional.logsigmoid(odds[0] - odds[1])


def simpo_loss(rewards: LogProbs, gamma: float) -> Tensor:
    """Simple preference optimization (Meng et al., 2024, arXiv:2405.14734).

    `-log sigmoid(r_chosen - r_rejected - gamma)` with `r = beta *` the mean log-probability of a token.

    Returns:
        The loss of each pair.
    """
    return -functional.logsigmoid(rewards.chosen - rewards.rejected - gamma)


class Preference(Task):
    """Tune a decoder on pairs of a preferred and a rejected completion.

    DPO and IPO compare with the model as it was before training: that with the adapter off where an adapter trains,
    else its log-probabilities of all rows are computed once, before training. KTO is none of the losses: it learns from
    single completions, and its estimate of the divergence couples the rows of a batch.

    Args:
        prompt: Column with the prompt: a text, or messages; null where `chosen` and `rejected` are whole conversations.
        chosen: Column with the preferred completion: a text, or messages, which the tokenizer's chat template renders
            and of which the last turn is compared.
        rejected: Column with the other one.
        loss: `dpo`, `ipo`, `orpo` or `simpo`; the formulas are in the functions of these names.
        beta: Strength of the preference, against staying near the reference (DPO, IPO), the supervised loss (ORPO), or
            as the scale of the rewards (SimPO); 0.1, and 2 for SimPO, where it is left out.
        label_smoothing: For DPO: the probability that a pair is labelled the wrong way round, below 0.5.
        gamma: For SimPO: the margin that the rewards should have.
        generation: Arguments of `generate` in prediction; by default 128 tokens, or half of the limit, greedily.
    """

    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    definitions = PAIRS
    peft_task_type = "CAUSAL_LM"

    def __init__(
        self,
        prompt: str | None = "prompt",
        chosen: str = "chosen",
        rejected: str = "rejected",
        loss: Literal["dpo", "ipo", "orpo", "simpo"] = "dpo",
        beta: float | None = None,
        label_smoothing: float = 0.0,
        gamma: float = 1.0,
        generation: dict[str, Any] | None = None,
    ) -> None:
        self.prompt = prompt
        self.chosen = chosen
        self.rejected = rejected
        self.loss = loss
        self.beta = BETA[loss] if beta is None else beta
        self.label_smoothing = label_smoothing
        self.gamma = gamma
        self.generation: dict[str, Any] = {**GREEDY, **(generation or {})}
        self.reference_columns = REFERENCE if loss in WITH_REFERENCE else ()
        raise_problems(self._setting_problems())

    def _setting_problems(self) -> Iterator[Problem]:
        yield from generation_problems("task.generation", self.generation)
        if self.beta <= 0:
            yield Problem("task.beta", f"{self.beta} is not above 0.")
        if not 0 <= self.label_smoothing < 0.5:
            yield Problem("task.label_smoothing", f"{self.label_smoothing} is not in [0, 0.5).")
        if self.label_smoothing and self.loss != "dpo":
            yield Problem("task.label_smoothing", f"{self.loss} has none, only dpo.", "Remove it.")

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Take the tokenizer; its limit bounds the answers."""
        super().bind(tokenizer, labels)
        self.generation = with_length(self.generation, MAX_NEW_TOKENS, int(tokenizer.model_max_length))

    @property
    def _columns(self) -> PairColumns:
        return PairColumns(self.prompt, self.chosen, self.rejected)

    @property
    def input_columns(self) -> list[str]:
        """The prompt; where there is no column for it, the conversation whose last answer is written anew."""
        return [self.prompt or self.chosen]

    @property
    def target_columns(self) -> list[str]:
        """Both completions."""
        return [self.chosen, self.rejected]

    @property
    def text_columns(self) -> list[str]:
        """All three."""
        return self.input_columns + [column for column in self.target_columns if column not in self.input_columns]

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find what is wrong with the texts; warn of pairs whose two sides are the same."""
        yield from self._columns.check(rows, getattr(self, "tokenizer", None))
        if self.prompt is None and self.rejected in rows.column_names:
            texts = [index for index, value in enumerate(Cells(rows, self.chosen)) if isinstance(value, str)]
            if texts:
                what = "this is a text, and no column holds its prompt."
                yield RowProblem(texts, self.chosen, what, "Name one as task.prompt, or give lists of messages.")

    def encode(self, examples: Examples) -> Examples:
        """Tokenize prompts and completions; of a row that is too long the start of the prompt is cut first."""
        prompts = self._columns.prompts(examples)
        if self.rejected not in examples:
            values = prompts if self.prompt else examples[self.chosen]
            return {"input_ids": [self._prompt_tokens(value) for value in values]}
        columns = zip(prompts, examples[self.chosen], examples[self.rejected], strict=True)
        rows = [self._pair(*row) for row in columns]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def _pair(self, prompt: Any, chosen: Any, rejected: Any) -> dict[str, Any]:
        texts = [split(prompt, value, self.tokenizer) for value in (chosen, rejected)]
        before = self._before(texts[0].prompt, texts[0].rendered)
        after = [self._after(text) for text in texts]
        limit = self.tokenizer.model_max_length
        # half of the room is the prompt's at most where the completions are long, so that none of them is cut away
        before = before[-max(limit - max(map(len, after)), limit // 2, 1) :]
        pair = join(*((before + tokens)[:limit] for tokens in after))
        return {**pair, "prompt_length": len(before)}

    def _before(self, prompt: str, rendered: bool) -> list[int]:
        tokens = list(self.tokenizer(prompt, add_special_tokens=not rendered)["input_ids"])
        eos = self.tokenizer.eos_token_id
        if not rendered and len(tokens) > 1 and tokens[-1] == eos:
            tokens = tokens[:-1]  # some tokenizers end every text, but this one goes on
        return tokens

    def _after(self, text: Text) -> list[int]:
        tokens = list(self.tokenizer(text.completion, add_special_tokens=False)["input_ids"])
        eos = self.tokenizer.eos_token_id
        return tokens if text.rendered or eos is None else [*tokens, eos]

    def _prompt_tokens(self, value: Any) -> list[int]:
        if self.prompt is None and isinstance(value, str):
            value = [{"role": "user", "content": value}]
        if not isinstance(value, str):
            turns = messages(value)
            turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
            tokens = self._before(render(self.tokenizer, turns, add_generation_prompt=True), rendered=True)
        else:
            tokens = self._before(value, rendered=False)
        return fit_prompt(tokens, *room(self.generation, int(self.tokenizer.model_max_length)))

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return what makes one batch of both sides of the pairs, or of prompts to go on with."""
        pairs = _CompletionsBeside(PairCollator(self.tokenizer, pad_to_multiple_of, single_side="left"))
        return FindTargets(pairs, shift=True, labels=TARGETS)

    def packing_collator(self) -> Collator:
        """Return what lays both sides of pairs side by side."""
        return FindTargets(PairPackingCollator(), shift=True, labels=TARGETS)

    def full_row(self, length: int) -> dict[str, Any]:
        """Return a pair without a prompt."""
        return {**join([0] * length, [0] * length), "prompt_length": 0}

    # model

    def reference(self, model: PreTrainedModel, batch: Batch) -> dict[str, Tensor]:
        """Return the log-probabilities of both completions under the model as it is, as columns."""
        return dict(zip(REFERENCE, self._log_probs(model, batch), strict=True))

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the loss, and the rewards of both sides as logits [pairs, 2]."""
        scores = self._log_probs(model, batch)  # before the reference: autocast keeps what it casts without gradients
        if self.reference_columns:
            reference = self._reference(model, batch)
            scores = LogProbs(*(mine - its for mine, its in zip(scores, reference, strict=True)))
        rewards = LogProbs(*(self.beta * score for score in scores))
        if self.loss == "dpo":
            losses = dpo_loss(rewards, self.label_smoothing)
        elif self.loss == "ipo":
            losses = ipo_loss(rewards, self.beta)
        elif self.loss == "orpo":
            losses = orpo_loss(scores, self.beta)
        else:
            losses = simpo_loss(rewards, self.gamma)
        return PairOutput(losses.mean(), torch.stack(rewards, dim=-1))

    def _reference(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, ...]:
        if all(name in batch for name in REFERENCE):
            return tuple(batch[name] for name in REFERENCE)
        from peft import PeftModel  # neither a full model nor prediction needs it

        if not isinstance(model, PeftModel):
            what = f"the rows have no log-probabilities of the reference model, which {self.loss} compares with."
            raise LitHFError(Problem("task.loss", what))
        with _adapter_off(model):
            return tuple(self.reference(model, batch).values())

    def _log_probs(self, model: PreTrainedModel, batch: Batch) -> LogProbs:
        """Return each completion's log-probability: the sum over its tokens, or the mean, as the loss has it."""
        targets = batch[TARGETS]
        inputs = {name: value for name, value in batch.items() if name in (*MODEL_INPUTS, TARGET_PLACES)}
        log_probs = token_log_probs(model, {**inputs, "use_cache": False}, targets)
        sums = _sums(log_probs, batch)
        if self.loss in PER_TOKEN:
            sums = sums / _sums((targets[:, 1:] != IGNORED).to(sums.dtype), batch).clamp(min=1)
        return LogProbs(*sums.chunk(2))

    def metrics(self) -> MetricCollection:
        """Return the share of pairs ranked right, and the mean rewards and their margin."""
        from torchmetrics import MetricCollection

        from lit_hf.evaluation.pairs import PairRewards

        return MetricCollection({"rewards": PairRewards()})

    @property
    def monitors(self) -> Mapping[str, Literal["min", "max"]]:
        """The loss, accuracy and margin."""
        return {"loss": "min", "accuracy": "max", "margin": "max"}

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add a batch's rewards."""
        metrics.update(outputs.logits)

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return the `generated_text` that goes on from each prompt."""
        texts = continuations(model, self.tokenizer, batch, self.generation, self._turn_end())
        return [{"generated_text": text} for text in texts]

    def export_files(self, folder: Path) -> None:
        """Write how text is generated, so that plain `generate` stops and answers as it does here."""
        write_generation_config(folder, self.tokenizer, self.generation, self._turn_end())

    def _turn_end(self) -> int | None:
        """Return the token that ends a turn; none is known of a tokenizer for texts alone."""
        conversational = self.tokenizer.chat_template and self.tokenizer.is_fast
        return turn_end(self.tokenizer) if conversational else None


def _sums(values: Tensor, batch: Batch) -> Tensor:
    """Sum over each sequence, of shape [2 * pairs], what there is of all tokens of a row but the first."""
    if BOUNDS not in batch:
        return values.sum(-1)
    return document_sums(functional.pad(values[0], (1, 0)), batch[BOUNDS])


@contextmanager
def _adapter_off(model: PeftModel) -> Iterator[None]:
    """Make the model what it was before training, without dropout and gradients."""
    training = model.training
    model.eval()
    try:
        with model.disable_adapter(), torch.no_grad():
            yield
    finally:
        model.train(training)


class _CompletionsBeside:
    """Adds the completions' tokens to a batch of pairs. A class, to be pickled."""

    def __init__(self, pairs: Collator) -> None:
        self._pairs = pairs

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = self._pairs(rows)
        if "prompt_length" in batch:
            ids = batch["input_ids"]
            counts = torch.arange(ids.shape[1]) >= batch["prompt_length"].repeat(2)[:, None]
            batch[TARGETS] = ids.masked_fill(~(counts & batch["attention_mask"].bool()), IGNORED)
        return batch
