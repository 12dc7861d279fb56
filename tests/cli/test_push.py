from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants
from transformers import pipeline

from lit_hf.cli.main import main
from lit_hf.export.package import export
from lit_hf.inference.predictor import Predictor
from tests import tiny_run
from tests.classifiers import RECORD, TEXTS, adapted
from tests.uploads import Answer

REPO = "user/reviews"


@pytest.fixture
def adapter(tiny_text_model, tmp_path, hub):
    """An exported adapter, whose base model is on the Hub."""
    hub.add_model("org/base", tiny_text_model)
    model, task = adapted(tiny_text_model)
    export(model, task, RECORD, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "org/base"}))
    return tmp_path / "adapter"


def push(folder, *options) -> int:
    return main(["push", str(folder), "--repo", REPO, *options])


def hashes(folder) -> dict[str, str]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def pushed(uploads, branch="main") -> dict[str, str]:
    files = uploads.repositories[REPO].files(branch)
    assert files.pop(".gitattributes")
    return files


def test_what_is_pushed_is_the_export_and_loads_from_the_hub(exported, hub, uploads, capsys):
    before = hashes(exported)

    assert push(exported) == 0

    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/{REPO}"
    (commit,) = uploads.repositories[REPO].commits
    assert (commit.branch, commit.added, commit.deleted) == ("main", before, [])
    assert not uploads.repositories[REPO].private
    assert hashes(exported) == before
    answers = pipeline("text-classification", REPO, top_k=None)(TEXTS)
    rows = Predictor.from_folder(exported, device="cpu").predict({"text": text} for text in TEXTS)
    for answer, row in zip(answers, rows, strict=True):
        assert {one["label"]: one["score"] for one in answer} == pytest.approx(row["scores"], abs=1e-6)


def test_an_adapter_is_pushed_alone_and_predicts_from_the_hub(adapter, uploads, capsys):
    assert push(adapter) == 0

    assert pushed(uploads) == hashes(adapter)
    assert "model_config/config.json" in pushed(uploads)
    capsys.readouterr()
    expected = Predictor.from_folder(adapter, device="cpu").predict([{"text": TEXTS[0]}])
    assert main(["predict", REPO, "--text", TEXTS[0]]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == pytest.approx(next(iter(expected))["scores"], abs=1e-6)


def test_a_private_repository_a_branch_and_a_message(exported, hub, uploads, capsys):
    assert push(exported, "--private", "--revision", "first/try", "--message", "The first") == 0

    repository = uploads.repositories[REPO]
    assert repository.private
    assert [(commit.branch, commit.message) for commit in repository.commits] == [("first/try", "The first")]
    assert pushed(uploads, "first/try") == hashes(exported) and pushed(uploads) == {}
    assert capsys.readouterr().out.splitlines()[-1] == f"{hub.url}/{REPO}/tree/first/try"


def test_a_public_repository_is_not_taken_for_a_private_one(exported, uploads, capsys):
    assert push(exported) == 0
    assert push(exported, "--private") == 2
    assert f"--private: {REPO} is there already, and public" in capsys.readouterr().err


def test_a_second_push_of_the_same_sends_and_commits_nothing_and_says_so_once(exported, uploads):
    command = [sys.executable, "-m", "lit_hf", "push", str(exported), "--repo", REPO]
    assert push(exported) == 0
    sent = list(uploads.repositories[REPO].puts)
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.count("No files have been modified") == 1
    assert uploads.repositories[REPO].puts == sent
    assert len(uploads.repositories[REPO].commits) == 1


# what ends a push


@pytest.mark.parametrize(("status", "code", "told"), [(403, 2, "you may not write there"), (503, 3, "the Hub fails")])
def test_what_must_be_changed_has_another_exit_code_than_what_passes(exported, uploads, capsys, status, code, told):
    before = hashes(exported)
    uploads.faults["commit"] = Answer(status)
    assert push(exported) == code
    errors = capsys.readouterr().err
    assert f"error: --repo {REPO}: {told}" in errors and f"(status {status})" in errors and "Traceback" not in errors
    assert hashes(exported) == before


def test_a_push_that_is_killed_goes_on_in_another_process(exported, uploads):
    before, reached, go_on = hashes(exported), threading.Event(), threading.Event()

    def hang() -> Answer:
        reached.set()
        go_on.wait(60)
        return Answer(None)

    uploads.puts, uploads.fault_of_puts = 1, hang
    command = [sys.executable, "-m", "lit_hf", "push", str(exported), "--repo", REPO]
    process = subprocess.Popen(command, env=os.environ)
    assert reached.wait(60)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (first,) = uploads.repositories[REPO].puts
    go_on.set()
    uploads.puts = None

    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.splitlines()[-1].endswith(f"/{REPO}") and done.stderr == ""
    assert uploads.repositories[REPO].puts.count(first) == 1 and len(uploads.repositories[REPO].puts) == 2
    assert [commit.added for commit in uploads.repositories[REPO].commits] == [before]
    assert hashes(exported) == before


def test_what_the_hub_says_itself_is_told(exported, uploads, capsys):
    assert main(["push", str(exported), "--repo", "org/reviews"]) == 2
    told = capsys.readouterr().err
    assert "--repo org/reviews: you may not write there" in told
    assert 'The Hub says: You don\'t have the rights to create a model under "org/reviews"' in told


def test_a_wrong_token_is_told_and_not_shown(exported, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_AnotherTokenThanTheRightOne")
    assert push(exported) == 2
    told = capsys.readouterr().err
    assert "there is no token, or a wrong one (status 401)" in told
    assert "AnotherToken" not in told


@pytest.mark.parametrize("fault", [None, Answer(500), Answer(401)])
def test_the_token_is_in_no_file_and_no_output(exported, uploads, tmp_path, capfd, fault):
    if fault:
        uploads.faults["commit"] = fault
    assert push(exported, "--debug") == (0 if fault is None else 3 if fault.status == 500 else 2)
    told = capfd.readouterr()
    assert ("Traceback" in told.err) is (fault is not None)
    assert uploads.token not in told.out + told.err
    for folder in (tmp_path, Path(os.environ["HF_HOME"]), uploads.repositories[REPO].folder):
        for path in folder.rglob("*"):
            assert not path.is_file() or uploads.token.encode() not in path.read_bytes(), path


def test_no_login_is_told_before_anything_is_asked(exported, hub, capsys):
    assert push(exported) == 2
    assert "there is no login for the Hub.\n    Log in with a token that may write: hf auth login" in (
        capsys.readouterr().err
    )
    assert hub.requests == []


def test_no_network_is_told(exported, uploads, monkeypatch, capsys):
    def refuse(*_, **__):
        raise httpx2.ConnectError("[Errno 101] Network is unreachable")

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", refuse)
    assert push(exported) == 3
    assert "the Hub cannot be reached, or the connection was cut: [Errno 101]" in capsys.readouterr().err


def test_offline_is_told_before_anything_is_exported(exported, uploads, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert push(exported) == 2
    assert "HF_HUB_OFFLINE: it keeps us from the Hub." in capsys.readouterr().err


# what is pushed


@pytest.mark.parametrize("repo", [None, "reviews", "user/re views", "user/reviews/x", "../reviews", "user/a--b"])
def test_a_repository_must_be_named(exported, hub, uploads, capsys, repo):
    assert main(["push", str(exported), *(["--repo", repo] if repo else [])]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --repo: ")
    assert "<your name or organization>/<model>" in told
    assert hub.requests == []


def test_neither_a_run_nor_an_export_is_told(tmp_path, hub, uploads, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert push(tmp_path) == 2
    assert f"{tmp_path}: there is no run, and no model that lit-hf exported." in capsys.readouterr().err
    assert hub.requests == []


def test_neither_checkpoints_nor_code_are_pushed_and_that_is_told(exported, uploads, capsys):
    before = hashes(exported)
    for name in ("state.ckpt", "pytorch_model.bin", "modeling.py", ".cache/huggingface/x.json"):
        (exported / name).parent.mkdir(parents=True, exist_ok=True)
        (exported / name).write_text("x")
    assert push(exported) == 0
    assert pushed(uploads) == before
    assert "not pushed" in (told := capsys.readouterr().err)
    assert "modeling.py, pytorch_model.bin, state.ckpt" in told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", "---\ntags: [x]\n---\nLoad it with hf_abcdefghijklmnopqrstuvwxyz\n"),
        ("notes.txt", "data from https://someone:planted@example.org/x"),
        ("notes.json", '{"a": [{"b": "it is planted-password!"}]}'),
        ("notes.json", '{"planted-password": 1}'),
    ],
)
def test_a_file_with_a_secret_is_not_pushed(exported, hub, uploads, monkeypatch, capsys, name, content):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "planted-password")
    (exported / name).write_text(content)
    assert push(exported) == 2
    told = capsys.readouterr().err
    assert f"{exported / name}: a token, a password or another secret stands there." in told
    assert "planted" not in told and "hf_abc" not in told
    assert hub.requests == []


def test_a_vocabulary_that_only_together_looks_like_a_login_is_pushed(exported, uploads):
    (exported / "vocab.json").write_text('{"://":25,"a":26,"@":3}')
    assert push(exported) == 0
    assert "vocab.json" in pushed(uploads)


def test_an_adapter_on_a_local_folder_is_not_pushed(tiny_text_model, tmp_path, hub, uploads, capsys):
    model, task = adapted(tiny_text_model)
    export(model, task, RECORD, tmp_path / "adapter")
    assert push(tmp_path / "adapter") == 2
    told = capsys.readouterr().err
    assert "adapter_config.json: base_model_name_or_path: the adapter's base model is a folder of this machine" in told
    assert "--merge" in told
    assert push(tmp_path / "adapter", "--merge") == 2
    assert "Give the run's folder to merge it." in capsys.readouterr().err
    assert hub.requests == []


def test_a_missing_card_and_damaged_weights_are_told_together(exported, hub, uploads, capsys):
    (exported / "README.md").unlink()
    (exported / "model.safetensors").write_bytes(b"cut")
    assert push(exported) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: 2 problems:")
    assert "README.md: there is no model card." in told and "model.safetensors: the file is damaged" in told
    assert hub.requests == []


def test_a_card_whose_head_is_broken_is_told(exported, hub, uploads, capsys):
    (exported / "README.md").write_text("---\ntags: [x\n---\n")
    assert push(exported) == 2
    assert "README.md: the head of the model card is not valid" in capsys.readouterr().err
    assert hub.requests == []


# runs


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_text_model):
    """A folder with a run of a LoRA adapter."""
    folder = tmp_path_factory.mktemp("project")
    tiny_run.write(folder, tiny_text_model, model__adapter={"class_path": "peft.LoraConfig"}, trainer__max_steps=2)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "-c", "tiny.yaml"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(trained, tmp_path / "project"))
    return Path("runs/tiny")


def test_a_run_is_merged_and_pushed_and_not_exported_twice(run, uploads, capsys):
    assert push(run, "--merge") == 0
    assert "the run runs/tiny has an export of the adapter alone; making it" in capsys.readouterr().err
    assert pushed(uploads) == hashes(run / "export")
    assert "adapter_config.json" not in pushed(uploads)
    made = (run / "export" / "model.safetensors").stat().st_mtime_ns
    assert push(run, "--merge") == push(run) == 0
    assert (run / "export" / "model.safetensors").stat().st_mtime_ns == made


def test_a_run_whose_export_is_of_another_checkpoint_or_missing_is_exported_first(run, uploads, capsys):
    manifest = run / "export" / "lit_hf.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "checkpoint": "step-00000001"}))
    assert push(run, "--merge") == 0
    shutil.copyfile(manifest, manifest.with_suffix(".old"))
    values = json.loads(manifest.read_text())
    assert values["checkpoint"] == "step-00000002"
    manifest.write_text(json.dumps({**values, "checkpoint": "step-00000001"}))
    assert push(run, "--merge") == 0
    assert "has no export of its best checkpoint, step-00000002; making it" in capsys.readouterr().err
    shutil.rmtree(run / "export")
    assert main(["push", "-c", "tiny.yaml", "--repo", REPO, "--merge"]) == 0
    assert "has no export yet; making it" in capsys.readouterr().err
    assert pushed(uploads) == hashes(run / "export")


def test_a_run_whose_checkpoints_are_gone_is_pushed_as_it_is(run, uploads):
    assert main(["export", str(run), "--merge"]) == 0
    before = hashes(run / "export")
    shutil.rmtree(run / "checkpoints")
    assert push(run) == 0
    assert pushed(uploads) == before == hashes(run / "export")


def test_a_card_that_somebody_edited_is_pushed_as_it_is(run, uploads):
    assert main(["export", str(run), "--merge"]) == 0
    card = run / "export" / "README.md"
    card.write_text(card.read_text() + "\nIt is meant for films.\n")
    edited = card.read_text()
    shutil.rmtree(run / "export" / "model.safetensors", ignore_errors=True)
    manifest = run / "export" / "lit_hf.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "checkpoint": "step-00000001"}))
    assert push(run, "--merge") == 0
    assert card.read_text() == edited
    assert pushed(uploads)["README.md"] == hashes(run / "export")["README.md"]
