"""What the verbs without a trainer share: options that fail in one line, and the run that they are about."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from lit_hf.errors import InputError, Problem
from lit_hf.run import RunFolder, check_name, run_name


class Parser(argparse.ArgumentParser):
    """An argparse parser of one verb.

    Args:
        verb: The verb.
        description: What it does.
        add_help: Whether it has help; not where another parser reads the rest of the options.
    """

    def __init__(self, verb: str, description: str, add_help: bool = True) -> None:
        super().__init__(f"lit-hf {verb}", description=description, allow_abbrev=False, add_help=add_help)

    def error(self, message: str) -> NoReturn:
        """Fail in one line, as all bad input does."""
        raise InputError(Problem("", message, f"See {self.prog} --help."))

    def add_folder(self, kinds: str) -> None:
        """Add the options that say which folder: by place, as `--run`, or by the config of its run."""
        self.add_argument("folder", nargs="?", help=kinds)
        self.add_argument("--run", metavar="FOLDER", help="the same, as an option")
        self.add_argument(
            "-c", "--config", action="append", default=[], help="config of the run, instead; give it as often as to fit"
        )

    def add_safe_config(self) -> None:
        """Add the option that takes a run's config as data."""
        self.add_argument(
            "--safe-config", action="store_true", help="import, run and fetch nothing but what is known to be harmless"
        )

    def folder(self, options: argparse.Namespace) -> str:
        """Return the folder that was given in one of the ways."""
        given = [value for value in (options.folder, options.run, options.config) if value]
        if len(given) != 1:
            self.error("give one folder: FOLDER, --run FOLDER or --config FILE.")
        return str(run_folder(options.config).path) if options.config else given[0]


def positive(text: str) -> int:
    """Read an option that is a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0.")
    return number


def run_folder(configs: Sequence[str | Path], name: str | None = None, output_dir: str | None = None) -> RunFolder:
    """Return the folder of the run that these config files start.

    Args:
        configs: The files, later ones over earlier ones.
        name: Name of the run, over that of the files.
        output_dir: Folder of all runs, over that of the files.

    Raises:
        InputError: If a file cannot be read, or the name is none.
    """
    keys: dict[str, str | None] = {}
    for config in map(Path, configs):
        try:
            keys |= yaml.safe_load(config.read_text("utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError) as error:
            what = "the config cannot be read: " + " ".join(str(error).split())
            raise InputError(Problem(str(config), what)) from error
    name = check_name(name or keys.get("name") or run_name(configs))
    return RunFolder(Path(output_dir or keys.get("output_dir") or "runs") / name)
