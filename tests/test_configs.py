"""Every shipped config is parsed by the real parser, and its task, data and model are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_hf.cli.trainer import TrainerCLI
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
QUICKSTART = CONFIGS / "quickstart.yaml"
OVERLAYS = {"methods", "hardware"}
"""Folders of configs that go on top of one with a task and data."""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield from leaves({f"{key}[{index}]": item for index, item in enumerate(value)}, prefix)
        else:
            yield f"{prefix}{key}", value


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_parses_and_nothing_of_it_is_lost(path: Path) -> None:
    below = [QUICKSTART] if path.parent.name in OVERLAYS else []
    written = dict(leaves(yaml.safe_load(path.read_text(encoding="utf-8"))))

    cli = TrainerCLI([word for file in (*below, path) for word in ("--config", str(file))])

    read = dict(leaves(cli.resolved))
    lost = {
        key: (value, read.get(key))
        for key, value in written.items()
        # the parser completes a short class_path
        if not (read.get(key) == value or (key.endswith("class_path") and str(read.get(key)).endswith(f".{value}")))
    }
    assert lost == {}
    assert cli.model.task is cli.datamodule.task is cli.task
