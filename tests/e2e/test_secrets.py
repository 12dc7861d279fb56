"""No secret of the surroundings, and none that somebody wrote where it does not belong, is in any file of a run."""

import os
import subprocess
import sys

import pytest
import yaml

from tests import tiny_run
from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECRETS = {
    "HF_TOKEN": "hf_PlantedTokenOfTheHub1234567890",
    "WANDB_API_KEY": "0123456789abcdefdeadbeef0123456789abcdef",
    "MY_SERVICE_PASSWORD": "planted-password-of-a-service",
    "AWS_SECRET_ACCESS_KEY": "PlantedSecretOfTheCloud/4321",
}
LOGIN = "planted-login-in-a-url"


LEAK = f"""
from lightning.pytorch import Callback

class Leak(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            told = {" ".join(SECRETS.values())!r}
            raise RuntimeError("401 for https://someone:{LOGIN}@example.org/data with " + told)
"""
"""A callback that fails as a library does that tells too much."""


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_text_model):
    """A project with secrets in its environment and in its git remote, where runs were made in all ways."""
    folder = tmp_path_factory.mktemp("project")
    tiny_run.write(folder, tiny_text_model, trainer__max_epochs=1)
    leak = {"trainer": {"callbacks": [{"class_path": "leaking.Leak"}]}}
    board = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs/finished"}}
    (folder / "board.yaml").write_text(yaml.safe_dump({"trainer": {"logger": board}}))
    (folder / "leak.yaml").write_text(yaml.safe_dump(leak))
    (folder / "leaking.py").write_text(LEAK)
    environment = {
        **os.environ,
        **SECRETS,
        "HOME": str(folder / "home"),
        "HF_HOME": str(folder / "home" / "hf"),
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
    }
    (folder / "home").mkdir()
    remote = f"https://someone:{LOGIN}@example.org/someone/project.git"
    for command in (["init", "-q"], ["remote", "add", "origin", remote], ["add", "tiny.yaml", "leak.yaml"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "-C", str(folder), *author, "commit", "-qm", "start"], check=True)

    def run(*arguments):
        command = [sys.executable, "-m", "lit_hf", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)

    done = {
        "finished": run("fit", "-c", "tiny.yaml", "-c", "board.yaml", "--name", "finished", "--tracker", "wandb"),
        "export": run("export", "runs/finished", "--output", "exported"),
        "failed": run("fit", "-c", "tiny.yaml", "-c", "leak.yaml", "--name", "failed", "--tracker", "wandb"),
    }
    return folder, done


def leaks(folder):
    planted = [*SECRETS.values(), LOGIN]
    own = ("leaking.py", "test_secrets")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".git/" not in str(path) and not path.name.startswith(own):
            content = path.read_bytes()
            for secret in planted:
                if secret.encode() in content:
                    yield str(path.relative_to(folder)), secret


def test_the_runs_were_made(project):
    folder, done = project
    assert [one.returncode for one in done.values()] == [0, 0, 1], {k: v.stderr[-2000:] for k, v in done.items()}
    names = [path.name for path in folder.rglob("*") if path.is_file()]
    for name in ("config.yaml", "run.json", "state.ckpt", "model.safetensors"):
        assert name in names, name
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert any(name.endswith(".wandb") for name in names)


def test_no_secret_is_in_any_file_that_they_wrote(project):
    folder, _ = project
    assert list(leaks(folder)) == []


def test_nor_is_one_shown(project):
    _, done = project
    for name, one in done.items():
        for secret in (*SECRETS.values(), LOGIN):
            assert secret not in one.stdout + one.stderr, name
