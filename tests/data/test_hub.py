from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from lit_hf.data.sources import Source, load_splits
from lit_hf.data.tokenization import TokenizerSettings, load_tokenizer
from lit_hf.errors import InputError
from tests.hub import Hub


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    for split, count in {"train": 30, "validation": 2, "other": 1}.items():
        lines = [json.dumps({"text": f"{split} {index}", "label": index % 2}) for index in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: small\n  data_files: [{split: train, path: other.jsonl}]\n"
        "- config_name: large\n  data_files:\n"
        "  - {split: train, path: train.jsonl}\n  - {split: dev, path: validation.jsonl}\n---\n"
    )
    return folder


def problem(source: Source) -> str:
    with pytest.raises(InputError) as caught:
        load_splits(source, ("train",))
    (only,) = caught.value.problems
    return f"{only.where}: {only.what} {only.cure}"


def test_a_dataset_on_the_hub_is_read_with_places(hub: Hub, rows: Path) -> None:
    hub.add_dataset("org/rows", rows)

    splits = load_splits(Source(path="org/rows", name="large", validation="dev"))

    assert splits["validation"].rows["text"][:] == ["validation 0", "validation 1"]
    assert splits["train"].place(17) == "org/rows train row 17"
    assert splits["validation"].place(1) == "org/rows dev row 1"


def test_a_revision_is_read(hub: Hub, rows: Path, tmp_path: Path) -> None:
    hub.add_dataset("org/rows", rows)
    old = tmp_path / "old"
    old.mkdir()
    (old / "train.jsonl").write_text('{"text": "old"}\n')
    hub.add_dataset("org/rows", old, revision="v1")

    assert load_splits(Source(path="org/rows", revision="v1"), ["train"])["train"].rows["text"][:] == ["old"]


def test_a_configuration_must_be_chosen_and_there(hub: Hub, rows: Path) -> None:
    hub.add_dataset("org/rows", rows)

    for name in (None, "smal"):
        text = problem(Source(path="org/rows", name=name))
        assert text.startswith("data.source.name: ")
        assert "small" in text
        assert "large" in text


def test_a_split_that_is_not_there_is_told_with_the_nearest(hub: Hub, rows: Path) -> None:
    hub.add_dataset("org/rows", rows)

    text = problem(Source(path="org/rows", name="large", train="trian"))

    assert text.startswith("data.source.train: org/rows has no split 'trian'.")
    assert "Did you mean 'train'?" in text


@pytest.mark.parametrize(
    ("status", "what"),
    [
        (401, "or it needs a login"),
        (403, "the Hub refuses access"),
        (404, "no such dataset"),
        (429, "so many requests"),
        (503, "fails"),
    ],
)
def test_a_failing_hub_is_told_with_its_status(hub: Hub, status: int, what: str) -> None:
    hub.fail("org/rows", status)

    text = problem(Source(path="org/rows"))

    assert text.startswith("data.source.path: org/rows: ")
    assert what in text
    assert f"(status {status})" in text


def test_a_misspelled_dataset_is_told(hub: Hub, rows: Path) -> None:
    hub.add_dataset("org/rows", rows)

    assert "no such dataset or revision on the Hub (status 404)" in problem(Source(path="org/rws"))
    assert "no such dataset or revision on the Hub (status 404)" in problem(Source(path="org/rows", revision="v9"))


@pytest.mark.parametrize("status", [401, 403, 404, 429, 503])
def test_a_tokenizer_that_the_hub_does_not_give_is_told(hub: Hub, status: int) -> None:
    hub.fail("org/model", status)

    with pytest.raises(InputError) as caught:
        load_tokenizer(TokenizerSettings(), checkpoint="org/model")

    (only,) = caught.value.problems
    assert only.where == "model.checkpoint"
    assert f"(status {status})" in only.what


def test_a_tokenizer_on_the_hub_is_loaded(hub: Hub, tiny_text_model: Path) -> None:
    hub.add_model("org/tiny", tiny_text_model)

    assert load_tokenizer(TokenizerSettings(checkpoint="org/tiny"))("the film")["input_ids"] == [2, 5, 6, 3]


def test_offline_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    assert "HF_HUB_OFFLINE keeps us from asking the Hub" in problem(Source(path="org/rows"))
