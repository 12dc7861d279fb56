"""All the faults that the plain stack is silent or cryptic about, each made for real: what is said, the exit code, and
that nothing is lost.

The numbers are those of a list of faults, by what the plain stack does: "silent" 1 to 22, "cryptic or late" 23 to 45.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_hf.checkpoints import found, verify
from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from tests.conversations import save_chat_model
from tests.faults import CRYPTIC, ROWS, SILENT, STATUSES, Fault, lines, run

ONE_STEP = ["--trainer.max_steps", "1"]


@pytest.fixture(scope="session")
def work(tmp_path_factory, tiny_text_model) -> tuple[Path, Path]:
    """A folder with data, models, a config, and a run of one epoch, four steps; and a copy of it."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(tiny_text_model, folder / "base")
    save_chat_model(folder / "decoder")
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(lines(ROWS))
    (folder / "run.yaml").write_text(yaml.safe_dump(configured({})))
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "-c", "run.yaml", "--trainer.max_epochs", "1"]) == 0
    finally:
        os.chdir(before)
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    return folder, copy


def configured(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with some dotted keys of it changed."""
    config: dict[str, Any] = {
        "name": "tiny",
        "task": {"class_path": "TextClassification"},
        "model": {"checkpoint": "base"},
        "data": {"source": {"train": "train.jsonl", "validation": "validation.jsonl"}, "batch_size": 2},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False},
    }
    for key, value in changes.items():
        block = config
        *path, last = key.split(".")
        for part in path:
            block = block[part]
        block[last] = value
    return config


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(monkeypatch, work, hub):
    """The folder as it was at first, the working directory; it is the same one, as a run knows its files by path."""
    folder, copy = work
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_TOKEN", hub.uploads.token)
    for status in STATUSES:
        hub.fail(f"org/status-{status}", status)
    return folder


def prepared(fault: Fault, folder: Path) -> list[str]:
    """Make the fault, and return the command that meets it."""
    for name, content in fault.files.items():
        data = lines(content) if isinstance(content, list) else content
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    if not fault.resumes:
        shutil.rmtree(folder / "runs" / "tiny")
    (folder / "run.yaml").write_text(yaml.safe_dump(configured(fault.config)))
    fault.make(folder)
    if fault.verb is not None:
        return fault.verb
    return ["fit", "-c", "run.yaml", *(ONE_STEP if fault.code == 0 and not fault.resumes else []), *fault.options]


@pytest.mark.parametrize("fault", [*SILENT, *CRYPTIC], ids=lambda fault: f"{fault.number} {fault.name}")
def test_a_fault_is_told_and_nothing_is_lost(fault, folder, capfd):
    command = prepared(fault, folder)
    before = contents(folder)
    checkpoints = {path: contents(path) for path in found(run(folder).checkpoints)}

    code = main(command)

    told = capfd.readouterr().err
    assert code == fault.code, told
    assert [part for part in fault.told if part not in told] == [], told
    assert "Traceback" not in told and "thrown while requesting" not in told
    fault.check(folder)
    after = contents(folder)
    assert {name: after.get(name) for name in before if "/tiny/" not in name} == {
        name: content for name, content in before.items() if "/tiny/" not in name
    }
    if (fault.code == 2 and not fault.late) or fault.number == 20 or fault.verb is not None:
        assert after == before
    if fault.code == 3 and fault.verb is None:
        assert {path: contents(path) for path in checkpoints} == checkpoints
        assert run(folder).read_record()["state"] == "failed"
        (folder / "run.yaml").write_text(yaml.safe_dump(configured({})))
        assert main(["fit", "-c", "run.yaml"]) == 0  # the same command, without the fault
        assert run(folder).read_record()["steps"] == 8


# what needs processes of its own


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "lit_hf", "fit", "-c", "run.yaml", *options]


def start(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Start a fit in two processes that does not end by itself, from a run of one epoch."""
    together = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1", "--name", "together"]
    endless = ["--trainer.max_epochs", "100000", "--checkpoint_every", "1"]
    return subprocess.Popen(
        command(*together, *endless, *options), stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def children(pid: int) -> list[int]:
    """Return the processes that a process started and that run."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not what():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.slow
def test_41_wandb_without_a_network_goes_offline(folder):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    options = ["--name", "tracked", "--tracker", "wandb", *ONE_STEP]
    done = subprocess.run(command(*options), env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert "W&B is offline, as http://127.0.0.1:9 does not answer." in done.stderr
    assert (folder / "runs" / "tracked" / "export" / "model.safetensors").is_file()


@pytest.mark.slow
def test_42_a_port_in_use_is_told_before_a_rank_is_started(folder):
    before = contents(folder)
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = start(folder, MASTER_PORT=port)
        told = process.communicate(timeout=200)[1]
    assert process.returncode == 2, told
    assert f"MASTER_PORT: the ranks cannot meet at port {port}: Address already in use." in told
    assert contents(folder) == before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")
@pytest.mark.parametrize("victim", ["the other", "the first"])
def test_43_a_rank_that_is_killed_is_named_and_the_rest_is_ended(folder, victim):
    process = start(folder)
    checkpoints = folder / "runs" / "together" / "checkpoints"
    wait_for(lambda: len(found(checkpoints)) > 0, process)
    ranks = [pid for pid in children(process.pid) if b"lit_hf" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(ranks) == 1
    os.kill(process.pid if victim == "the first" else ranks[0], signal.SIGKILL)
    told = process.communicate(timeout=100)[1]  # it ends only when both ranks have closed it
    for _ in range(100):  # a rank that has closed all its files may still be on its way out
        if not is_running(ranks[0]):
            break
        time.sleep(0.1)
    assert not is_running(ranks[0])
    if victim == "the other":
        assert process.returncode == 3, told
        assert "rank 1: the process was killed by SIGKILL" in told
        assert "The last checkpoint is runs/together/checkpoints/step-" in told
        assert "Traceback" not in told
        assert RunFolder("runs/together").read_record()["state"] == "failed"
    newest, *_ = found(checkpoints)
    verify(newest)
