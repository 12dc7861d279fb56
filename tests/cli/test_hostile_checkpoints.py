"""A checkpoint is data: nothing in it is run or imported, though its manifest says that it is valid."""

import io
import json
import os
import pickle
import shutil
import sys
import zipfile

import pytest
import torch

from lit_hf.checkpoints import partial_folder, publish, read_manifest
from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from tests import tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_text_model):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_run.write(folder, tiny_text_model, trainer__max_epochs=1)
        assert main(["fit", "-c", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch, messages_restored):
    """A copy of a run, which has no export, in the working directory where its data is."""
    monkeypatch.chdir(trained)
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    shutil.copytree(trained / "runs" / "tiny", tmp_path / "tiny")
    shutil.rmtree(tmp_path / "tiny" / "export")
    return RunFolder(tmp_path / "tiny")


class Hostile:
    def __reduce__(self):
        return os.system, ('touch "$RAN"',)


def in_the_weights(state, path):
    torch.save({**state, "state_dict": {"weight": Hostile()}}, path, pickle_module=pickle)


def beside_them(state, path):
    torch.save({**state, "note": Hostile()}, path, pickle_module=pickle)


def as_a_bare_pickle(state, path):
    path.write_bytes(pickle.dumps(Hostile()))


def in_the_old_format(state, path):
    torch.save({**state, "note": Hostile()}, path, pickle_module=pickle, _use_new_zipfile_serialization=False)


def as_code_of_its_own(state, path):
    """TorchScript: a zip with code, which `torch.load` would run."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    path.write_bytes(buffer.getvalue())
    assert any("code/" in name for name in zipfile.ZipFile(path).namelist())


ATTACKS = [in_the_weights, beside_them, as_a_bare_pickle, in_the_old_format, as_code_of_its_own]


def publish_changed(run, write):
    """Put another state into the run's checkpoint, with a manifest that fits it."""
    path = run.checkpoint("last")
    folder = path.parent
    state = torch.load(path, weights_only=True)
    manifest = read_manifest(folder)
    partial_folder(folder).mkdir()
    write(state, partial_folder(folder) / path.name)
    publish(folder, manifest)
    assert run.checkpoint("last") == path  # it is valid, as far as hashes go


COMMANDS = {
    "fit": ["fit", "-c", "tiny.yaml", "--trainer.max_epochs", "2", "--name", "tiny", "--output_dir"],
    "validate": ["validate"],
    "predict": ["predict", "--text", "good", "--run"],
    "export": ["export"],
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("verb", COMMANDS)
def test_a_hostile_checkpoint_is_refused_and_nothing_is_run(run, capsys, tmp_path, attack, verb):
    publish_changed(run, attack)
    capsys.readouterr()
    place = run.path.parent if verb == "fit" else run.path
    assert main([*COMMANDS[verb], str(place)]) == 2
    assert "the checkpoint cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not run.export.exists()


def test_the_attacks_would_work_on_a_reader_that_unpickles(run, tmp_path):
    publish_changed(run, beside_them)
    torch.load(run.checkpoint("last"), weights_only=False)
    assert (tmp_path / "ran").exists()


def test_hyper_parameters_of_a_checkpoint_name_no_classes(run, capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    named = {"_class_path": "evil.Evil", "class_path": "evil.Evil", "_instantiator": "evil.make", "lr": 7}
    settings = dict.fromkeys(("hyper_parameters", "datamodule_hyper_parameters"), named)
    names = dict.fromkeys(("hparams_name", "hparams_type", "datamodule_hparams_name"), "evil")
    publish_changed(run, lambda state, path: torch.save({**state, **settings, **names}, path))
    for verb in ("validate", "export", "predict", "fit"):
        place = run.path.parent if verb == "fit" else run.path
        assert main([*COMMANDS[verb], str(place)]) == 0, verb
    assert "evil" not in sys.modules and not (tmp_path / "ran").exists()
    assert "evil" not in run.config.read_text()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"best": {"name": "../../elsewhere", "value": 1.0}}, "names no checkpoint as the best"),
        ({"files": {"../../../secret": {"size": 1, "sha256": ""}, "state.ckpt": {}}}, "leads out of it"),
        ({"files": {"/etc/passwd": {"size": 1, "sha256": ""}, "state.ckpt": {}}}, "leads out of it"),
    ],
)
def test_a_manifest_that_leads_out_of_its_folder_is_damaged(run, capsys, values, problem):
    path = run.checkpoint("last").parent / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    assert main(["checkpoints", str(run.path)]) == 2
    assert problem in " ".join(capsys.readouterr().out.split())
