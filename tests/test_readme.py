"""The README's bash blocks are run, in their order, in a folder that holds the files which it shows."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lit_hf.cli.main import main
from lit_hf.cli.trainer import TrainerCLI
from lit_hf.cli.verbs import VERBS
from tests.conftest import ROOT
from tests.hub import Hub
from tests.uploads import Uploads

README = (ROOT / "README.md").read_text(encoding="utf-8")
FILE = re.compile(r"<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)```", re.DOTALL)
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.DOTALL | re.MULTILINE)
SMALLER = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--data.source.limit=500"]
"""Added to `lit-hf fit`, so that its runs take seconds."""


def commands(text: str) -> list[list[str]]:
    """Return the commands of a shell text as words, comments left out."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def recipe(target: str) -> list[list[str]]:
    """Return the `lit-hf` commands that `make` would run."""
    result = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return [["lit-hf", *words[1:]] for words in commands(result.stdout) if words[0].endswith("bin/lit-hf")]


def run(words: list[str]) -> None:
    """Run a command of `lit-hf` in this process."""
    assert words[0] == "lit-hf", f"the README shows a command that this test does not know: {words}"
    arguments = [*words[1:], *(SMALLER if words[1] == "fit" and "--help" not in words else [])]
    try:
        code = main(arguments)
    except SystemExit as exit:  # of --help and --print_config
        code = exit.code or 0
    assert code == 0, words


@pytest.mark.slow
def test_the_commands_of_the_readme_work(
    hub: Hub, uploads: Uploads, tiny_text_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_model("google-bert/bert-base-uncased", tiny_text_model)
    uploads.owners = {"your-name"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for file in FILE.finditer(README):
        Path(file["name"]).write_text(file["text"], encoding="utf-8")

    for words in (words for block in BLOCK.findall(README) for words in commands(block)):
        if words[0] == "make":
            for command in recipe(words[1]):
                run(command)
        else:
            run(words)

    assert {path.name for path in Path("runs").iterdir()} == {"quickstart", "reviews", "reviews-lora"}
    assert Path("predicted.jsonl").read_text(encoding="utf-8").count('"label"') == 2
    assert Path("reviews-model/model.safetensors").is_file()
    assert "model.safetensors" in uploads.repositories["your-name/reviews"].files()
    assert uploads.repositories["your-name/reviews"].private


def test_the_readme_s_table_has_all_verbs() -> None:
    rows = re.findall(r"^\| (`lit-hf .*?) \|", README, re.MULTILINE)

    assert sorted(verb for row in rows for verb in re.findall(r"`lit-hf (\w+)`", row)) == sorted(VERBS)


def test_the_whole_config_of_the_readme_parses(tmp_path: Path) -> None:
    config = tmp_path / "whole.yaml"
    config.write_text(next(file["text"] for file in FILE.finditer(README) if file["name"] == config.name), "utf-8")

    cli = TrainerCLI(["--config", str(config)])

    assert cli.run.path == Path("runs/reviews")
    assert cli.resolved["model"]["adapter"]["init_args"]["lora_alpha"] == 16


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/support-matrix.md"])
def test_the_keys_that_documents_name_are_there(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    keys = set(re.findall(r"`((?:model|data|trainer)(?:\.[a-z_]+)+)(?=[`:])", text))

    cli = TrainerCLI(["--config", str(ROOT / "configs/quickstart.yaml")])

    assert {key for key in keys if not _is_there(cli.resolved, key.split("."))} == set()


def _is_there(values: Any, names: list[str]) -> bool:
    return not names or (isinstance(values, Mapping) and names[0] in values and _is_there(values[names[0]], names[1:]))


def test_the_python_of_the_readme_compiles() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")


def test_the_links_of_the_readme_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)

    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
