import json
import subprocess
import sys

import pytest

import lit_hf.run
from lit_hf.errors import InputError
from lit_hf.run import RunFolder, run_name


def test_a_run_exists_once_its_config_and_record_are_written(tmp_path):
    run = RunFolder(tmp_path / "runs" / "a")
    run.create()
    run.write_config({"name": "a", "task": {"labels": ["ä", "b"]}})
    assert not run.exists()
    run.update_record(state="running")
    assert run.exists()
    assert run.read_config() == {"name": "a", "task": {"labels": ["ä", "b"]}}


def test_the_record_keeps_earlier_fields(tmp_path):
    run = RunFolder(tmp_path)
    run.update_record(state="running", step=1)
    run.update_record(state="finished")
    assert run.read_record() == {"state": "finished", "step": 1}
    assert json.loads((tmp_path / "run.json").read_text()) == run.read_record()


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(InputError, match="no run is here"):
        RunFolder(tmp_path).read_config()


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run").create()


@pytest.mark.parametrize(
    ("configs", "name"),
    [(["a/mrpc.yaml", "lora.yaml"], "mrpc-lora"), (["my config.v2.yaml"], "my-config.v2"), ([], "run")],
)
def test_a_run_without_a_name_is_named_after_its_configs(configs, name):
    assert run_name(configs) == name


def test_a_run_is_held_by_one_process_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lit_hf.run, "SECONDS_TO_LET_GO", 0.0)
    run = RunFolder(tmp_path / "runs" / "a")
    with run.held():
        with pytest.raises(InputError, match=r"another process is training the run .*/runs/a\.[^$]*--name"), run.held():
            pass
        with RunFolder(tmp_path / "runs" / "b").held():
            pass
        run.update_record(state="running")
    with run.held():
        pass
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["a", "run.json"]


def test_a_run_is_held_as_soon_as_those_who_leave_have_left(tmp_path):
    code = "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], 0), 2); print(flush=True); time.sleep(1)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as leaving:
        leaving.stdout.readline()
        with RunFolder(tmp_path).held():
            assert leaving.wait(5) == 0


def test_nothing_is_left_of_a_run_that_was_not_started(tmp_path):
    with RunFolder(tmp_path / "some" / "runs" / "a").held():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_left_to_others_to_tell(tmp_path):
    (tmp_path / "file").touch()
    run = RunFolder(tmp_path / "file" / "a")
    with run.held(), pytest.raises(InputError, match="cannot be written"):
        run.create()
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
