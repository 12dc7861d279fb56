"""Chat: instruction tuning of decoders on conversations, by the tokenizer's chat template."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from transformers import DataCollatorForSeq2Seq

from lit_hf.data.cells import Cells
from lit_hf.data.chat_templates import (
    Rendered,
    TemplateError,
    Tools,
    render,
    render_trained,
    tokenize,
    turn_end,
)
from lit_hf.data.conversations import (
    KNOWN_ROLES,
    Columns,
    ConversationError,
    Message,
    conversation,
    without_nulls,
)
from lit_hf.data.packing import PackingCollator
from lit_hf.errors import InputError, Problem, raise_problems
from lit_hf.evaluation.decoding import (
    GREEDY,
    continuations,
    fit_prompt,
    generation_problems,
    longest_prompt,
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

logger = logging.getLogger("lit_hf")

SHAPES = {"messages": (), "prompt": ("completion",), "instruction": ("input", "output")}
"""The columns that make a shape of rows, and those that go with them."""

MAX_NEW_TOKENS = 256


class Chat(Task):
    """Learn to answer in conversations: one turn or several, with system prompts and tools.

    Rows hold messages (lists of `role` and `content`, or ShareGPT's `from` and `value`), or prompt and completion, or
    instruction, input and output; say which columns these are.

    Args:
        messages: Column with the messages; `messages` where no other column is named.
        prompt: Column with the prompt, text or messages.
        completion: Column with the answer to the prompt, text or messages.
        instruction: Column with the instruction.
        input: Column with what the instruction is about; it may be empty.
        output: Column with the answer to the instruction.
        tools: Column with the tools of a row: a list of JSON schemas, as objects or as text.
        system: System prompt of the rows that have none.
        roles: Roles by other names than the usual ones, such as `{bard: assistant}`.
        train_on: Which turns are learnt: all of the assistant's, the last one of them, or all text.
        label_smoothing: Share of each target that is spread evenly over the vocabulary, in training; the losses of
            evaluation are without.
        generation: Arguments of `generate` for prediction; by default 256 tokens, or half of the limit, greedily.
    """

    auto_class = "AutoModelForCausalLM"
    pipeline_tag = "text-generation"
    definitions = LANGUAGE_MODELLING
    peft_task_type = "CAUSAL_LM"

    def __init__(
        self,
        messages: str | None = None,
        prompt: str | None = None,
        completion: str | None = None,
        instruction: str | None = None,
        input: str | None = None,
        output: str | None = None,
        tools: str | None = None,
        system: str | None = None,
        roles: dict[str, str] | None = None,
        train_on: Literal["assistant", "last", "all"] = "assistant",
        label_smoothing: float = 0.0,
        generation: dict[str, Any] | None = None,
    ) -> None:
        if messages is prompt is instruction is None:
            messages = "messages"
        self.columns = Columns(messages, prompt, completion, instruction, input, output)
        self.tools = tools
        self.system = system
        self.roles = {**KNOWN_ROLES, **(roles or {})}
        self.train_on = train_on
        self.label_smoothing = label_smoothing
        self.generation: dict[str, Any] = {**GREEDY, **(generation or {})}
        raise_problems(self._setting_problems())

    def _setting_problems(self) -> Iterator[Problem]:
        yield from generation_problems("task.generation", self.generation)
        yield from smoothing_problems(self.label_smoothing)
        given = {name for name, column in self.columns._asdict().items() if column is not None}
        shapes = [name for name in SHAPES if name in given]
        if len(shapes) > 1:
            what = f"{' and '.join(shapes)} are both given, but a row has one shape."
            yield Problem("task", what, "Name the columns of one of them.")
        for stray in sorted(given - {*SHAPES} - {*SHAPES[shapes[0]]}):
            owner = next(shape for shape, others in SHAPES.items() if stray in others)
            yield Problem(f"task.{stray}", f"it goes with {owner}, not with {shapes[0]}.", f"Name task.{owner}, too.")
        for shape, answer in (("prompt", "completion"), ("instruction", "output")):
            if shape in given and answer not in given:
                yield Problem(f"task.{answer}", "the column of the answer is not named.", f"Set task.{answer}.")
        known = sorted(set(KNOWN_ROLES.values()))
        for name, role in self.roles.items():
            if role not in known:
                yield Problem(f"task.roles.{name}", f"{role!r} is no role.", f"The roles are: {', '.join(known)}.")

    def bind(self, tokenizer: PreTrainedTokenizerBase, labels: list[str] | None = None) -> None:
        """Take the tokenizer; it must have a chat template.

        Raises:
            InputError: If it has none, or cannot tell which characters a token stands for.
        """
        super().bind(tokenizer, labels)
        if not tokenizer.chat_template:
            cure = "Give one as text or as a file: data.tokenizer.chat_template: template.jinja; or take a chat model."
            raise InputError(Problem("data.tokenizer.chat_template", "the tokenizer has no chat template.", cure))
        if not tokenizer.is_fast:
            cure = "Convert it to a fast one: save a tokenizer.json."
            raise InputError(
                Problem("data.tokenizer", "it is a slow tokenizer, which cannot tell where its tokens are.", cure)
            )
        self.generation = with_length(self.generation, MAX_NEW_TOKENS, int(tokenizer.model_max_length))

    # rows

    @property
    def input_columns(self) -> list[str]:
        """The column with the messages, the prompt or the instruction."""
        return [column for column in (self.columns.messages, self.columns.prompt, self.columns.instruction) if column]

    @property
    def target_columns(self) -> list[str]:
        """The column with the answer, unless it is among the messages."""
        return [column for column in (self.columns.completion, self.columns.output) if column]

    @property
    def optional_columns(self) -> list[str]:
        """The columns with the instruction's input and the tools."""
        return [column for column in (self.columns.input, self.tools) if column]

    @property
    def text_columns(self) -> list[str]:
        """All columns of the conversation, answers too."""
        return [column for column in self.columns if column]

    def check(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find rows that are no conversation, have no answer, or cannot be rendered; and answers that are cut away."""
        yield from self._absent_columns(rows)
        yield from self._row_faults(rows, self._check_trained)
        if self.train_on != "all" and turn_end(self.tokenizer) is None:
            logger.warning(
                "The chat template ends the assistant's turns without a special token that is trained, so the model "
                "may not learn to stop."
            )

    def check_inputs(self, rows: Dataset) -> Iterator[RowProblem]:
        """Find rows that are no conversation."""
        yield from self._row_faults(rows, self._question)

    def _absent_columns(self, rows: Dataset) -> Iterator[RowProblem]:
        for column in self.optional_columns:
            if column not in rows.column_names:
                there = ", ".join(rows.column_names)
                yield RowProblem(range(len(rows)), column, "there is no such column.", f"There is: {there}.")

    def _row_faults(self, rows: Dataset, check: Callable[[dict[str, Any]], object]) -> Iterator[RowProblem]:
        """Run a check of single rows over all, and gather the rows that fail alike."""
        columns = [name for name in (*self.text_columns, *self.optional_columns) if name in rows.column_names]
        faults: dict[tuple[str, str, str], list[int]] = {}
        for index, row in enumerate(_rows({column: Cells(rows, column) for column in columns})):
            try:
                check(row)
            except ConversationError as error:
                faults.setdefault((error.column, error.what, error.cure), []).append(index)
            except TemplateError as error:
                faults.setdefault((columns[0], f"{error}.", _TEMPLATE_CURE), []).append(index)
        for (column, what, cure), indices in faults.items():
            yield RowProblem(indices, column, what, cure)

    def _check_trained(self, row: Mapping[str, Any]) -> None:
        """Raise what keeps a row from being trained on."""
        rendered = self._render_trained(row)
        answer = self.text_columns[-1]
        if not any(end > start for start, end in rendered.spans):
            what = "the template marks nothing of the conversation as the assistant's ({% generation %})."
            raise ConversationError(answer, what, _TEMPLATE_CURE)
        limit = self.tokenizer.model_max_length
        first = rendered.spans[0][0]
        if len(rendered.text[:first].encode()) < limit:  # a token is a byte at least
            return
        labels = next(iter(tokenize(self.tokenizer, [rendered])))[1]
        if all(label == IGNORED for label in labels[:limit]):
            what = f"what is trained lies beyond the first {limit} tokens, where the row is cut."
            raise ConversationError(answer, what, "Raise data.max_length, or remove the row.")

    def _conversation(self, row: Mapping[str, Any]) -> list[Message]:
        return conversation(row, self.columns, self.system, self.roles)

    def _question(self, row: Mapping[str, Any]) -> list[Message]:
        """Return a row's messages without the answer that they may end with."""
        messages = self._conversation(row)
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages:
            raise ConversationError(self.input_columns[0], "there is no turn to answer.", "Give a turn of the user.")
        return messages

    def _tools(self, row: Mapping[str, Any]) -> Tools:
        value = row.get(self.tools) if self.tools is not None else None
        column = str(self.tools)
        if isinstance(value, str):
            try:
                value = json.loads(value) if value.strip() else None
            except ValueError as error:
                raise ConversationError(column, f"the tools are not valid JSON: {error}.") from error
        if value is not None and not (isinstance(value, list) and all(isinstance(tool, dict) for tool in value)):
            raise ConversationError(column, f"this is no list of tools: {value!r:.60}.", "Give JSON schemas.")
        return without_nulls(value) or None

    def _render_trained(self, row: Mapping[str, Any]) -> Rendered:
        messages = self._conversation(row)
        if all(message["role"] != "assistant" for message in messages):
            what = "there is no assistant turn, so there is nothing to learn."
            raise ConversationError(self.text_columns[-1], what, "Add one, or remove the row.")
        return render_trained(self.tokenizer, messages, self._tools(row), self.train_on)

    def encode(self, examples: Examples) -> Examples:
        """Render and tokenize conversations; labels are -100 where nothing is trained. The first tokens are kept."""
        if not all(column in examples for column in self.target_columns):
            return self.encode_inputs(examples)
        limit = self.tokenizer.model_max_length
        rendered = [self._render_trained(row) for row in _rows(examples)]
        pairs = [(ids[:limit], labels[:limit]) for ids, labels in tokenize(self.tokenizer, rendered)]
        return {"input_ids": [ids for ids, _ in pairs], "labels": [labels for _, labels in pairs]}

    def encode_inputs(self, examples: Examples) -> Examples:
        """Render and tokenize conversations up to the answer, for which room is left: the last tokens are kept."""
        texts = [
            render(self.tokenizer, self._question(row), self._tools(row), add_generation_prompt=True)
            for row in _rows(examples)
        ]
        prompts = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        lengths = room(self.generation, int(self.tokenizer.model_max_length))
        longest = longest_prompt(*lengths)
        if cut := sum(len(prompt) > longest for prompt in prompts):
            logger.warning("%d prompts are longer than %s tokens: their beginnings are cut off.", cut, longest)
        return {"input_ids": [fit_prompt(prompt, *lengths) for prompt in prompts]}

    def collator(self, *, training: bool = False, pad_to_multiple_of: int | None = None) -> Collator:
        """Return Hugging Face's collator; it pads to the right, and to the left where text is to be generated."""
        return FindTargets(_Collator(self.tokenizer, pad_to_multiple_of), shift=True)

    def packing_collator(self) -> Collator:
        """Return what lays conversations side by side."""
        return FindTargets(PackingCollator(), shift=True)

    def full_row(self, length: int) -> dict[str, Any]:
        """Return an answer without a question."""
        return {"input_ids": [0] * length, "labels": [0] * length}

    # model

    def forward(self, model: PreTrainedModel, batch: Batch) -> Outputs:
        """Return the loss over the trained tokens."""
        smoothing = self.label_smoothing if model.training else 0.0
        return token_loss(model, batch, shift=True, label_smoothing=smoothing)

    def metrics(self) -> MetricCollection:
        """Return perplexity and accuracy over the trained tokens."""
        # prediction needs no metrics, and importing them takes two seconds
        from torchmetrics import MetricCollection

        from lit_hf.evaluation.language_modelling import Perplexity
        from lit_hf.evaluation.tokens import TokenAccuracy

        return MetricCollection({"perplexity": Perplexity(), "token_accuracy": TokenAccuracy()})

    def update(self, metrics: MetricCollection, outputs: Outputs, batch: Batch) -> None:
        """Add a batch's trained tokens to the metrics."""
        tokens = cast(TokenOutput, outputs)
        metrics["perplexity"].update(tokens.loss.detach(), tokens.targets)
        metrics["token_accuracy"].update(tokens.right, tokens.targets)

    def predict(self, model: PreTrainedModel, batch: Batch) -> list[dict[str, Any]]:
        """Return the answer as `generated_text`."""
        texts = continuations(model, self.tokenizer, batch, self.generation, turn_end(self.tokenizer))
        return [{"generated_text": text} for text in texts]

    def export_files(self, folder: Path) -> None:
        """Write how text is generated, so that the export stops and answers elsewhere as it does here."""
        write_generation_config(folder, self.tokenizer, self.generation, turn_end(self.tokenizer))


_TEMPLATE_CURE = "Mend the row, or give another template: data.tokenizer.chat_template."


def _rows(examples: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(examples, values, strict=True)) for values in zip(*examples.values(), strict=True))


class _Collator:
    """Pads conversations to the right, and prompts (which have no labels) to the left. A class, to be pickled."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None) -> None:
        self._sides = {}
        for side in ("left", "right"):
            padding = copy.copy(tokenizer)
            padding.padding_side = side
            self._sides[side] = DataCollatorForSeq2Seq(padding, pad_to_multiple_of=pad_to_multiple_of)

    def __call__(self, rows: Iterable[dict[str, Any]]) -> Batch:
        features = list(rows)
        side = "right" if "labels" in features[0] else "left"
        return {name: value for name, value in self._sides[side](features).items() if value is not None}
