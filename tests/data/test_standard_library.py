from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter

from lit_hf.data.sources import Source, load_splits
from lit_hf.data.standard_library import PACKAGES, functions


def test_every_row_is_a_function_of_a_named_package() -> None:
    rows = list(functions())

    assert set(rows[0]) == {"code", "package"}
    assert all(isinstance(ast.parse(row["code"]).body[0], (ast.FunctionDef, ast.AsyncFunctionDef)) for row in rows)


def test_every_package_has_rows_enough_to_learn_from() -> None:
    counts = Counter(row["package"] for row in functions())

    assert set(counts) == set(PACKAGES)
    assert len(PACKAGES) == 10
    assert sum(counts.values()) > 2500
    assert min(counts.values()) > 50
    assert max(counts.values()) < sum(counts.values()) / 4


def test_methods_are_there_dedented_and_with_their_decorators() -> None:
    from collections import UserDict
    from email.message import Message
    from logging import Formatter

    codes = {row["code"] for row in functions()}

    for function in (Formatter.formatException, UserDict.fromkeys, Message.get_all):
        assert textwrap.dedent(inspect.getsource(function)) in codes


def test_no_function_is_there_twice() -> None:
    counts = Counter(row["code"] for row in functions())

    assert counts.most_common(1)[0][1] == 1


def test_the_order_is_fixed() -> None:
    assert list(functions()) == list(functions())


def test_it_is_a_source() -> None:
    splits = load_splits(Source(generator=functions, limit=300))

    assert set(splits["train"].rows["package"]) == set(PACKAGES)
    assert splits["train"].place(0).startswith("lit_hf.data.standard_library.functions row ")
