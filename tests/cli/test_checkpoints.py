import json
import shutil

import pytest

from lit_hf.checkpoints import MANIFEST, found, partial_folder, read_manifest
from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from tests import tiny_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_text_model):
    """A run of two epochs of six steps, whose first epoch was the best."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny_run.write(folder, tiny_text_model, model__optimizer__init_args__lr=0.0)
        assert main(["fit", "-c", "tiny.yaml"]) == 0
    return folder / "runs" / "tiny"


@pytest.fixture
def run(trained, tmp_path, messages_restored):
    shutil.copytree(trained, tmp_path / "tiny")
    return RunFolder(tmp_path / "tiny")


def listed(run, capsys, code=0):
    capsys.readouterr()
    assert main(["checkpoints", str(run.path), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_what_there_is_is_told_with_step_epoch_and_the_metric(run, capsys):
    told = listed(run, capsys)
    newest, best = told["checkpoints"]
    value = run.read_record()["best"]["value"]
    assert told["metric"] == "val/accuracy"
    assert (newest["name"], newest["step"], newest["newest"], newest["best"]) == ("step-00000012", 12, True, False)
    assert (best["name"], best["step"], best["newest"], best["best"]) == ("step-00000006", 6, False, True)
    assert newest["value"] == best["value"] == pytest.approx(value)  # nothing is learnt at a rate of 0
    assert newest["epoch"] == read_manifest(found(run.checkpoints)[0]).epoch
    assert all(row["problem"] is None and row["world_size"] == 1 for row in told["checkpoints"])
    files = (run.checkpoints / "step-00000012").iterdir()
    assert newest["bytes"] == sum(file.stat().st_size for file in files)


def test_the_table_is_for_people(run, capsys):
    assert main(["checkpoints", "--run", str(run.path)]) == 0
    shown = capsys.readouterr().out
    assert "val/accuracy" in shown
    newest, best = (line for line in shown.splitlines() if "step-0" in line)
    assert "newest" in newest and "best" not in newest and "valid" in newest
    assert "best" in best and "newest" not in best


def flip(path):
    state = path / "state.ckpt"
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)


FAULTS = {
    "a flipped byte": (flip, "state.ckpt is not what was written: its SHA-256 differs"),
    "a cut file": (lambda path: (path / "state.ckpt").write_bytes(b"1234"), "state.ckpt has 4 bytes instead of"),
    "a missing file": (lambda path: (path / "state.ckpt").unlink(), "state.ckpt is missing"),
    "a missing manifest": (lambda path: (path / MANIFEST).unlink(), "it has no manifest.json"),
    "a manifest that is no JSON": (lambda path: (path / MANIFEST).write_text("{"), "its manifest.json cannot be read"),
}


@pytest.mark.parametrize(("spoil", "problem"), FAULTS.values(), ids=FAULTS.keys())
def test_a_damaged_one_is_told_and_the_one_before_is_the_newest(run, capsys, spoil, problem):
    spoil(run.checkpoints / "step-00000012")
    damaged, sound = listed(run, capsys)["checkpoints"]
    assert problem in damaged["problem"] and not damaged["newest"]
    assert sound["newest"] and sound["best"] and sound["problem"] is None
    assert main(["checkpoints", str(run.path)]) == 0
    assert problem in capsys.readouterr().out


def test_a_run_without_a_valid_one_ends_with_2(run, capsys):
    for path in found(run.checkpoints):
        flip(path)
    assert all(row["problem"] for row in listed(run, capsys, code=2)["checkpoints"])
    assert main(["checkpoints", str(run.path)]) == 2
    assert "none of the run's checkpoints is valid" in capsys.readouterr().err


def test_what_was_never_finished_is_named_and_no_checkpoint(run, capsys):
    partial_folder(run.checkpoints / "step-00000018").mkdir()
    told = listed(run, capsys)
    assert told["unfinished"] == [".step-00000018.partial"]
    assert len(told["checkpoints"]) == 2


def test_a_folder_that_is_no_run_is_told(tmp_path, messages_restored, capsys):
    assert main(["checkpoints", str(tmp_path)]) == 2
    assert "no run is here" in capsys.readouterr().err
