# ruff: noqa: UP007, UP045 - unions written in the old way are types, too
import collections.abc
import dataclasses
import datetime
import enum
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest

from lit_hf.cli import words


class Base:
    pass


class Other:
    pass


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Settings:
    size: int = 1


@pytest.mark.parametrize(
    ("hint", "described", "short"),
    [
        (int, "a whole number", "int"),
        (int | None, "a whole number or null", "int"),
        (Optional[float], "a number or null", "number"),
        (Union[int, float, None], "a number or null", "number"),
        (bool, "true or false", "true|false"),
        (str | list[str] | None, "text, a list (text each) or null", "text|list"),
        (Literal["a", "b"] | None, "one of a, b or null", "a|b"),
        (dict[str, Any] | None, "a mapping or null", "mapping"),
        (dict[str, int], "a mapping (name: a whole number)", "mapping"),
        (list, "a list", "list"),
        (Any, "anything", "any"),
        (Path, "a path", "path"),
        (datetime.timedelta, "a time (days:hours:minutes:seconds)", "time"),
        (Base, "a Base by class_path", "class"),
        (Base | None, "a Base by class_path or null", "class"),
        (Settings | None, "a mapping (Settings) or null", "mapping"),
        (Callable[[Iterable], Base], "a Base by class_path", "class"),
        (collections.abc.Callable[[], int], "the import path of a function", "function"),
        (Colour, "one of RED, BLUE", "RED|BLUE"),
        (tuple[float, float], "a list (a number each)", "list"),
    ],
)
def test_types_in_words(hint, described, short):
    assert words.describe(hint) == described
    assert words.short(hint) == short


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (Base | None, [Base]),
        (list[Base] | Base | None, [Base]),
        (Union[str, Base, Other], [Base, Other]),
        (Callable[[Iterable], Base], [Base]),
        (Callable[[Iterable], Base | Other], [Base, Other]),
        (Callable[[], int], []),
        (str | int | float | dict[str, int] | Path | Colour | None, []),
    ],
)
def test_the_classes_that_a_type_is_made_of(hint, expected):
    assert words.classes(hint) == expected


def test_parameters_that_the_caller_passes():
    assert words.passed_parameters(Callable[[Iterable], Base]) == 1
    assert words.passed_parameters(Callable[[Iterable, int], Base] | None) == 2
    assert words.passed_parameters(Base) == 0


def test_choices_are_only_those_of_a_type_that_admits_nothing_else():
    assert words.choices(Union[Literal[64, 32], Literal["64", "bf16"], None]) == ["64", "32", "bf16"]
    assert words.choices(Literal["a"] | str) == []
    assert words.choices(Literal["a"] | int | None) == []


def test_text_is_a_value_unless_only_a_class_is_expected():
    assert words.admits_scalar(str | Base) and words.admits_scalar(Literal["a"] | Base)
    assert not words.admits_scalar(Base | bool | None)
