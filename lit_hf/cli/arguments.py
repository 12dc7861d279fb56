"""The command line of a verb: options in their order, before any of them is understood."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

from lit_hf.cli import safety
from lit_hf.errors import Problem
from lit_hf.run import RunFolder

CONFIG_FLAGS = ("-c", "--config")
SHORT_WITH_VALUE = re.compile(r"-c[^=-]")
NEGATIVE_NUMBER = re.compile(r"-\.?\d")


class Argument(NamedTuple):
    """One option.

    Attributes:
        key: Its dotted key, without dashes; `config` for a config file.
        text: Its value.
        append: Whether the value is added to a list (`--key+=value`).
    """

    key: str
    text: str
    append: bool = False


def read_arguments(argv: Sequence[str]) -> tuple[list[Argument], list[Problem]]:
    """Return the options of a command line, in order, and what cannot be one.

    Every option takes one value: `--key value` or `--key=value`; `--print_config` alone may stand without.
    """
    arguments: list[Argument] = []
    problems: list[Problem] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, has_value, text = word.partition("=")
        if SHORT_WITH_VALUE.match(word):
            flag, has_value, text = word[:2], "=", word[2:]
        if not flag.startswith("-") or flag in ("-", "--"):
            problems.append(Problem(word, "is not an option.", "Options are written --key value, or --key=value."))
            continue
        if flag == "--print_config":
            continue
        if not has_value:
            if flag.endswith(".help") and (not words or _is_flag(words[0])):
                arguments.append(Argument(flag.lstrip("-"), ""))
                continue
            if not words or _is_flag(words[0]):
                problems.append(Problem(flag.lstrip("-"), "the value is missing.", f"Write {flag} <value>."))
                continue
            text = words.pop(0)
        key = "config" if flag in CONFIG_FLAGS else flag.lstrip("-")
        arguments.append(Argument(key.removesuffix("+"), text, key.endswith("+")))
    return arguments, problems


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not NEGATIVE_NUMBER.match(word) and len(word) > 1


def with_run_config(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with a leading run folder, or `--run FOLDER`, replaced by that run's config.

    Raises:
        InputError: If there is no run in the folder.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run")
    parser.add_argument(safety.FLAG, action="store_true", dest="safe")
    given, rest = parser.parse_known_args(arguments)
    folder = given.run
    if folder is None and rest and not rest[0].startswith("-"):
        folder, *rest = rest
    flags = [safety.FLAG] if given.safe else []
    if folder is None:
        return [*rest, *flags]
    run = RunFolder(folder)
    named = run.read_config().get("name")
    place = run.path.resolve()
    moved = [] if named == place.name else ["--name", place.name]
    return ["-c", str(run.config), *rest, "--output_dir", str(place.parent), *moved, *flags]
