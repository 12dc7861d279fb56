"""The strict reading of a verb's config: all problems of files and options at once, before anything is built."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Sequence
from dataclasses import is_dataclass

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from lit_hf.cli.arguments import read_arguments
from lit_hf.cli.blocks import Checker
from lit_hf.cli.help import requested_help
from lit_hf.cli.reading import read_file, read_option
from lit_hf.cli.safety import ADMITTED, DEFINED_IN
from lit_hf.cli.schema import known_classes, read_options, required_keys
from lit_hf.cli.words import is_closed
from lit_hf.errors import InputError, Problem, nearest, raise_problems

logger = logging.getLogger("lit_hf")

PARSER_KEY = re.compile(r'^Parser key "([^"]+)":?\s*')


def parse(parser: ArgumentParser, argv: Sequence[str], safe: bool = False) -> Namespace:
    """Parse a verb's options and config files.

    What jsonargparse accepts is accepted, with the same result: later files and options win, and blocks merge. What it
    cannot take is told completely, where jsonargparse would stop at the first and speak of union types.

    Args:
        parser: The verb's parser.
        argv: What was typed after the verb.
        safe: Take the config as data: nothing is imported, run or fetched but what is admitted.

    Returns:
        The parsed config, defaults included.

    Raises:
        InputError: With everything that is wrong.
        SystemExit: After `--help` and `--print_config`.
    """
    if asked := requested_help(parser, argv):
        print(asked, end="")
        raise SystemExit(0)
    _configure(parser, safe)
    notes = check(parser, argv, safe)
    try:
        config = parser.parse_args(list(argv))
    except ArgumentError as error:
        raise InputError(_translate(error)) from error
    for note in notes:
        logger.info(note)
    return config


def instantiate(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Make the objects of a parsed config.

    Raises:
        InputError: If a class does not take its parameters' values together.
        Exception: What else a class raised itself, without what jsonargparse wrapped it in.
    """
    try:
        return parser.instantiate_classes(config)
    except Exception as error:
        cause, place = _unwrap(error), _place(config, str(error))
        # bitsandbytes' config looks a dtype up in torch by whatever name is given
        if isinstance(cause, TypeError | ValueError) or (place and isinstance(cause, AttributeError)):
            raise InputError(Problem(place, str(cause).strip())) from error
        raise cause from None


def _place(config: Namespace, text: str) -> str:
    """Return the key of the class that jsonargparse's words speak of; empty where they name none, or one of several."""
    named = re.search(r"class_path[ =]'([\w.]+)'", text)
    keys = [key for key, value in config.items() if key.endswith(".class_path") and named and value == named[1]]
    return keys[0].removesuffix(".class_path") if len(keys) == 1 else ""


def _unwrap(error: BaseException) -> BaseException:
    """Return the error below those that jsonargparse raised because of it."""
    while error.__cause__ is not None and error.__traceback__ is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not str(frame.f_globals.get("__name__")).startswith("jsonargparse."):
            break
        error = error.__cause__
    return error


def _configure(parser: ArgumentParser, safe: bool) -> None:
    parser.exit_on_error = False
    bases = {base for option in read_options(parser).leaves() for base in option.bases}
    set_parsing_settings(
        # Lightning switches the reading of remote configs on; a config can name code to run.
        config_read_mode_fsspec_enabled=False,
        config_read_mode_urls_enabled=False,
        # a denylist at all makes jsonargparse enforce its own: os, subprocess and the like
        import_path_denylist=["*"] if safe else [],
        import_path_allowlist=[*ADMITTED, *DEFINED_IN] if safe else [],
        # jsonargparse takes no subclass of a dataclass by class_path unless it is told to; quantization configs are.
        subclasses_enabled=[base for base in bases if is_dataclass(base) and not is_closed(base)],
    )


def check(parser: ArgumentParser, argv: Sequence[str], safe: bool = False) -> list[str]:
    """Check a command line and the config files that it names.

    Args:
        parser: The verb's parser.
        argv: What was typed after the verb.
        safe: Refuse what would run or fetch something that is not admitted.

    Returns:
        Notes for the user, where nothing is wrong.

    Raises:
        InputError: With everything that is wrong.
    """
    arguments, problems = read_arguments(argv)
    options = read_options(parser)
    checker = Checker(options, safe)
    for argument in arguments:
        if argument.key == "config":
            problems += _check_file(argument.text, checker)
        else:
            checker.check_option(argument.key, read_option(argument.text))
    if not problems:  # What seems to be missing may be in a file that could not be read.
        problems += _missing(parser, checker.given)
        checker.check_required_parameters()
    raise_problems(problems + checker.problems)
    return checker.notes


def _check_file(path: str, checker: Checker) -> list[Problem]:
    """Check a config file; return what keeps it from being read."""
    try:
        value, repeated = read_file(path)
    except InputError as error:
        return list(error.problems)
    checker.problems.extend(repeated)
    checker.check_file(value)
    return []


def _missing(parser: ArgumentParser, given: set[str]) -> list[Problem]:
    leaves = {option.key: option for option in read_options(parser).leaves()}
    problems = []
    for key in required_keys(parser):
        if key not in given:
            known = known_classes(leaves[key].bases) if key in leaves else []
            problems.append(Problem(key, "is missing.", nearest("", known) if known else ""))
    return problems


def _translate(error: ArgumentError) -> Problem:
    """Tell in one sentence what only jsonargparse itself found."""
    text = str(error)
    match = PARSER_KEY.match(text)
    lines = [line.strip(" -") for line in text[match.end() if match else 0 :].splitlines() if line.strip()]
    what = next((line for line in lines if not line.startswith(("Does not validate", "Subtypes:", "Errors:"))), text)
    return Problem(match[1] if match else "", what)
