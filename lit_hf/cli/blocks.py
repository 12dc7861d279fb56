"""The check of a config's blocks against a parser's options: unknown keys, wrong types, classes that are not there."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from lit_hf.cli import words
from lit_hf.cli.reading import CONFIG_SUFFIXES, Value, is_remote, read_file
from lit_hf.cli.safety import CURE, FLAG, find_import_paths, find_unsafe, is_admitted, refused_import
from lit_hf.cli.schema import Option, UnknownClassError, class_options, find_class, suggest
from lit_hf.cli.secrets import find_secrets
from lit_hf.errors import InputError, Problem

CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


@dataclass(frozen=True)
class _Chosen:
    """The class of a block, its parameters (None if they cannot be known), and where it was chosen."""

    cls: Any
    options: Option | None
    place: str


class Checker:
    """Checks files and options one after the other, and remembers what they said.

    Args:
        options: The parser's options.
        safe: Refuse what would run or fetch something that is not admitted, and import nothing of it.

    Attributes:
        problems: All that is wrong.
        notes: What is not wrong, but worth telling.
        given: The keys that a value was given for.
    """

    def __init__(self, options: Option, safe: bool = False) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.given: set[str] = set()
        self._options = options
        self._safe = safe
        self._chosen: dict[str, _Chosen] = {}
        self._secrets: set[str] = set()
        self._refused: set[str] = set()
        self._lists: set[str] = set()

    def check_file(self, value: Value) -> None:
        """Check what a config file says."""
        self._check_text("", value)
        self._check_group(self._options, value)

    def check_option(self, key: str, value: Value) -> None:
        """Check an option of the command line."""
        self._check_text(key, value)
        self._check_key(self._options, key, value)

    def check_required_parameters(self) -> None:
        """Check that the classes that were chosen have all the parameters they need."""
        for key, chosen in self._chosen.items():
            for option in chosen.options.leaves() if chosen.options else ():
                if option.required and option.key not in self.given:
                    name = option.key.rpartition(".")[2]
                    self._add(
                        key, chosen.place, f"{chosen.cls.__name__} needs {name!r}: {words.describe(option.hint)}."
                    )

    def _add(self, key: str, place: str, what: str, cure: str = "") -> None:
        self.problems.append(Problem(f"{key} ({place})" if place else key, what, cure))

    def _is_refused_inside(self, key: str) -> bool:
        return any(refused.startswith((f"{key}.", f"{key}[")) for refused in self._refused)

    def _add_wrong(self, key: str, value: Value, expected: str, cure: str = "") -> None:
        self._add(key, value.place, f"expected {expected}, found {value.shown()}.", cure)

    def _check_text(self, key: str, value: Value) -> None:
        """Check what no type is needed for, and nothing need be imported."""
        for secret_key, problem in find_secrets(key, value):
            self._secrets.add(secret_key)
            self.problems.append(problem)
        if self._safe:
            self._refuse(find_unsafe(key, value))

    def _refuse(self, found: Iterable[tuple[str, Problem]]) -> bool:
        """Keep what is not admitted, each once; say whether there was anything."""
        refused = dict(found)
        self.problems += [problem for key, problem in refused.items() if key not in self._refused]
        self._refused |= set(refused)
        return bool(refused)

    # groups: blocks whose keys are fixed

    def _check_group(self, group: Option, value: Value) -> None:
        if isinstance(value.content, str) and group.key and Path(value.content).suffix in CONFIG_SUFFIXES:
            inner = self._read_inner_file(group.key, value)
            if inner is not None:
                self._check_group(group, inner)
        elif isinstance(value.content, dict):
            self._lists.discard(group.key)
            for name, item in value.content.items():
                self._check_key(group, str(name), item)
        elif isinstance(value.content, list) and group.block is not None:
            self._check_list(group, group.block, value)
        elif value.content is None:
            self._add(group.key, value.place, "is empty.", "Indent the keys that belong to it, or remove it.")
        else:
            self._add_wrong(group.key, value, "a block of keys")

    def _check_list(self, group: Option, block: type, value: Value) -> None:
        """Check a list of blocks. jsonargparse would fill it up with what was given before: that is refused."""
        if any(key.startswith((f"{group.key}.", f"{group.key}[")) for key in self.given):
            cure = f"Give {group.key} in one place."
            self._add(group.key, value.place, "there is a list here, but other values were given before.", cure)
        self._lists.add(group.key)
        for index, item in enumerate(value.content):
            options = class_options(block, f"{group.key}[{index}]", block)
            if options is not None:
                self._check_group(options, item)

    def _read_inner_file(self, key: str, value: Value) -> Value | None:
        """Read a block that is in a file of its own: `model: model.yaml`, relative to the file that says so."""
        path = value.content if is_remote(value.content) else value.folder() / value.content
        try:
            inner, repeated = read_file(path)
        except InputError as error:
            self.problems.extend(error.problems)
            return None
        self.problems.extend(repeated)
        self._check_text(key, inner)
        return inner

    def _check_key(self, group: Option, name: str, value: Value) -> None:
        """Check a value in a group, under a name that may be dotted."""
        head, _, rest = name.partition(".")
        option = group.options.get(head)
        if option is None:
            self._add_unknown(group, name, value)
        elif option.source:
            self._add(option.key, value.place, f"always follows {option.source}.", f"Set {option.source} instead.")
        elif option.key in self._lists and rest:
            what = f"{option.key} is a list, so it has no {rest!r}."
            self._add(f"{option.key}.{rest}", value.place, what, f"Give the whole list, or one block: {option.key}.")
        elif option.options and rest:
            self._check_key(option, rest, value)
        elif option.options:
            self._check_group(option, value)
        elif rest:
            self._check_parameter(option, rest, value)
        else:
            self._check_value(option, option.key, value)

    def _add_unknown(self, group: Option, name: str, value: Value) -> None:
        key = f"{group.key}.{name}" if group.key else name
        if any(secret == key or secret.startswith((f"{key}.", f"{key}[")) for secret in self._secrets):
            return
        cure = suggest(name.partition(".")[0], [key for key, option in group.options.items() if not option.source])
        if not cure.startswith("Did you mean"):
            last = name.rpartition(".")[2]
            elsewhere = [option.key for option in self._options.leaves() if option.name == last]
            cure = f"Did you mean {elsewhere[0]!r}?" if elsewhere else cure
        self._add(key, value.place, "there is no such key.", cure)

    # single values

    def _check_value(self, option: Option, key: str, value: Value) -> None:
        self.given.add(key)
        if key in self._secrets or key in self._refused:
            return
        if option.bases and self._is_class(option, value):
            self._check_class(option, key, value)
        elif self._safe and (self._is_refused_inside(key) or self._refuse(find_import_paths(option.hint, key, value))):
            return  # to try whether it fits would import it
        elif not option.admits_null and value.content is None:
            self._add_wrong(key, value, words.describe(option.hint))
        elif not _fits(option.hint, value):
            choices = words.choices(option.hint)
            expected = f"one of {', '.join(choices)}" if choices else words.describe(option.hint)
            self._add_wrong(key, value, expected, _value_cure(option.hint, choices, value))

    def _is_class(self, option: Option, value: Value) -> bool:
        """Tell a class, by its name or as a block, from a plain value, where a type admits both."""
        if isinstance(value.content, dict):
            return not words.admits_mapping(option.hint) or any(name in value.content for name in CLASS_KEYS)
        if isinstance(value.content, list):
            return bool(value.content) and all(isinstance(item.content, dict | str) for item in value.content)
        return isinstance(value.content, str) and not words.admits_scalar(option.hint)

    # classes: blocks whose keys depend on their class_path

    def _check_class(self, option: Option, key: str, value: Value) -> None:
        if isinstance(value.content, list):
            self._forget(f"{key}[")
            for index, item in enumerate(value.content):
                self._check_class(option, f"{key}[{index}]", item)
        elif isinstance(value.content, dict):
            self._check_class_block(option, key, value)
        elif Path(value.content).suffix in CONFIG_SUFFIXES:
            inner = self._read_inner_file(key, value)
            if inner is not None:
                self._check_class(option, key, inner)
        else:
            self._choose(option, key, value)

    def _check_class_block(self, option: Option, key: str, value: Value) -> None:
        block = value.content
        if not any(name in block for name in CLASS_KEYS):
            block = {"init_args": value}  # jsonargparse takes the parameters directly, too
        for name, item in block.items():
            if name not in CLASS_KEYS:
                self._add(f"{key}.{name}", item.place, "does not belong here.", "Put it under init_args.")
        if "class_path" in block and not self._choose(option, key, block["class_path"]):
            return
        if "init_args" not in block:
            return
        init_args = block["init_args"]
        parameters = self._parameters(option, key, init_args.place)
        if not isinstance(init_args.content, dict):
            self._add_wrong(f"{key}.init_args", init_args, "a block of keys")
        elif parameters is not None:
            self._check_group(parameters, init_args)

    def _check_parameter(self, option: Option, name: str, value: Value) -> None:
        """Check a class's parameter in its short form: `--task.label`, `--model.optimizer.init_args.lr`."""
        if not option.bases:
            what = f"there is nothing below {option.key}, which is {words.describe(option.hint)}."
            self._add(f"{option.key}.{name}", value.place, what)
        elif name == "class_path":
            self._choose(option, option.key, value)
        elif not name.startswith("dict_kwargs"):
            self.given.add(option.key)
            parameters = self._parameters(option, option.key, value.place)
            if parameters is not None:
                self._check_key(parameters, name.removeprefix("init_args."), value)

    def _choose(self, option: Option, key: str, value: Value) -> bool:
        """Remember the class that a class_path names; say whether there is such a class."""
        self.given.add(key)
        previous = self._chosen.pop(key, None)
        if not isinstance(value.content, str):
            self._add_wrong(key, value, words.describe(option.hint))
            return False
        if self._safe and not is_admitted(value.content):
            self._chosen[key] = _Chosen(None, None, value.place)
            if f"{key}.class_path" not in self._refused:  # not told yet
                self._add(key, value.place, refused_import(value.content), CURE)
            return False
        try:
            cls = find_class(value.content, option.bases)
        except UnknownClassError as error:
            self._add(key, value.place, str(error), error.cure)
            self._chosen[key] = _Chosen(None, None, value.place)  # its parameters cannot be told right from wrong
            return False
        if self._safe and not inspect.isclass(cls):
            self._add(key, value.place, f"{value.content} is a function, and {FLAG} calls none.", CURE)
            return False
        self._chosen[key] = _Chosen(cls, class_options(cls, key, option.hint), value.place)
        if previous is not None and previous.cls is not cls:
            self._drop_parameters(key, value.content)
        return True

    def _drop_parameters(self, key: str, class_path: str) -> None:
        """Tell which parameters jsonargparse drops because the block's new class does not take them."""
        options = self._chosen[key].options
        if options is None:
            return
        inside = f"{key}.init_args."
        taken = {option.key for option in options.leaves()}
        dropped = sorted(given for given in self.given if given.startswith(inside) and given not in taken)
        self.given.difference_update(dropped)
        if dropped:
            names = ", ".join(name.removeprefix(inside) for name in dropped)
            self.notes.append(f"{key}: {class_path} does not take {names} of the earlier class; left out.")

    def _parameters(self, option: Option, key: str, place: str) -> Option | None:
        """Return the parameters of the class that a block has by now; None if they are not known."""
        if key not in self._chosen:
            cls = self._implied_class(option)
            if cls is None:
                self._add(key, place, "class_path is missing.", f"Name the class: {key}.class_path.")
            self._chosen[key] = _Chosen(cls, class_options(cls, key, option.hint) if cls else None, place)
        return self._chosen[key].options

    def _implied_class(self, option: Option) -> Any:
        """Return the class that a block has without a class_path: the default's, or the only one there is."""
        if isinstance(option.default, dict) and "class_path" in option.default:
            return find_class(option.default["class_path"], option.bases)
        if len(option.bases) == 1 and words.is_closed(option.bases[0]):
            return option.bases[0]
        return None

    def _forget(self, prefix: str) -> None:
        for key in [key for key in self._chosen if key.startswith(prefix)]:
            del self._chosen[key]
        self.given = {key for key in self.given if not key.startswith(prefix)}


def _fits(hint: Any, value: Value) -> bool:
    """Let jsonargparse itself say whether it takes a value for a type."""
    probe = ArgumentParser(exit_on_error=False)
    probe.add_argument("--value", type=hint)
    try:
        if value.text is not None:
            probe.parse_args([f"--value={value.text}"])
        else:
            probe.parse_object({"value": value.plain()})
    except (ArgumentError, TypeError, ValueError):
        return False
    return True


def _value_cure(hint: Any, choices: list[str], value: Value) -> str:
    if choices:
        return suggest(str(value.content), choices).partition(" There is:")[0] if value.content is not None else ""
    if str in words.alternatives(hint) and isinstance(value.content, bool | int | float):
        return f'Put it in quotes: "{value.shown()}".'
    return ""
