"""Real data that is on every machine: the functions of Python's own standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    "asyncio",
    "collections",
    "email",
    "http",
    "importlib",
    "logging",
    "multiprocessing",
    "unittest",
    "urllib",
    "xml",
)

SHORTEST = 4
"""Lines of the shortest function that is taken; shorter ones say too little about where they come from."""


def functions() -> Iterator[dict[str, str]]:
    """Yield the source of every function of ten packages of the standard library, with the package's name.

    The rows are those of the running Python, in a fixed order; a function that several packages share word for word is
    left out.

    Yields:
        `{"code": source of a function, "package": name of its package}`.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    packages: dict[str, set[str]] = {}
    for package in PACKAGES:
        for code in _package_functions(library / package):
            packages.setdefault(code, set()).add(package)
    for code, found_in in packages.items():
        if len(found_in) == 1:
            yield {"code": code, "package": next(iter(found_in))}


def _package_functions(package: Path) -> Iterator[str]:
    for file in sorted(package.rglob("*.py")):
        if not {"test", "tests"} & set(file.relative_to(package).parts):
            yield from _file_functions(file.read_text(encoding="utf-8"))


def _file_functions(source: str) -> Iterator[str]:
    """Yield the functions and methods of a module, dedented; not those inside of other functions."""
    lines = source.split("\n")  # as the parser counts them: a form feed ends no line
    parts: list[ast.AST] = [ast.parse(source)]
    while parts:
        node = parts.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if node.end_lineno is not None and node.end_lineno - first + 1 >= SHORTEST:
                indent = " " * node.col_offset
                yield "\n".join(line.removeprefix(indent) for line in lines[first - 1 : node.end_lineno]) + "\n"
        else:
            parts = [*ast.iter_child_nodes(node), *parts]
