import logging
import os

import pytest


class _ParserBuiltError(Exception):
    pass


@pytest.fixture(scope="session")
def parser():
    """The parser that fit, validate and test really have."""
    from lit_hf.cli.trainer import TrainerCLI

    built = []

    class ParserOnly(TrainerCLI):
        def parse_arguments(self, parser, args):
            built.append(parser)
            raise _ParserBuiltError

    with pytest.raises(_ParserBuiltError):
        ParserOnly([])
    return built[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def messages_restored(monkeypatch):
    """Undo what `lit-hf` does to its process: logging, and variables that quieten libraries."""
    root, own = logging.getLogger(), logging.getLogger("lit_hf")
    handlers, level, environment = list(root.handlers), own.level, dict(os.environ)
    yield
    root.handlers = handlers
    own.setLevel(level)
    os.environ.clear()
    os.environ.update(environment)
