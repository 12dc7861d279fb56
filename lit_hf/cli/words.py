"""Types in words, and the values that a type takes."""

from __future__ import annotations

import dataclasses
import datetime
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

SIMPLE = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    Any: "anything",
    Path: "a path",
    datetime.timedelta: "a time (days:hours:minutes:seconds)",
}


def alternatives(hint: Any) -> list[Any]:
    """Return the members of a union, or the type alone; `int | None` gives both."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [member for part in typing.get_args(hint) for member in alternatives(part)]
    return [hint]


def choices(hint: Any) -> list[str]:
    """Return all that a type made of literals or an enum admits; empty if it admits anything else (but null)."""
    found: dict[str, None] = {}
    for member in alternatives(hint):
        if typing.get_origin(member) is Literal:
            found |= dict.fromkeys(str(choice) for choice in typing.get_args(member))
        elif _is_enum(member):
            found |= dict.fromkeys(choice.name for choice in member)
        elif member is not type(None):
            return []
    return list(found)


def classes(hint: Any) -> list[type]:
    """Return the base classes that a value of the type is given by `class_path` for, lists of them included."""
    found: list[type] = []
    for member in alternatives(hint):
        origin, arguments = typing.get_origin(member), typing.get_args(member)
        if origin is not None and _is_callable(origin):
            found.extend(classes(arguments[-1]) if arguments else [])
        elif origin is not None and _is_sequence(origin):
            found.extend(base for argument in arguments for base in classes(argument))
        elif inspect.isclass(origin or member) and _is_ours_to_build(origin or member):
            found.append(origin or member)
    return list(dict.fromkeys(found))


def passed_parameters(hint: Any) -> int:
    """Return how many first parameters the caller passes itself, where the type is a callable that returns a class."""
    for member in alternatives(hint):
        if _is_callable(typing.get_origin(member)):
            arguments = typing.get_args(member)
            return len(arguments[0]) if arguments and isinstance(arguments[0], list) else 0
    return 0


def is_closed(base: type) -> bool:
    """Say whether a class is plain settings: its fields are given directly, without `class_path`."""
    return dataclasses.is_dataclass(base) and not base.__subclasses__()


def listed_block(hint: Any) -> type | None:
    """Return the plain settings of which a type admits one block or a list of blocks; None for other types."""
    members = alternatives(hint)
    blocks = [member for member in members if inspect.isclass(member) and dataclasses.is_dataclass(member)]
    return next((block for block in blocks if is_closed(block) and list[block] in members), None)  # type: ignore[valid-type]


def names_code(hint: Any) -> bool:
    """Say whether text in a value of the type, or in what the type contains, may be an import path."""
    if hint is type or typing.get_origin(hint) is type or is_function(hint):
        return True
    return bool(classes(hint)) or any(names_code(part) for part in typing.get_args(hint))


def is_function(hint: Any) -> bool:
    """Say whether a value of the type is a function by its import path, which is not called to make a class."""
    return any(
        _is_callable(typing.get_origin(member) or member) and not classes(member) for member in alternatives(hint)
    )


def admits_scalar(hint: Any) -> bool:
    """Say whether text or a number is a value of the type, so that text in its place need not name a class."""
    members = [member for member in alternatives(hint) if member not in (type(None), bool)]
    return any(member in SIMPLE or typing.get_origin(member) is Literal for member in members)


def admits_mapping(hint: Any) -> bool:
    """Say whether a plain mapping is a value of the type."""
    return any(_is_mapping(member) for member in alternatives(hint))


def describe(hint: Any) -> str:
    """Return a type in words: `int | None` is "a whole number or null"."""
    members = alternatives(hint)
    if float in members:
        members = [member for member in members if member is not int and getattr(member, "__module__", "") != "torch"]
    words = [_describe_one(member) for member in members if member is not type(None)]
    words = list(dict.fromkeys(words)) + ["null"] * (type(None) in members)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


SHORT = {bool: "true|false", int: "int", float: "number", str: "text", Any: "any", Path: "path"}
LONGEST_CHOICE = 80


def short(hint: Any) -> str:
    """Return a type as it is shown beside an option: `int | None` is "int"."""
    members = [member for member in alternatives(hint) if member is not type(None)]
    if listed := choices(hint):
        return "|".join(listed) if len("|".join(listed)) <= LONGEST_CHOICE else "choice"
    if float in members:
        members = [member for member in members if member is not int and getattr(member, "__module__", "") != "torch"]
    return "|".join(dict.fromkeys(_short_one(member) for member in members))


def _short_one(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if _is_enum(hint):
        return "choice"
    if hint in SHORT or hint is datetime.timedelta:
        return SHORT.get(hint, "time")
    if _is_mapping(hint):
        return "mapping"
    if bases := classes(hint):
        return "mapping" if all(is_closed(base) for base in bases) else "class"
    return "list" if _is_list(hint) else "function" if _is_callable(typing.get_origin(hint) or hint) else "value"


def _describe_one(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else repr(arguments[0])
    if _is_enum(hint):
        return f"one of {', '.join(choices(hint))}"
    if hint in SIMPLE:
        return SIMPLE[hint]
    if (origin is not None and _is_callable(origin)) or hint is Callable:
        returned = classes(hint)
        return _class_words(returned) if returned else "the import path of a function"
    if _is_list(hint):
        return f"a list ({describe(arguments[0])} each)" if arguments and arguments[0] is not Any else "a list"
    if _is_mapping(hint):
        with_values = len(arguments) == 2 and arguments[1] is not Any
        return f"a mapping (name: {describe(arguments[1])})" if with_values else "a mapping"
    return _class_words([hint]) if inspect.isclass(hint) else "a value"


def _class_words(bases: list[type]) -> str:
    named = " or ".join(base.__name__ for base in bases)
    if all(is_closed(base) for base in bases):
        return f"a mapping ({named})"
    return f"a {named} by class_path"


def _is_callable(origin: Any) -> bool:
    return origin in (Callable, typing.get_origin(Callable[[], int]))


def _is_enum(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Enum)


def _is_mapping(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    return inspect.isclass(origin) and issubclass(origin, Mapping)


def _is_list(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return hint in (list, tuple, set) or (origin is not None and _is_sequence(origin))


def _is_sequence(origin: Any) -> bool:
    if not inspect.isclass(origin) or origin in (str, bytes):
        return False
    return issubclass(origin, Iterable) and not issubclass(origin, Mapping)


def _is_ours_to_build(candidate: type) -> bool:
    """Tell classes that a config builds from values that it writes down."""
    plain = (bool, int, float, complex, str, bytes, Path, datetime.timedelta, type(None), list, tuple, set, dict)
    if candidate in plain or _is_enum(candidate):
        return False
    return candidate.__module__ not in ("builtins", "collections.abc", "torch")
