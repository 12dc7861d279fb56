"""Config files as values that know their file and line, read as jsonargparse will read them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lit_hf.errors import InputError, Problem

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
LONGEST_SHOWN = 60
MERGE_KEY = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Value:
    """A value of a config.

    Attributes:
        content: A scalar, a list of values, or values by their keys.
        place: `file:line`; empty on the command line.
        text: What was typed, where it came from the command line.
    """

    content: Any
    place: str = ""
    text: str | None = None

    def plain(self) -> Any:
        """Return the value as plain data."""
        if isinstance(self.content, dict):
            return {key: value.plain() for key, value in self.content.items()}
        if isinstance(self.content, list):
            return [value.plain() for value in self.content]
        return self.content

    def folder(self) -> Path:
        """Return the folder of the file that says it; the working directory for the command line."""
        return Path(self.place.rpartition(":")[0]).parent

    def shown(self) -> str:
        """Return the value as it looks in YAML, on one line."""
        plain = self.plain()
        if isinstance(plain, str):
            text = repr(plain)
        else:
            text = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def read_file(path: str | Path) -> tuple[Value, list[Problem]]:
    """Read a config file.

    Returns:
        The mapping at its top, and keys that are given twice.

    Raises:
        InputError: If there is no such file, or it is not YAML, or not a mapping.
    """
    text = _read_text(Path(path), str(path))
    node = _compose(text, str(path))
    if not isinstance(node, MappingNode):
        found = "nothing" if node is None else "a list" if isinstance(node, SequenceNode) else "a single value"
        raise InputError(Problem(str(path), f"expected keys and values, found {found}.", "For example: name: my-run"))
    problems: list[Problem] = []
    value = _Converter(str(path), problems).convert(node)
    return value, problems


def read_option(text: str) -> Value:
    """Read the value of a command line option: a scalar, or a mapping or list written as YAML."""
    scalar = _load_scalar(text)
    if not isinstance(scalar, dict | list):
        return Value(scalar, "", text)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = _Converter("", []).convert(node).content if node else None
    except (yaml.YAMLError, InputError):
        content = text  # It may be plain text; where it is not, the type check tells.
    return Value(content, "", text)


def is_remote(path: str) -> bool:
    """Say whether a path leads to another machine."""
    return "://" in path


def _read_text(path: Path, shown: str) -> str:
    if is_remote(shown):
        what = f"{shown} is not read: a config can name code to run, so it must be a file on this machine."
        raise InputError(Problem("--config", what, "Download it, and look at it."))
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(Problem("--config", f"there is no file {shown}.", _nearest_file(path))) from None
    except IsADirectoryError:
        files = sorted(file.name for file in path.iterdir() if file.suffix in CONFIG_SUFFIXES)
        cure = f"Config files in it: {', '.join(files[:12])}." if files else "It holds no config file."
        raise InputError(Problem("--config", f"{shown} is a folder, not a file.", cure)) from None
    except UnicodeDecodeError as error:
        raise InputError(Problem(shown, f"is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.")) from None
    except OSError as error:
        raise InputError(Problem("--config", f"{shown} cannot be read: {error.strerror}.")) from None


def _nearest_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"There is no folder {folder} either."
    names = sorted(file.name for file in folder.iterdir() if file.suffix in CONFIG_SUFFIXES)
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {folder / close[0]}?"
    return f"Config files in {folder}: {', '.join(names[:12])}." if names else ""


def _compose(text: str, file: str) -> Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        start = f" from line {error.context_mark.line + 1} on" if error.context_mark else ""
        what = "; ".join(part for part in (f"{error.context}{start}" if error.context else "", error.problem) if part)
        hint = "Indent with spaces, not tabs." if "\\t" in str(error.problem) else ""
        raise InputError(Problem(place, f"this is not YAML: {what}.", hint)) from None
    except yaml.YAMLError as error:
        raise InputError(Problem(file, f"this is not YAML: {' '.join(str(error).split())}.")) from None


class _Converter:
    """Turns YAML nodes into values.

    Args:
        file: Name of the file, for the places; empty on the command line.
        problems: Where keys that are given twice are added.
    """

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self._file = file
        self._problems = problems

    def convert(self, node: Node, place: str | None = None) -> Value:
        """Return the value of a node, and of all below it."""
        place = self._place(node) if place is None else place
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python/"):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise InputError(Problem(place, f"the tag {tag} is refused: a config holds plain values only."))
        if isinstance(node, MappingNode):
            return Value(self._mapping(node), place)
        if isinstance(node, SequenceNode):
            return Value([self.convert(item) for item in node.value], place)
        return Value(_scalar(node), place)

    def _mapping(self, node: MappingNode) -> dict[Any, Value]:
        merged: dict[Any, Value] = {}
        own: dict[Any, Value] = {}
        for key_node, value_node in node.value:
            if key_node.tag == MERGE_KEY:
                merged |= self._merged(value_node)
                continue
            key, place = self._key(key_node), self._place(key_node)
            if key in own:
                what = f"`{key}` is given twice in the same block, first at {own[key].place}."
                self._problems.append(Problem(place, what, "Remove one of the two."))
            own[key] = self.convert(value_node, place)
        return merged | own

    def _merged(self, node: Node) -> dict[Any, Value]:
        blocks = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[Any, Value] = {}
        for block in reversed(blocks):
            if isinstance(block, MappingNode):
                merged |= self._mapping(block)
        return merged

    def _key(self, node: Node) -> Any:
        if not isinstance(node, ScalarNode):
            raise InputError(Problem(self._place(node), "a key must be a single word."))
        return _scalar(node)

    def _place(self, node: Node) -> str:
        return f"{self._file}:{node.start_mark.line + 1}" if self._file else ""


def _scalar(node: Node) -> Any:
    """Return a scalar: text where it is in quotes, else what it looks like."""
    return _load_scalar(node.value) if isinstance(node, ScalarNode) and node.style is None else node.value


def _load_scalar(text: str) -> Any:
    """Read a scalar with jsonargparse's own loader: it knows 1e-4 as a number, which YAML 1.1 does not."""
    try:
        return get_loader("yaml")(text) if text.strip() else text or None
    except yaml.YAMLError:
        return text


def walk_scalars(key: str, value: Value) -> Iterator[tuple[str, Value]]:
    """Yield every scalar of a value with its dotted key."""
    if isinstance(value.content, dict):
        for name, item in value.content.items():
            yield from walk_scalars(f"{key}.{name}" if key else str(name), item)
    elif isinstance(value.content, list):
        for index, item in enumerate(value.content):
            yield from walk_scalars(f"{key}[{index}]", item)
    else:
        yield key, value
