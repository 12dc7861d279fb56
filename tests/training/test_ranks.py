import os
import socket

import pytest
from lightning.pytorch import Trainer

from lit_hf.errors import InputError
from lit_hf.training.ranks import RankLauncher, watch_ranks

PROCESSES = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "logger": False, "enable_checkpointing": False}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    for name in ("MASTER_PORT", "LOCAL_RANK", "LIT_HF_LAUNCHER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_ranks_that_lightning_starts_are_watched():
    trainer = Trainer(**PROCESSES)
    watch_ranks(trainer)
    assert type(trainer.strategy.launcher) is RankLauncher
    assert trainer.strategy.launcher.num_processes == 2


def test_one_process_has_nobody_to_watch():
    trainer = Trainer(**{**PROCESSES, "devices": 1, "strategy": "auto"})
    watch_ranks(trainer)
    assert trainer.strategy.launcher is None


def test_ranks_that_somebody_else_starts_are_left_alone(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_PORT", "x")
    trainer = Trainer(**PROCESSES)
    watch_ranks(trainer)
    assert type(trainer.strategy.launcher) is not RankLauncher


@pytest.mark.parametrize(("port", "why"), [("x", "invalid literal"), ("99999", "port must be 0-65535")])
def test_a_port_that_is_none_is_refused(monkeypatch, port, why):
    trainer = Trainer(**PROCESSES)
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(InputError, match=rf"MASTER_PORT: the ranks cannot meet at port {port}: .*{why}"):
        watch_ranks(trainer)


def test_a_port_that_is_free_is_taken(monkeypatch):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_PORT", str(port))
    trainer = Trainer(**PROCESSES)
    watch_ranks(trainer)
    assert type(trainer.strategy.launcher) is RankLauncher
    assert os.environ["MASTER_PORT"] == str(port)
