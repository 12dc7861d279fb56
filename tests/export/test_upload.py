from __future__ import annotations

import hashlib

import pytest
from huggingface_hub import constants

from lit_hf.errors import InputError, UploadError
from lit_hf.export.upload import upload
from tests.uploads import Answer

REPO = "user/reviews"
AGAIN = "run the same command again: what is there already is not sent again."
STEPS = ("create", "branch", "preupload", "batch", "put", "commit")


def hashes(folder) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def push(folder, **options) -> str:
    return upload(folder, list(hashes(folder)), REPO, **options)


def test_a_commit_holds_the_files_that_are_named_and_no_others(exported, hub, uploads):
    assert upload(exported, ["config.json", "model.safetensors"], REPO) == f"{hub.url}/{REPO}"
    (commit,) = uploads.repositories[REPO].commits
    assert commit.added == {name: hashes(exported)[name] for name in ("config.json", "model.safetensors")}
    assert commit.message.startswith("Upload a model with lit-hf ")


def test_a_name_is_no_pattern(exported, uploads):
    (exported / "a[b].txt").write_text("x")
    (exported / "ab.txt").write_text("x")
    upload(exported, ["a[b].txt"], REPO)
    assert list(uploads.repositories[REPO].commits[0].added) == ["a[b].txt"]


def test_what_another_export_left_is_removed_and_nothing_else(exported, uploads, tmp_path, caplog):
    """Else transformers would load an adapter's base model, and never look at the weights."""
    left = ["adapter_config.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors"]
    left += ["model.safetensors.index.json", "model_config/config.json"]
    kept = ["figures/loss.json", "my_model.safetensors", "notes.txt", "old/model.safetensors", "vae.safetensors"]
    for name in (*left, *kept):
        (tmp_path / "before" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "before" / name).write_text(name)
    push(tmp_path / "before")

    with caplog.at_level("INFO", "lit_hf"):
        push(exported)

    repository = uploads.repositories[REPO]
    assert sorted(repository.commits[-1].deleted) == sorted(left)
    assert set(repository.files()) == {".gitattributes", *kept, *hashes(exported)}
    assert "are of another export: adapter_config.json, adapter_model.safetensors" in caplog.text


@pytest.mark.parametrize("fault", [Answer(500), Answer(503, headers={"Retry-After": "1"}), Answer(None)])
def test_what_was_cut_goes_on_with_what_is_not_there(exported, uploads, fault):
    before = hashes(exported)
    uploads.puts, uploads.fault_of_puts = 1, lambda: fault

    with pytest.raises(UploadError) as caught:
        push(exported)

    assert f"--repo {REPO}: the " in str(caught.value) and AGAIN in str(caught.value)
    assert (f"(status {fault.status})" in str(caught.value)) is (fault.status is not None)
    repository = uploads.repositories[REPO]
    assert (len(repository.puts), repository.commits) == (1, [])
    assert hashes(exported) == before  # and nothing new beside it
    (first,) = repository.puts

    uploads.puts = None
    push(exported)

    assert repository.puts.count(first) == 1
    assert sorted(repository.puts) == sorted({before["model.safetensors"], before["tokenizer.json"]})
    assert [commit.added for commit in repository.commits] == [before]
    assert hashes(exported) == before


@pytest.fixture
def xet(uploads, tmp_path, monkeypatch):
    """The folder for the chunks of large files, which go by Xet now, as they do to the real Hub."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    uploads.xet = tmp_path / "storage"
    return uploads.xet / "xet" / "xorbs" / "xorbs"


def test_by_xet_too(exported, uploads, xet):
    uploads.faults["commit"] = Answer(500)
    with pytest.raises(UploadError, match=r"the Hub fails \(status 500\)"):
        push(exported)
    chunks = hashes(xet)
    assert chunks

    del uploads.faults["commit"]
    push(exported)

    assert hashes(xet) == chunks
    (commit,) = uploads.repositories[REPO].commits
    assert commit.added == hashes(exported)
    assert uploads.repositories[REPO].puts == []


def test_a_storage_that_refuses_is_told_by_its_status(exported, uploads, xet):
    uploads.faults["xet"] = Answer(403)
    with pytest.raises(InputError, match=r"you may not write there, or your token may not \(status 403\)"):
        push(exported)


@pytest.mark.parametrize(
    ("step", "status", "error", "told"),
    [
        *((step, 500, UploadError, ("the Hub fails (status 500).", f"Later, {AGAIN}")) for step in STEPS),
        ("validate", 503, UploadError, ("the Hub's answer cannot be read", AGAIN)),
        (
            "create",
            401,
            InputError,
            ("there is no token, or a wrong one (status 401).", "or set HF_TOKEN"),
        ),
        ("commit", 403, InputError, ("you may not write there, or your token may not (status 403).", "hf auth login")),
        ("preupload", 404, InputError, ("there is no such repository or branch", "(status 404).", "Check --repo")),
        ("commit", 409, UploadError, ("something else changes the repository just now (status 409).", AGAIN)),
        ("put", 413, InputError, ("this is more than the Hub takes (status 413).", "storage-limits")),
        ("commit", 429, UploadError, ("refuses so many requests (status 429).", f"Wait 300 seconds, then {AGAIN}")),
        ("commit", 418, InputError, ("the Hub refuses the upload (status 418).", "Check --repo and --revision")),
    ],
)
def test_what_the_hub_refuses_is_told_with_status_place_and_cure(exported, uploads, step, status, error, told):
    before = hashes(exported)
    uploads.faults[step] = Answer(status, headers={"Retry-After": "300"} if status == 429 else {})

    with pytest.raises(error) as caught:
        push(exported, revision="next")

    assert str(caught.value).startswith(f"--repo {REPO}: ")
    assert [part for part in told if part not in str(caught.value)] == [], str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert hashes(exported) == before


def test_when_a_limit_that_is_counted_by_window_ends_is_told(exported, uploads):
    uploads.faults["commit"] = Answer(429, headers={"ratelimit": '"api";r=0;t=55'})
    with pytest.raises(UploadError, match="Wait 55 seconds, then"):
        push(exported)


def test_a_card_that_the_hub_refuses_is_told(exported, uploads):
    (exported / "README.md").write_text("---\ntags: [x\n---\n")
    with pytest.raises(InputError, match=r"refuses what is sent \(status 400\). The Hub says: .*no YAML"):
        push(exported)


def test_a_large_file_that_is_refused_in_an_answer_without_failure_is_told(exported, uploads):
    error = {"oid": "0" * 64, "size": 1, "error": {"code": 422, "message": "over your quota"}}
    uploads.faults["batch"] = Answer(200, {"objects": [error]})
    with pytest.raises(InputError, match=r"the Hub refuses what is sent: .*over your quota"):
        push(exported)


def test_a_fault_of_our_own_stays_what_it_is(tmp_path, uploads, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        upload(tmp_path, [], REPO)
