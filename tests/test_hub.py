from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lit_hf.hub import is_local, load_problem
from tests.hub import Hub


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, count in {"train": 3, "validation": 2}.items():
        lines = [json.dumps({"text": f"{split} {index}", "label": index % 2}) for index in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_model_loads_by_id(hub: Hub, tiny_text_model: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    hub.add_model("org/tiny", tiny_text_model)

    assert AutoConfig.from_pretrained("org/tiny").hidden_size == 16
    assert AutoTokenizer.from_pretrained("org/tiny")("the film")["input_ids"] == [2, 5, 6, 3]
    model = AutoModelForSequenceClassification.from_pretrained("org/tiny", num_labels=3)
    assert model.classifier.out_features == 3
    asked = [(request.method, request.status) for request in hub.requests if "model.safetensors" in request.path]
    assert asked == [("HEAD", 200), ("GET", 200)]


def test_a_model_loads_by_id_in_another_process(hub: Hub, tiny_text_model: Path) -> None:
    hub.add_model("org/tiny", tiny_text_model)
    code = "from transformers import AutoConfig; print(AutoConfig.from_pretrained('org/tiny').hidden_size)"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout == "16\n"


def test_a_repository_without_an_owner_loads(hub: Hub, tiny_text_model: Path) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    hub.add_model("tiny", tiny_text_model)

    assert "config.json" in HfApi().list_repo_files("tiny")
    assert Path(hf_hub_download("tiny", "config.json")).read_bytes() == (tiny_text_model / "config.json").read_bytes()


def test_a_dataset_loads_by_id_with_its_splits(hub: Hub, rows: Path) -> None:
    from datasets import load_dataset

    hub.add_dataset("org/rows", rows)
    splits = load_dataset("org/rows")

    assert {split: loaded["text"][:] for split, loaded in splits.items()} == {
        "train": ["train 0", "train 1", "train 2"],
        "validation": ["validation 0", "validation 1"],
    }


def test_a_dataset_loads_at_a_revision(hub: Hub, rows: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    old = tmp_path / "old" / "data"
    old.mkdir(parents=True)
    (old / "train.jsonl").write_text('{"text": "old", "label": 1}\n', encoding="utf-8")
    hub.add_dataset("org/rows", rows)
    hub.add_dataset("org/rows", old.parent, revision="v1")

    assert load_dataset("org/rows", revision="v1")["train"]["text"][:] == ["old"]
    assert load_dataset("org/rows")["train"].num_rows == 3


def test_an_unknown_revision_is_told_from_an_unknown_repository(hub: Hub, rows: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    hub.add_dataset("org/rows", rows)

    with pytest.raises(RevisionNotFoundError):
        HfApi().dataset_info("org/rows", revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().dataset_info("org/row")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_a_failing_repository_answers_with_the_status(hub: Hub, status: int) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub.fail("org/tiny", status)

    with pytest.raises(HfHubHTTPError) as caught:
        HfApi().model_info("org/tiny")
    assert caught.value.response.status_code == status
    assert [(request.method, request.path) for request in hub.requests] == [("GET", "/api/models/org/tiny")]


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("nyu-mll/glue", False),
        ("imdb", False),
        ("./rows", True),
        ("/rows", True),
        ("data/sets/mine", True),
        ("~/rows", True),
    ],
)
def test_a_path_is_local_by_its_look(path: str, local: bool) -> None:
    assert is_local(path) is local


def test_a_folder_that_is_there_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "rows").mkdir(parents=True)

    assert is_local("org/rows")


def test_a_folder_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    problem = load_problem("model.checkpoint", str(tmp_path / "modl"), "model", OSError("absent"))

    assert problem.cure == f"Did you mean {tmp_path / 'model'}?"
