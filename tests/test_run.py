import json

import pytest

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
