import json
import sys
from importlib import metadata

import pytest

from lit_hf.cli.env import devices, features, run, versions
from lit_hf.errors import InputError

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without logins, jobs or programs."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def feature(name):
    return next(found for found in features() if found.name == name)


def test_versions_are_those_that_are_installed():
    found = versions()
    assert found["torch"] == metadata.version("torch")
    assert found["lit-hf"] == metadata.version("lit-hf")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_devices_count_what_there_is():
    import torch

    found = devices()
    assert found["cpu"]["cores"] >= 1 and found["cpu"]["memory"] > 2**28
    assert len(found["cuda"]) == torch.cuda.device_count()


def test_a_wandb_login_is_found_and_never_shown(machine, monkeypatch, capsys):
    assert not feature("W&B").ready and "wandb login" in feature("W&B").cure
    (machine / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert feature("W&B").ready
    (machine / "netrc").write_text("not a netrc\n")
    assert not feature("W&B").ready
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert feature("W&B").ready
    run([])
    run(["--json"])
    assert KEY not in "".join(capsys.readouterr())


def test_wandb_offline_is_told(machine, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert feature("W&B")[1:] == (False, "WANDB_MODE is offline", "Unset WANDB_MODE to log online.")


def test_slurm_is_found_by_its_program_or_its_job(machine, monkeypatch):
    assert feature("SLURM")[1:] == (False, "sbatch is not on the PATH", "Run on a login node of the cluster.")
    (machine / "sbatch").touch(mode=0o755)
    assert feature("SLURM").ready
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert feature("SLURM")[1:] == (True, "inside job 17", "")


def test_what_is_missing_has_a_cure(machine):
    found = list(features())
    assert [entry.name for entry in found] == ["GPU", "4-bit", "W&B", "TensorBoard", "SLURM"]
    assert [entry.name for entry in found if bool(entry.cure) == entry.ready] == []


def test_a_gpu_is_ready_only_where_torch_can_use_one():
    import torch

    assert feature("GPU").ready == (torch.cuda.is_available() or torch.backends.mps.is_available())


def test_the_report_and_the_json_say_the_same(machine, capsys):
    assert run([]) == 0
    report = capsys.readouterr().out
    assert run(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name, version in found["versions"].items():
        assert f"  {name:<14} {version or 'not installed'}" in report.splitlines()
    for entry in found["features"]:
        assert f"  {entry['name']:<14} {'ready' if entry['ready'] else 'missing'}: {entry['state']}" in report
        assert entry["cure"] in report


def test_an_unknown_option_is_refused():
    with pytest.raises(InputError, match="--jsn"):
        run(["--jsn"])
