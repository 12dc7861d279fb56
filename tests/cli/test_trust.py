"""Code that comes with a model is run when the config says so, never else, and not in silence."""

import json
import os

import pytest
import yaml

from lit_hf.cli.checks import writer_problems
from lit_hf.cli.main import main
from tests import tiny_run

CODE = """
import os
from pathlib import Path
from transformers import BertConfig
Path(os.environ["RAN"]).touch()
class Config(BertConfig):
    model_type = "own"
"""


@pytest.fixture
def ran(folder, tiny_text_model, monkeypatch, messages_restored):
    """A file that is there once the code that comes with the config's model was run."""
    model = folder / "model"
    model.mkdir()
    for path in tiny_text_model.iterdir():
        os.link(path, model / path.name)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").unlink()
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(CODE)
    monkeypatch.setenv("RAN", str(folder / "ran"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    tiny_run.write(folder, model)
    return folder / "ran"


@pytest.mark.parametrize("verb", ["fit", "inspect", "plan"])
def test_a_model_s_own_code_is_not_run_unless_the_config_says_so(ran, capsys, verb):
    assert main([verb, "-c", "tiny.yaml"]) == 2
    told = capsys.readouterr().err
    assert "it brings Python code of its own, which is not run." in told
    assert "model.trust_remote_code: true" in told
    assert not ran.exists()


def test_it_is_said_where_it_is_run(ran, capsys):
    main(["fit", "-c", "tiny.yaml", "--model.trust_remote_code", "true"])
    told = capsys.readouterr().err
    assert told.count("warning: model.trust_remote_code is on: code that comes with") == 1
    assert ran.exists()


def test_predict_says_so_too_and_has_no_other_way(folder, tiny_text_model, messages_restored, capsys):
    main(["predict", str(tiny_text_model), "--text", "x", "--trust_remote_code"])
    assert "warning: --trust_remote_code is on: code that" in capsys.readouterr().err
    assert main(["predict", str(tiny_text_model), "--text", "x", "--trust_remote_code", "--safe-config"]) == 2
    assert "not both" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a/b"])
def test_a_run_s_name_leads_nowhere_else(folder, tiny_text_model, messages_restored, capsys, name):
    tiny_run.write(folder, tiny_text_model, name=name)
    for verb in ("fit", "inspect", "export", "checkpoints"):
        assert main([verb, "-c", "tiny.yaml"]) == 2
        assert f"name: {name!r} is no name." in capsys.readouterr().err
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []


def test_a_callback_s_file_stays_in_its_folder(folder, tiny_text_model, messages_restored, capsys):
    tiny_run.write(folder, tiny_text_model)
    callback = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "own", "filename": "../../x"}}
    (folder / "callback.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    assert main(["fit", "-c", "tiny.yaml", "-c", "callback.yaml", "--name", "tiny"]) == 2
    assert "trainer.callbacks: the filename ../../x of ModelCheckpoint leads out" in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("key", "writer", "argument", "value"),
    [
        ("logger", "CSVLogger", "name", "../../x"),
        ("logger", "CSVLogger", "version", "/tmp/x"),
        ("logger", "TensorBoardLogger", "sub_dir", "a/../../x"),
        ("profiler", "SimpleProfiler", "filename", "../x"),
        ("profiler", "PyTorchProfiler", "dirpath", "../x"),
    ],
)
def test_loggers_and_profilers_stay_in_theirs(
    folder, tiny_text_model, messages_restored, capsys, key, writer, argument, value
):
    tiny_run.write(folder, tiny_text_model)
    place = {} if key == "profiler" else {"save_dir": "logs"}
    settings = {"class_path": f"lightning.pytorch.{key}s.{writer}", "init_args": {**place, argument: value}}
    (folder / "writer.yaml").write_text(yaml.safe_dump({"trainer": {key: settings}}))
    assert main(["fit", "-c", "tiny.yaml", "-c", "writer.yaml", "--name", "tiny"]) == 2
    assert f"trainer.{key}.init_args.{argument}: {value} leads out of the folder of the run." in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_list_of_loggers_is_looked_through_and_plain_names_are_taken():
    def logger(name):
        return {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "/logs", "name": name}}

    assert list(writer_problems("trainer.logger", [True, "simple", logger("a/b"), logger(None), logger("..x")])) == []
    assert len(list(writer_problems("trainer.logger", [logger("a"), logger("../b"), logger("/c")]))) == 2
