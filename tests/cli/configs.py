"""Config files of the tests, and what is said to be wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_hf.cli.config import parse
from lit_hf.errors import InputError

TASK = "task: {class_path: TextClassification, init_args: {text: sentence}}\n"


LISTED = (
    TASK + "data:\n  mixing: interleave\n  source:\n  - {train: a.jsonl, limit: {train: 3}}\n"
    "  - path: org/rows\n    columns: {sentence: translation.en}\n    weight: 2\n"
)


def problems(parser, *files, options=()):
    """Write the files, parse them with the options, and return what is said to be wrong."""
    with pytest.raises(InputError) as caught:
        parse(parser, [*write(*files), *options])
    return [(problem.where, problem.what, problem.cure) for problem in caught.value.problems]


def write(*files):
    arguments = []
    for name, text in zip("abc", files, strict=False):
        Path(f"{name}.yaml").write_text(text, encoding="utf-8")
        arguments += ["-c", f"{name}.yaml"]
    return arguments
