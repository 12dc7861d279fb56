from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from wandb.proto import wandb_internal_pb2

from lit_hf.errors import InputError
from lit_hf.run import RunFolder
from lit_hf.training.tracking import MetricsFile, trackers
from lit_hf.training.wandb_files import STEP, _records
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer

CONFIG = {"seed_everything": 7, "data": {"batch_size": 4, "columns": ["a", "b"]}, "model": {"adapter": None}}
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "sst2")
    run.create()
    return run


# metrics.csv


def test_values_are_written_exactly(run: RunFolder) -> None:
    logger = MetricsFile(run)

    logger.log_metrics({"epoch": 0, "a": 0.1 + 0.2, "b": 1e-300}, step=0)
    logger.log_metrics({"epoch": 1, "a": float("nan"), "b": 1 / 3}, step=10)

    assert run.metrics.read_text() == (
        "step,epoch,a,b\n0,0,0.30000000000000004,1e-300\n10,1,nan,0.3333333333333333\n"
    )  # fmt: skip


def test_a_row_is_on_disk_at_once_and_holds_all_of_its_step(run: RunFolder) -> None:
    logger = MetricsFile(run)

    logger.log_metrics({"epoch": 0, "loss": 0.5}, step=3)
    assert run.metrics.read_text() == "step,epoch,loss\n3,0,0.5\n"
    logger.log_metrics({"epoch": 0, "loss": 0.25, "lr": 1.0}, step=3)
    assert run.metrics.read_text() == "step,epoch,loss,lr\n3,0,0.25,1.0\n"
    logger.log_metrics({"loss": 0.5}, step=3)
    assert run.metrics.read_text() == "step,epoch,loss,lr\n3,0,0.5,1.0\n"


def test_a_new_metric_widens_the_earlier_rows(run: RunFolder) -> None:
    logger = MetricsFile(run)

    logger.log_metrics({"epoch": 0, "loss": 0.5}, step=0)
    logger.log_metrics({"epoch": 0, "loss": 0.4}, step=1)
    logger.log_metrics({"epoch": 0, "val, first": 0.9, "grad": 1.5}, step=1)
    logger.log_metrics({"epoch": 1, "loss": 0.3}, step=2)

    with run.metrics.open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["step", "epoch", "loss", "val, first", "grad"],
            ["0", "0", "0.5", "", ""],
            ["1", "0", "0.4", "0.9", "1.5"],
            ["2", "1", "0.3", "", ""],
        ]
    assert [path.name for path in run.path.iterdir() if path.is_file()] == ["metrics.csv"]


def test_another_process_goes_on_where_the_file_ends(run: RunFolder) -> None:
    MetricsFile(run).log_metrics({"epoch": 0, "loss": 0.5}, step=0)

    resumed = MetricsFile(run)
    resumed.log_metrics({"epoch": 0, "val": 0.9}, step=0)
    resumed.log_metrics({"epoch": 0, "loss": 0.4}, step=1)

    assert run.metrics.read_text() == "step,epoch,loss,val\n0,0,0.5,0.9\n1,0,0.4,\n"


def test_rows_beyond_the_steps_that_were_done_are_dropped(run: RunFolder) -> None:
    logger = MetricsFile(run)
    for step in range(5):
        logger.log_metrics({"epoch": 0, "loss": 1.0 - step / 10}, step=step)

    resumed = MetricsFile(run)
    resumed.truncate(3)
    assert run.metrics.read_text() == "step,epoch,loss\n0,0,1.0\n1,0,0.9\n2,0,0.8\n"
    resumed.log_metrics({"epoch": 0, "loss": 0.75}, step=3)
    assert run.metrics.read_text() == "step,epoch,loss\n0,0,1.0\n1,0,0.9\n2,0,0.8\n3,0,0.75\n"
    resumed.truncate(0)
    assert run.metrics.read_text() == "step,epoch,loss\n"


def test_there_is_nothing_to_drop_in_a_new_run(run: RunFolder) -> None:
    MetricsFile(run).truncate(0)

    assert not run.metrics.exists()


def test_a_row_that_a_crash_cut_short_is_dropped(run: RunFolder) -> None:
    run.metrics.write_text("step,epoch,loss\n0,0,0.5\n1,0,0.")

    MetricsFile(run).log_metrics({"epoch": 0, "loss": 0.4}, step=1)

    assert run.metrics.read_text() == "step,epoch,loss\n0,0,0.5\n1,0,0.4\n"


def test_a_trainer_writes_a_row_a_step_and_its_own_things_into_the_run(run: RunFolder, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, logger=trackers("csv", run, CONFIG), max_epochs=2)

    trainer.fit(TinyModule(lambda index, loss: loss * 0 + index, [0.5, 0.25]), Batches(2), Batches(1))

    assert trainer.log_dir == str(run.path)
    assert run.metrics.read_text() == (
        "step,epoch,train/loss,val/loss,val/accuracy\n0,0,0.0,,\n1,0,1.0,0.5,0.75\n2,1,2.0,,\n3,1,3.0,0.25,0.875\n"
    )


def test_only_rank_zero_writes(run: RunFolder, tmp_path: Path) -> None:
    settings = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    trainer = tiny_trainer(tmp_path, logger=trackers("csv", run, CONFIG), **settings)

    trainer.fit(TinyModule(lambda index, loss: loss * 0 + index), Batches(2))

    assert run.metrics.read_text() == "step,epoch,train/loss\n0,0,0.0\n1,0,1.0\n"


# TensorBoard


def test_tensorboard_shows_steps_that_are_done_again_once(run: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps_done, steps in ((0, range(3)), (0, range(6)), (4, range(4, 8))):  # the first one saved nothing
        (_, logger) = trackers("tensorboard", run, CONFIG, steps_done)
        for step in steps:
            logger.log_metrics({"loss": 1.0 - step / 10}, step)
        logger.finalize("success")
        logger.experiment.close()
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(8))


def test_tensorboard_gets_the_values_and_the_config(run: RunFolder, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = trackers("tensorboard", run, CONFIG)
    module = TinyModule(lambda index, loss: loss * 0 + index, [0.5])

    tiny_trainer(tmp_path, logger=loggers).fit(module, Batches(2), Batches(1))

    assert [type(logger) for logger in loggers] == [MetricsFile, TensorBoardLogger]
    folder = run.path / "tensorboard"
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == CONFIG
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(0, 0.0), (1, 1.0)]
    assert [(event.step, event.value) for event in events.Scalars("val/loss")] == [(1, 0.5)]
    assert run.metrics.is_file()
    assert {path.name for path in run.path.iterdir()} == {"checkpoints", "metrics.csv", "tensorboard"}


def test_a_missing_tensorboard_is_told_with_its_cure(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.loggers import tensorboard

    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(tensorboard, "_TENSORBOARDX_AVAILABLE", False)

    with pytest.raises(InputError, match="tracker: the package tensorboard is not installed") as caught:
        trackers("tensorboard", run, CONFIG)

    assert "pip install tensorboard" in str(caught.value)


# Weights & Biases, each in a process of its own, as it keeps its settings for as long as the process lives

SCRIPT = """
import json, logging, sys
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
from lit_hf.run import RunFolder
from lit_hf.training.tracking import trackers
from tests.training.callbacks.tiny import Batches, TinyModule, tiny_trainer

run = RunFolder(sys.argv[1])
loggers = trackers("wandb", run, json.loads(sys.argv[2]), int(sys.argv[3]))
trainer = tiny_trainer(run.path, logger=loggers)
module = TinyModule(lambda index, loss: loss * 0 + index, [0.5])
trainer.fit(module, Batches(2), Batches(1))
experiment = loggers[1].experiment
kept = {"id": experiment.id, "name": experiment.name, "project": experiment.project, "config": dict(experiment.config),
        "offline": experiment.offline, "disabled": experiment.disabled, "summary": dict(experiment.summary)}
import wandb
wandb.finish()
print(json.dumps(kept, default=str))
"""


def fit_with_wandb(
    run: RunFolder, home: Path, steps_done: int = 0, **environment: str
) -> tuple[dict[str, Any], list[str]]:
    """Train in a process of its own; return what W&B knows of the run, and the lines on standard error."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    surroundings = {"HOME": str(home), "NO_PROXY": "*", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(run.path), json.dumps(CONFIG), str(steps_done)],
        env=clean | surroundings | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr.splitlines()


def shown(lines: list[str]) -> list[str]:
    """Return what a user sees of W&B."""
    return [line for line in lines if "wandb" in line.lower() or "W&B" in line]


@pytest.fixture(scope="module")
def unreached(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any], list[str]]:
    """A run with a key and without a network."""
    folder = tmp_path_factory.mktemp("unreached")
    run = RunFolder(folder / "sst2")
    run.create()
    return run, *fit_with_wandb(run, folder, WANDB_API_KEY=KEY, WANDB_BASE_URL="http://127.0.0.1:9")


def test_wandb_goes_offline_in_one_line_when_its_server_cannot_be_reached(unreached: Any) -> None:
    run, kept, lines = unreached

    run_id = run.read_record()["wandb_id"]
    assert shown(lines) == [
        "WARNING lit_hf W&B is offline, as http://127.0.0.1:9 does not answer. "
        f"To sync later: wandb sync {run.path}/wandb/offline-run-*-{run_id}"
    ]
    assert len(list(run.path.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == 1
    assert (kept["id"], kept["name"], kept["project"], kept["offline"]) == (run_id, "sst2", "lit-hf", True)
    assert kept["config"] == CONFIG
    assert kept["summary"] | {"val/loss": 0.5, "train/loss": 1.0, "trainer/global_step": 1} == kept["summary"]
    assert run.metrics.is_file()


def test_a_key_lands_in_no_file_of_the_run(unreached: Any) -> None:
    files = [path for path in unreached[0].path.rglob("*") if path.is_file()]

    assert len(files) > 3
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_a_resumed_run_is_the_same_run_on_wandb(unreached: Any, tmp_path: Path) -> None:
    run, first, _ = unreached

    second, lines = fit_with_wandb(run, tmp_path, steps_done=1, WANDB_MODE="offline", WANDB_PROJECT="mine")

    assert first["id"] == second["id"] == run.read_record()["wandb_id"]
    assert second["project"] == "mine"
    assert shown(lines) == []


def test_wandb_can_be_turned_off(run: RunFolder, tmp_path: Path) -> None:
    kept, lines = fit_with_wandb(run, tmp_path, WANDB_MODE="disabled")

    assert kept["disabled"] is True
    assert shown(lines) == []


class Server(BaseHTTPRequestHandler):
    """Answers, so that there is a network, and knows no key."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_wandb_goes_offline_without_a_prompt_when_there_is_no_key(run: RunFolder, tmp_path: Path, server: str) -> None:
    kept, lines = fit_with_wandb(run, tmp_path, WANDB_BASE_URL=server)

    assert kept["offline"] is True
    assert [line.partition(". To")[0] for line in shown(lines)] == [
        "WARNING lit_hf W&B is offline, as there is no API key (wandb login)"
    ]


def test_wandb_goes_offline_when_the_key_is_refused(run: RunFolder, tmp_path: Path, server: str) -> None:
    kept, lines = fit_with_wandb(run, tmp_path, WANDB_BASE_URL=server, WANDB_API_KEY=KEY)

    assert (kept["id"], kept["offline"], kept["config"]) == (run.read_record()["wandb_id"], True, CONFIG)
    (warning,) = (line for line in lines if "WARNING lit_hf" in line)
    assert "401" in warning
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert KEY not in "\n".join(lines)


def test_csv_asks_nothing_of_the_network(run: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lit_hf"):
        loggers = trackers("csv", run, CONFIG)

    assert [type(logger) for logger in loggers] == [MetricsFile]
    assert run.read_record() == {} and caplog.records == []


RESUMED = """
import json, os, signal, sys, time
from lit_hf.run import RunFolder
from lit_hf.training.tracking import trackers

run, (first, end), ending = RunFolder(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
metrics, wandb_logger = loggers = trackers("wandb", run, {}, first, exact=ending != "inexact")
metrics.truncate(first)
for step in range(first, end):
    for values in ({"epoch": step // 4, "train/loss": 1 / (step + 1)}, {"epoch": step // 4, "val/loss": step / 2}):
        for logger in loggers[: 1 if ending == "cut" and (step, *values) == (end - 1, "epoch", "val/loss") else 2]:
            logger.log_metrics(values, step)
if ending == "told":
    wandb_logger.experiment.summary  # waits for an answer, so that what was sent has been written by W&B
    time.sleep(0.5)
if ending in ("told", "cut"):
    os.kill(os.getpid(), signal.SIGKILL)
for logger in loggers:
    logger.finalize("success")
import wandb
wandb.finish()
"""


def test_wandb_has_each_row_of_metrics_csv_once_however_the_run_was_ended(run: RunFolder) -> None:
    for steps, ending in (([0, 6], "told"), ([4, 9], "cut"), ([8, 11], "finished")):
        command = [sys.executable, "-W", "ignore", "-c", RESUMED, str(run.path), str(steps), ending]
        done = subprocess.run(command, env=os.environ | {"WANDB_MODE": "offline"}, capture_output=True, timeout=120)
        assert done.returncode == (0 if ending == "finished" else -9), done.stderr

    with run.metrics.open() as file:
        expected = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    rows = history(run)
    assert [row.pop(STEP) for row in rows] == list(range(11)) == [row.pop("step") for row in expected]
    assert rows == expected


@pytest.mark.parametrize(("steps", "ending"), [([0, 6], "anew"), ([3, 6], "inexact")])
def test_wandb_starts_another_run_where_steps_are_done_again_otherwise(
    run: RunFolder, steps: list[int], ending: str
) -> None:
    ids = []
    for arguments in ([[0, 6], "told"], [steps, ending]):
        command = [sys.executable, "-W", "ignore", "-c", RESUMED, str(run.path), *map(str, arguments)]
        subprocess.run(command, env=os.environ | {"WANDB_MODE": "offline"}, capture_output=True, timeout=120)
        ids.append(run.read_record()["wandb_id"])

    assert ids[0] != ids[1]
    assert [row[STEP] for row in history(run, ids[1])] == list(range(6))


def history(run: RunFolder, run_id: str = "*") -> list[dict[str, float]]:
    """Return what W&B would send: the rows in its files, without its own values."""
    found = []
    for file in sorted(run.path.glob(f"wandb/offline-run-*/run-{run_id}.wandb"), key=lambda path: path.stat().st_mtime):
        for content in _records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(content)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            if row:
                found.append({name: value for name, value in row.items() if not name.startswith("_")})
    return found
