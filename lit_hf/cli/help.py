"""The help of a verb, for people: our own options first, one short line each, Lightning's long tail after."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from jsonargparse import ArgumentParser

from lit_hf.cli import words
from lit_hf.cli.arguments import read_arguments
from lit_hf.cli.schema import Option, UnknownClassError, class_options, find_class, known_classes, read_options, suggest
from lit_hf.cli.verbs import VERBS
from lit_hf.errors import InputError, Problem

EXAMPLES = {
    "fit": (
        "lit-hf fit -c configs/quickstart.yaml",
        "lit-hf fit -c task.yaml -c lora.yaml --model.checkpoint bert-base-uncased --data.batch_size 16",
    ),
    "inspect": ("lit-hf inspect -c configs/quickstart.yaml", "lit-hf inspect -c task.yaml -n 5 --split validation"),
    "plan": ("lit-hf plan -c task.yaml", "lit-hf plan -c task.yaml -c lora.yaml --devices 8 --nodes 4 --gpu h100-80gb"),
    "validate": ("lit-hf validate runs/quickstart", "lit-hf validate runs/quickstart --data.eval_batch_size 16"),
    "test": ("lit-hf test runs/quickstart", "lit-hf test runs/quickstart --trainer.precision bf16-mixed"),
}

GENERAL = (
    ("-c, --config <file>", "config file (YAML); give several, later ones and options win"),
    ("--print_config", "show the whole config as it would be used, and stop"),
    ("--safe-config", "take the config as data: import, run and fetch nothing but what is known to be harmless"),
    ("--debug", "show tracebacks and the libraries' own messages"),
    ("-h, --help", "show this help"),
)

OWN = {
    "fit": (("--allow-inexact-resume", "resume with changed settings or data, though the run will not end the same"),),
    "inspect": (
        ("-n <rows>", "how many rows to show (int, default 3)"),
        ("--split <name>", "of which split (train|validation|test, default train)"),
    ),
    "plan": (
        ("--gpu <name>", "plan for that GPU, such as h100-80gb (default: the one here, else the CPU)"),
        ("--devices <devices>", "devices of a machine (int, default: those of trainer.devices)"),
        ("--nodes <machines>", "machines (int, default: trainer.num_nodes)"),
        ("--efficiency <share>", "share of the peak rate that is reached (float, default 0.4, of a CPU 0.5)"),
        ("--network <Gbit/s>", "of each device to other machines (float, default: that of the GPU's usual machine)"),
        ("--no-data", "do not read the data; every row is taken to be of the greatest length"),
        ("--no-changes", "do not try changes that need less memory"),
        ("--json", "print JSON: bytes, seconds, counts"),
    ),
}
"""The options that only one verb has."""

HELP_SUFFIX = ".help"

FLAG_WIDTH = 34
"""Columns of an option; a longer one has a line of its own."""

NARROWEST, WIDEST = 80, 100
"""Columns of the whole help."""

PURPOSES = {"seed_everything": "Seed of all that is random"}
"""Where a library's own words say less."""

MARKUP = re.compile(r":\w+:`~?\.?(?:[\w.]*\.)?(\w+)`|``?([^`]*)``?")
SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)\.(?=\s+[A-Z(`])")
DEFAULT_NOTE = re.compile(r"\s*Defaults?( is|:| to)\s.*", re.DOTALL)


def requested_help(parser: ArgumentParser, argv: Sequence[str]) -> str:
    """Return the help that a command line asks for, or an empty text where it asks for none.

    Args:
        parser: The verb's parser; its `prog` ends with the verb.
        argv: What was typed after the verb.

    Raises:
        InputError: If help is asked for an option or a class that is not there.
    """
    if any(word in ("-h", "--help") for word in argv):
        verb = parser.prog.rpartition(" ")[2]
        return verb_help(parser, verb if verb in EXAMPLES else "fit")
    arguments, _ = read_arguments(argv)
    for argument in arguments:
        if argument.key.endswith(HELP_SUFFIX):
            return class_help(parser, argument.key.removesuffix(HELP_SUFFIX), argument.text)
    return ""


def verb_help(parser: ArgumentParser, verb: str) -> str:
    """Return the help of fit, inspect, plan, validate or test.

    Args:
        parser: The verb's parser.
        verb: The verb.
    """
    page = _Page()
    options = read_options(parser).options
    given = "-c <file> [-c <file> ...]" if verb in ("fit", "inspect", "plan") else "<run folder>"
    page.add(f"usage: lit-hf {verb} {given} [--key value ...]")
    page.add("", VERBS[verb], "", "examples:", *(f"  {example}" for example in EXAMPLES[verb]))
    page.add("", "Every option is a key of the config file, too: --data.batch_size 16 is data: {batch_size: 16}.", "")
    for flag, purpose in (*OWN.get(verb, ()), *GENERAL):
        page.add_line(flag, purpose)
    page.add_heading("task", "what is to be learnt: --task <class>, and the options of that class")
    _add_tasks(page, options["task"])
    page.add_heading("model", "which model, and how it is trained")
    page.add_options(options["model"].leaves())
    page.add_heading("data", "which rows, and how they become batches")
    page.add_options(options["data"].leaves())
    page.add_heading("run", "the run's folder and what is kept there")
    single = [option for option in options.values() if not option.options and option.name != "task"]
    page.add_options(sorted(single, key=lambda option: option.name == "seed_everything"))
    page.add_heading("trainer", "Lightning's own options")
    page.add_options(options["trainer"].leaves())
    page.add("", "A class is an import path or a known name; .help shows which there are, and what one takes:")
    page.add("  lit-hf fit --model.optimizer.help", "  lit-hf fit --model.adapter.help peft.LoraConfig")
    return page.text()


def class_help(parser: ArgumentParser, key: str, name: str) -> str:
    """Return the help of an option that takes a class: the classes that are known, or the options of one.

    Args:
        parser: The verb's parser.
        key: The option's key.
        name: The class, or an empty text for a list of those known.

    Raises:
        InputError: If there is no such option or class.
    """
    takers = {option.key: option for option in read_options(parser).leaves() if option.bases}
    if key not in takers:
        raise InputError(Problem(key, "takes no class.", suggest(key, takers)))
    option = takers[key]
    page = _Page()
    if not name and not words.is_closed(option.bases[0]):
        page.add(f"--{key} takes {words.describe(option.hint)}. Known here:", "")
        for known, cls in sorted(known_classes(option.bases).items()):
            page.add_line(known, _summary(cls))
        return page.text()
    try:
        cls = find_class(name, option.bases) if name else option.bases[0]
    except UnknownClassError as error:
        raise InputError(Problem(key, str(error), error.cure)) from None
    page.add(f"{cls.__module__}.{cls.__qualname__}: {_summary(cls)}", "")
    parameters = class_options(cls, key, option.hint)
    page.add_options(parameters.leaves() if parameters else ())
    return page.text()


def _add_tasks(page: _Page, option: Option) -> None:
    for name, cls in sorted(known_classes(option.bases).items()):
        page.add_text(f"{name}: {_summary(cls)}.")
        parameters = class_options(cls, option.key, option.hint)
        page.add_options(parameters.leaves() if parameters else (), indent=4)


class _Page:
    """Lines of help, as wide as the terminal within limits."""

    def __init__(self) -> None:
        columns = shutil.get_terminal_size(fallback=(WIDEST, 24)).columns
        self._width = min(max(columns, NARROWEST), WIDEST)
        self._lines: list[str] = []

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def add(self, *lines: str) -> None:
        self._lines.extend(lines)

    def add_text(self, text: str) -> None:
        self.add(*textwrap.wrap(text, self._width, initial_indent="  ", subsequent_indent="    "))

    def add_heading(self, name: str, purpose: str) -> None:
        self.add("", f"{name}: {purpose}")

    def add_options(self, options: Iterable[Option], indent: int = 2) -> None:
        for option in options:
            self.add_line(f"--{option.key.replace('.init_args.', '.')}", _purpose(option), indent)

    def add_line(self, flag: str, purpose: str, indent: int = 2) -> None:
        head = f"{' ' * indent}{flag}"
        column = FLAG_WIDTH + 2
        if len(head) >= column and purpose:
            self.add(head)
            head = ""
        filled = textwrap.wrap(purpose, self._width - column) or [""]
        self.add(f"{head:<{column}}{filled[0]}".rstrip(), *(" " * column + line for line in filled[1:]))


def _purpose(option: Option) -> str:
    """Return what an option is for in a sentence, its type and its default."""
    own = (option.action.help or "") if option.action else ""
    text = PURPOSES.get(option.key) or _first_sentence(own)
    default = "required" if option.required else _default(option.default)
    note = ", ".join(filter(None, (words.short(option.hint), default)))
    return f"{text} ({note})".strip()


def _default(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return f"default {str(value).lower()}"
    if isinstance(value, dict) and "class_path" in value:
        given = "".join(f", {name}: {argument}" for name, argument in value.get("init_args", {}).items())
        return f"default {value['class_path']}{given}"
    return f"default {value}"


def _summary(cls: type) -> str:
    return _first_sentence(inspect.getdoc(cls) or "") if not _has_generated_doc(cls) else ""


def _has_generated_doc(cls: type) -> bool:
    """Tell the docstring that `dataclass` makes of the signature."""
    return (cls.__doc__ or "").startswith(f"{cls.__name__}(")


def _first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, without markup, its full stop and what it says of the default."""
    paragraph = DEFAULT_NOTE.sub("", text).strip().partition("\n\n")[0]
    plain = MARKUP.sub(lambda match: match[1] or match[2] or "", " ".join(paragraph.split()))
    return SENTENCE_END.split(plain)[0].rstrip(". ")
