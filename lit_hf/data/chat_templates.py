"""Chat templates: a conversation becomes text, and is told which of its characters the model is to learn."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from lit_hf.data.conversations import Message
from lit_hf.task import IGNORED

TrainOn = Literal["assistant", "last", "all"]

Tools = Sequence[dict[str, Any]] | None

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")

TEMPLATE_FILE = "<template>"
"""The name that Jinja gives to a template made of text, in tracebacks."""


class TemplateError(ValueError):
    """A template does not render a conversation, or not so that its turns can be told apart."""


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        text: What the model reads, special tokens included.
        spans: Start and end of what is trained, in characters; the ends are those of turns.
    """

    text: str
    spans: list[tuple[int, int]]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Tools = None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Return a conversation as text.

    Raises:
        TemplateError: If the template does not render it; the message names the template's line.
    """
    return _render(tokenizer, messages, tools, add_generation_prompt=add_generation_prompt)[0]


def render_trained(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Tools = None,
    train_on: TrainOn = "assistant",
) -> Rendered:
    """Return a conversation as text, and what of it is trained: turns of the assistant with their end, or all.

    A template that marks the assistant's text itself (`{% generation %}`) is believed. With others, an assistant's turn
    is what the conversation up to and with it has more than the one up to it with the generation prompt.

    Raises:
        TemplateError: If the template does not render it, or renders earlier turns in another way once others follow.
    """
    marked = bool(GENERATION_TAG.search(tokenizer.get_chat_template(None, tools)))  # type: ignore[arg-type]
    text, spans = _render(tokenizer, messages, tools, return_assistant_tokens_mask=marked)
    if train_on == "all":
        return Rendered(text, [(0, len(text))])
    if marked:
        return Rendered(text, spans[-1:] if train_on == "last" else spans)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    chosen = answers[-1:] if train_on == "last" else answers
    return Rendered(text, [_span(tokenizer, messages, tools, index, text) for index in chosen])


def _span(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools, index: int, text: str
) -> tuple[int, int]:
    before = render(tokenizer, messages[:index], tools, add_generation_prompt=True)
    through = render(tokenizer, messages[: index + 1], tools) if index + 1 < len(messages) else text
    if not (through.startswith(before) and text.startswith(through)):
        raise TemplateError(
            "the template writes a turn otherwise once its answer or other turns follow, so nobody can tell which "
            "tokens are the assistant's"
        )
    # what stands between the end-of-turn token and the next turn is never generated
    end = through.rstrip()
    ends_with_token = end.endswith(tuple(_special_tokens(tokenizer).values())) and len(end) > len(before)
    return len(before), len(end) if ends_with_token else len(through)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Tools, **options: Any
) -> tuple[str, list[tuple[int, int]]]:
    """Render, and return also the spans that the template marks; as `apply_chat_template` does before it tokenizes."""
    template = tokenizer.get_chat_template(None, tools)  # type: ignore[arg-type]
    render: Any = chat_template_utils.render_jinja_template  # its annotation of what it returns is wrong
    try:
        settings: dict[str, Any] = {**tokenizer.special_tokens_map, **options, "tools": tools}
        texts, spans = render([list(messages)], chat_template=template, **settings)
    except Exception as error:  # a template is a program: it fails in any way
        raise TemplateError(f"the chat template does not render{_line(error)}: {_first_line(error)}") from error
    return texts[0], spans[0] if spans else []


def _line(error: Exception) -> str:
    number = getattr(error, "lineno", None)
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in (TEMPLATE_FILE, "<unknown>"):
            number = frame.lineno
    return f" (line {number})" if number else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def tokenize(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield token ids and labels of conversations, both [tokens]; the labels are -100 where nothing is trained.

    Nothing is cut. The first token is never trained, as nothing comes before it.
    """
    encoded = tokenizer(
        [conversation.text for conversation in rendered],
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    for ids, offsets, conversation in zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True):
        # A token belongs where it ends: leading blanks may be in its text and not in its offsets.
        trained = [any(start < end <= stop for start, stop in conversation.spans) for _, end in offsets]
        labels = [token if counts else IGNORED for token, counts in zip(ids, trained, strict=True)]
        yield ids, [IGNORED, *labels[1:]]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token by which the assistant's turns end, or None where the template ends them without a token."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        rendered = render_trained(tokenizer, messages)
    except TemplateError:
        return None
    (_, labels), *_ = tokenize(tokenizer, [rendered])
    trained = [token for token in labels if token != IGNORED]
    return trained[-1] if trained and trained[-1] in _special_tokens(tokenizer) else None


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the special tokens by id; many tokenizers have some that are neither their end token nor named at all."""
    unnamed = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {**dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)), **unnamed}
