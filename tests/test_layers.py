"""Rules of the house that import-linter cannot say; its contracts are in pyproject.toml."""

from __future__ import annotations

import ast
import configparser
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

PACKAGE, TESTS = ROOT / "lit_hf", ROOT / "tests"
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("lit_hf", include_external_packages=True)


def test_every_room_is_ruled_by_a_contract() -> None:
    ruled = {
        module for contract in CONTRACTS for key in ("source_modules", "modules") for module in contract.get(key, ())
    }
    rooms = {f"lit_hf.{path.stem}" for path in PACKAGE.iterdir() if _is_module(path)}

    assert rooms - ruled - {"lit_hf.cli", "lit_hf.__main__"} == set()


def test_no_contract_has_exceptions() -> None:
    assert [contract["name"] for contract in CONTRACTS if "ignore_imports" in contract] == []


def test_what_is_imported_is_declared(graph: grimp.ImportGraph) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    declared = {Requirement(line).name for line in config["options"]["install_requires"].split()}
    imported = {name for name in graph.modules if graph.is_module_squashed(name)} - sys.stdlib_module_names

    assert imported - {"yaml" if name == "PyYAML" else name for name in declared} == set()


def test_lightning_goes_by_one_name(graph: grimp.ImportGraph) -> None:
    assert {"pytorch_lightning", "lightning_fabric"} & graph.modules == set()


def test_the_package_imports_no_test_and_no_benchmark(graph: grimp.ImportGraph) -> None:
    assert {"tests", "benchmarks", "pytest"} & graph.modules == set()


def test_no_module_is_a_drawer_for_anything() -> None:
    drawers = {"utils", "util", "helpers", "common", "misc"}

    assert [str(path) for path in PACKAGE.rglob("*") if path.stem in drawers] == []


def test_no_modules_import_each_other(graph: grimp.ImportGraph) -> None:
    # a package's face hands names on from its modules, and imports nothing else
    modules = {name for name in graph.modules if name.startswith("lit_hf.") and not graph.find_children(name)}
    circles = [
        (name, other)
        for name in sorted(modules)
        for other in sorted(graph.find_modules_directly_imported_by(name) & modules)
        if graph.chain_exists(importer=other, imported=name)
    ]

    assert circles == []


def test_every_file_has_a_test_of_its_name() -> None:
    files = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__"))
    missing = [str(path) for path in files if not (TESTS / path.parent / f"test_{path.name}").is_file()]

    assert missing == []


def test_every_test_of_a_room_has_a_file_of_its_name_or_says_what_it_is_about() -> None:
    found = [
        path
        for room in PACKAGE.iterdir()
        if room.is_dir() and (TESTS / room.name).is_dir()
        for path in (TESTS / room.name).rglob("test_*.py")
        if not (PACKAGE / path.relative_to(TESTS).parent / path.name.removeprefix("test_")).is_file()
        and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]

    assert found == []


def _is_module(path: Path) -> bool:
    return (path / "__init__.py").is_file() or (path.suffix == ".py" and path.stem != "__init__")
