from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.catalog import CURVES, ON_CPU, ON_GPU, find
from benchmarks.interleaving import rounds
from benchmarks.peers import MODULES
from benchmarks.preparing import Prepared, config_of
from benchmarks.workloads.base import AUTO_CLASSES, texts
from lit_hf.cli.checks import quantization_problems
from tests.conftest import ROOT

EVERYTHING = {**ON_CPU, **CURVES, **ON_GPU}


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_workload_is_found_by_its_name_and_its_peers_are_there(name: str) -> None:
    workload = find(name)

    assert workload.name == name
    assert set(workload.peers) <= set(MODULES)
    assert workload.kind in AUTO_CLASSES


@pytest.mark.parametrize("name", [name for name, workload in EVERYTHING.items() if workload.nf4])
def test_weights_of_4_bits_are_trained_in_a_precision_that_takes_them(name: str, tmp_path: Path) -> None:
    config = config_of(find(name), Prepared(tmp_path))

    assert list(quantization_problems(config["trainer"]["precision"])) == []


def test_names_do_not_clash() -> None:
    assert len(EVERYTHING) == len(ON_CPU) + len(CURVES) + len(ON_GPU)


@pytest.mark.parametrize("model", ["llama3_8b", "llama3_2_3b"])
def test_both_models_train_an_adapter_on_whole_and_on_quantized_weights(model: str) -> None:
    lora, qlora = ON_GPU[f"{model}_lora"], ON_GPU[f"{model}_qlora"]

    assert (lora.nf4, qlora.nf4) == (False, True)
    assert (qlora.lora, qlora.batch_size) == (lora.lora, lora.batch_size)


def test_points_of_a_curve_end_in_their_value() -> None:
    assert all(re.fullmatch(r"[a-z]+_\d+", name) for name in CURVES)


def test_all_take_turns_and_the_direction_changes_with_the_round() -> None:
    assert list(rounds(("a", "b"), 2)) == [(0, "lit_hf"), (0, "a"), (0, "b"), (1, "b"), (1, "a"), (1, "lit_hf")]


def test_texts_are_found_wherever_they_stand() -> None:
    rows = {"train": [{"prompt": [{"role": "user", "content": "hello"}], "n": 1}], "validation": [{"text": "other"}]}

    assert list(texts(rows)) == ["user", "hello"]


def test_the_peers_are_pinned() -> None:
    lines = [
        line
        for name in ("requirements.txt", "requirements-bare.txt", "requirements-plot.txt")
        for line in (ROOT / "benchmarks" / name).read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    shared = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()}

    assert [line for line in lines if "==" not in line and line not in shared] == []
