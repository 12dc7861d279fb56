"""Conversations: rows of any of the usual shapes become messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Message = dict[str, Any]
"""A turn of a conversation: `role` and `content`, and whatever else the template reads (`tool_calls`, `name`, ...)."""

KNOWN_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "observation": "tool",
}
"""Roles by the names that datasets give them; those of ShareGPT among them."""

SHAPES = (("role", "content"), ("from", "value"))


class Columns(NamedTuple):
    """Which columns hold what; one of `messages`, `prompt` and `instruction` is there."""

    messages: str | None = None
    prompt: str | None = None
    completion: str | None = None
    instruction: str | None = None
    input: str | None = None
    output: str | None = None


class ConversationError(ValueError):
    """A row is no conversation.

    Args:
        column: The column with the fault.
        what: What is wrong.
        cure: How to mend it.
    """

    def __init__(self, column: str, what: str, cure: str = "") -> None:
        super().__init__(what)
        self.column, self.what, self.cure = column, what, cure


def conversation(
    row: Mapping[str, Any], columns: Columns, system: str | None = None, roles: Mapping[str, str] = KNOWN_ROLES
) -> list[Message]:
    """Turn a row into messages.

    Args:
        row: The row; without the column of the answer, it is a question only.
        columns: Which columns hold what. Prompt and completion are text or lists of messages.
        system: System prompt of a row that has none.
        roles: The role of each name that a turn's role may have.

    Raises:
        ConversationError: If the row is none.
    """
    if columns.messages is not None:
        turns = _turns(row[columns.messages], columns.messages, "user", roles)
    elif columns.prompt is not None:
        turns = _turns(row[columns.prompt], columns.prompt, "user", roles)
        turns += _answer(row, columns.completion, roles)
    else:
        turns = [{"role": "user", "content": _instruction(row, columns)}, *_answer(row, columns.output, roles)]
    if system is not None and turns[0]["role"] not in ("system", "developer"):
        turns.insert(0, {"role": "system", "content": system})
    return turns


def without_nulls(value: Any) -> Any:
    """Return a value without the nulls that a table puts where one row has a key and another has not."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _answer(row: Mapping[str, Any], column: str | None, roles: Mapping[str, str]) -> list[Message]:
    return _turns(row[column], column, "assistant", roles) if column in row and column is not None else []


def _instruction(row: Mapping[str, Any], columns: Columns) -> str:
    parts = []
    for column in (columns.instruction, columns.input):
        text = row.get(column) if column is not None else None
        if text is not None and not isinstance(text, str):
            raise ConversationError(str(column), f"this is no text: {text!r:.60}.")
        parts.append(text or "")
    if not parts[0].strip():
        raise ConversationError(str(columns.instruction), "the text is empty.", "Fill it in, or remove the row.")
    return "\n\n".join(filter(None, parts))


def _turns(value: Any, column: str, role: str, roles: Mapping[str, str]) -> list[Message]:
    """Return the turns of a cell; text alone is one turn of the given role."""
    items: Sequence[Any] = [{"role": role, "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise ConversationError(column, f"this is no text and no list of messages: {value!r:.60}.")
    if not items:
        raise ConversationError(column, "there are no messages.", "Remove the row.")
    named = not isinstance(value, str)
    return [_turn(item, column, f"turn {number}: " if named else "", roles) for number, item in enumerate(items, 1)]


def _turn(item: Any, column: str, place: str, roles: Mapping[str, str]) -> Message:
    filled = without_nulls(item)
    shape = next((keys for keys in SHAPES if isinstance(item, Mapping) and keys[0] in filled), None)
    if shape is None:
        seen = f"it has {', '.join(map(repr, item))}" if isinstance(item, Mapping) else f"it is {item!r:.60}"
        cure = "A message is {role: ..., content: ...} or {from: ..., value: ...}."
        raise ConversationError(column, f"{place}this is no message; {seen}.", cure)
    name, content = filled[shape[0]], filled.get(shape[1])
    if name not in roles:
        known = ", ".join(roles)
        cure = f"Known are: {known}. Map others: task.roles: {{{name}: assistant}}."
        raise ConversationError(column, f"{place}the role {name!r:.40} is not known.", cure)
    role = roles[name]
    if content is not None and not isinstance(content, str | list):
        raise ConversationError(column, f"{place}the content is no text: {content!r:.60}.")
    has_content = bool(content.strip() if isinstance(content, str) else content)
    if not has_content and role in ("user", "assistant") and "tool_calls" not in filled:
        raise ConversationError(column, f"{place}the {role} turn is empty.", "Fill it in, or remove the row.")
    rest = {key: value for key, value in filled.items() if key not in shape}
    return {"role": role, "content": "" if content is None else content, **rest}
