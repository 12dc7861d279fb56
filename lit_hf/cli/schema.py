"""The options of a parser as a tree: what may stand at every key, down into the classes that class_path names."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
from argparse import SUPPRESS, Action
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import ArgumentParser

from lit_hf.cli import words
from lit_hf.errors import nearest

LINK_ARROW = " --> "

LONGEST_LIST = 15
"""Longer lists of valid names are left to the help."""


@dataclass
class Option:
    """One option, or a group of options that are given as a block.

    Attributes:
        key: Its dotted key.
        action: The parser's own; None for a group.
        options: What is in the group, by name; empty for a single option.
        block: The settings in the group, where a list of such groups may be given, too.
        source: The key that always sets this one, where it is linked and cannot be set itself.
    """

    key: str
    action: Action | None = None
    options: dict[str, Option] = field(default_factory=dict)
    block: type | None = None
    source: str = ""

    @property
    def name(self) -> str:
        """The last part of its key."""
        return self.key.rpartition(".")[2]

    @property
    def hint(self) -> Any:
        """The option's type."""
        # jsonargparse has no public way to ask for it.
        return getattr(self.action, "_typehint", Any)

    @property
    def bases(self) -> list[type]:
        """The base classes, where the option takes a class."""
        return words.classes(self.hint)

    @property
    def default(self) -> Any:
        """The option's default."""
        return self.action.default if self.action else None

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.action is not None and self.action.required

    @property
    def admits_null(self) -> bool:
        """Whether null may be given, or is what it is when nothing is given."""
        members = words.alternatives(self.hint)
        return type(None) in members or Any in members or (self.default is None and not self.required)

    def leaves(self) -> Iterator[Option]:
        """Yield the single options of the group that a user can set."""
        for option in self.options.values():
            if option.options:
                yield from option.leaves()
            elif not option.source:
                yield option


def read_options(parser: ArgumentParser, key: str = "") -> Option:
    """Return a parser's options as a tree.

    Args:
        parser: The parser.
        key: The key that all of them are below.
    """
    root = Option(key)
    for action in parser._actions:
        source, arrow, _ = (action.option_strings[0] if action.option_strings else "").partition(LINK_ARROW)
        if arrow:
            _place(root, action.dest).source = source
        elif action.default != SUPPRESS and action.dest != "config":
            _fill(_place(root, action.dest), action)
    return root


def _fill(option: Option, action: Action) -> None:
    option.action = action
    option.block = words.listed_block(option.hint)
    if option.block is not None:
        inner = class_options(option.block, option.key, option.hint)
        option.options = inner.options if inner else {}


def _place(root: Option, name: str) -> Option:
    option = root
    for part in name.split("."):
        inner = f"{option.key}.{part}" if option.key else part
        option = option.options.setdefault(part, Option(inner))
    return option


def class_options(cls: Any, key: str, hint: Any) -> Option | None:
    """Return the parameters of a class that a config can set, or None if it is a function of unknown parameters.

    Args:
        cls: The class.
        key: The key of the block that the class is chosen in.
        hint: The type of that block; where it is a callable, its caller passes the first parameters.
    """
    if not inspect.isclass(cls):
        return None
    parser = ArgumentParser(exit_on_error=False)
    passed = words.passed_parameters(hint)
    parser.add_class_arguments(cls, skip={passed} if passed else None, fail_untyped=False)
    options = read_options(parser, key if words.is_closed(cls) else f"{key}.init_args")
    for documented in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        option = options.options.get(documented.name)
        if option is not None and option.action is not None:
            option.action.help = option.action.help or documented.metadata.get("help")
    return options


def required_keys(parser: ArgumentParser) -> list[str]:
    """Return the keys that a config must have."""
    options = read_options(parser)
    declared = [option.key for option in options.leaves() if option.required]
    # jsonargparse keeps those apart that argparse is not to complain about.
    return declared + sorted(getattr(parser, "_extra_required_keys", set()) - set(declared))


def known_classes(bases: Collection[type]) -> dict[str, type]:
    """Return the classes that can be built where one of these bases is expected, by name."""
    found: dict[str, type] = {}
    pending = list(bases)
    while pending:
        cls = pending.pop(0)
        pending.extend(cls.__subclasses__())
        is_choice = cls not in bases or words.is_closed(cls)
        if is_choice and not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
            found.setdefault(cls.__name__, cls)
    return found


class UnknownClassError(Exception):
    """A class_path that leads nowhere or to something else.

    Args:
        message: What is wrong.
        cure: What to write instead.
    """

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message)
        self.cure = cure


def find_class(name: str, bases: Collection[type]) -> Any:
    """Return what a class_path names: a subclass of one of the bases, or a function that may return one.

    Args:
        name: The name of a known class, or an import path.
        bases: The classes that are expected.

    Raises:
        UnknownClassError: If there is no such class, or it is not what is expected.
    """
    known = known_classes(bases)
    expected = " or ".join(base.__name__ for base in bases)
    if "." not in name:
        if name not in known:
            raise UnknownClassError(f"there is no {expected} named {name!r}.", suggest(name, known))
        return known[name]
    found = _import(name, known)
    if not inspect.isclass(found):
        if callable(found):
            return found
        raise UnknownClassError(f"{name} is not a class.", suggest(name.rpartition(".")[2], known))
    if not issubclass(found, tuple(bases)):
        raise UnknownClassError(f"{name} is not a {expected}.", suggest(found.__name__, known))
    if inspect.isabstract(found):
        raise UnknownClassError(f"{name} is only a base class.", suggest(found.__name__, known))
    return found


def _import(name: str, known: dict[str, type]) -> Any:
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if f"{module_name}.".startswith(f"{missing}."):
            cure = suggest(attribute, known)
            raise UnknownClassError(f"{name} cannot be imported: there is no module {missing!r}.", cure) from None
        package = missing.partition(".")[0]
        what = f"{name} cannot be imported: it needs the module {missing!r}."
        raise UnknownClassError(what, f"Install it: pip install {package}.") from None
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        raise UnknownClassError(f"{name} cannot be imported: {type(error).__name__}: {first_line}") from error
    if not hasattr(module, attribute):
        here = [cls_name for cls_name, cls in known.items() if getattr(module, cls_name, None) is cls]
        raise UnknownClassError(f"{module_name} has no {attribute!r}.", suggest(attribute, here or known))
    return getattr(module, attribute)


def suggest(name: str, valid: Collection[str]) -> str:
    """Return a cure for an unknown name, like `errors.nearest`, but blind to case, and without a list that is long."""
    by_folded = {other.casefold(): other for other in valid}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.5)
    hint = f"Did you mean {by_folded[close[0]]!r}?" if close else ""
    if len(valid) > LONGEST_LIST:
        return hint
    listed = nearest("", valid)
    return f"{hint} {listed}" if hint else listed
