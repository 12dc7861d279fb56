from __future__ import annotations

import json
import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, IA3Config, PrefixTuningConfig
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig, GPTQConfig, pipeline

import lit_hf.export.package as package
from lit_hf.errors import InputError, LitHFError
from lit_hf.export.package import check, export
from tests.classifiers import LABELS, RECORD, TEXTS, adapted, classifier

ID2LABEL = dict(enumerate(LABELS))


def logits(model, task) -> torch.Tensor:
    with torch.inference_mode():
        return model(**task.tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_full_model_loads_with_transformers_alone(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export")

    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    assert reloaded.config.id2label == ID2LABEL
    assert reloaded.config.label2id == {label: index for index, label in ID2LABEL.items()}
    assert reloaded.config.problem_type == "single_label_classification"
    assert reloaded.config.architectures == ["BertForSequenceClassification"]
    torch.testing.assert_close(logits(reloaded.eval(), task), logits(model, task), rtol=0, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "export")(TEXTS) == task.tokenizer(TEXTS)

    answer = pipeline("text-classification", str(tmp_path / "export"))(TEXTS)
    expected = logits(model, task).softmax(-1).max(-1)
    assert [one["label"] for one in answer] == [LABELS[index] for index in expected.indices]
    assert [one["score"] for one in answer] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_folder_holds_what_prediction_needs_and_no_pickle_nor_local_path(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export")

    written = files(tmp_path / "export")
    assert set(written) == {
        "README.md",
        "config.json",
        "lit_hf.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    manifest = json.loads(written["lit_hf.json"])
    assert manifest["task"] == RECORD
    assert manifest["state"]["labels"] == LABELS
    for name, content in written.items():
        assert str(tiny_text_model).encode() not in content, name
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    modes = {path.stat().st_mode for path in (tmp_path / "export").iterdir()}
    assert len(modes) == 1  # whoever may read the config may read the weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_stays(tiny_text_model, tmp_path, dtype):
    model, task = classifier(tiny_text_model)
    export(model.to(dtype), task, RECORD, tmp_path / "export")

    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export", dtype="auto")
    assert {parameter.dtype for parameter in reloaded.parameters()} == {dtype}


def test_model_in_training_is_left_as_it_was(tiny_text_model, tmp_path):
    model, task = adapted(tiny_text_model)
    model.train()
    model.get_submodule("base_model.model.bert.pooler").eval()
    modes = [module.training for module in model.modules()]
    before = weights(model)

    export(model, task, RECORD, tmp_path / "adapter")
    export(model, task, RECORD, tmp_path / "merged", merge=True)

    assert [module.training for module in model.modules()] == modes
    assert same(before, weights(model))


def test_adapter_is_written_alone_with_the_trained_head(tiny_text_model, tmp_path):
    model, task = adapted(tiny_text_model)
    folder = tmp_path / "export"
    export(model, task, RECORD, folder)

    written = files(folder)
    assert "adapter_model.safetensors" in written
    assert not {"config.json", "model.safetensors"} & set(written)
    config = AutoConfig.from_pretrained(folder / "model_config")
    assert config.id2label == ID2LABEL
    plain = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
    torch.testing.assert_close(logits(plain.eval(), task), logits(model, task), rtol=0, atol=1e-6)
    with_peft = AutoPeftModelForSequenceClassification.from_pretrained(folder, id2label=ID2LABEL)
    torch.testing.assert_close(logits(with_peft.eval(), task), logits(model, task), rtol=0, atol=1e-6)

    answer = pipeline("text-classification", plain, tokenizer=task.tokenizer)(TEXTS)
    assert [one["label"] for one in answer] == [LABELS[index] for index in logits(model, task).argmax(-1)]


def test_merged_adapter_is_a_plain_model(tiny_text_model, tmp_path):
    model, task = adapted(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export", merge=True)

    assert not [name for name in files(tmp_path / "export") if "adapter" in name]
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    assert type(reloaded).__name__ == "BertForSequenceClassification"
    assert not [name for name, _ in reloaded.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(reloaded.eval(), task), logits(model, task), rtol=0, atol=1e-4)
    answer = pipeline("text-classification", str(tmp_path / "export"))(TEXTS)
    assert [one["label"] for one in answer] == [LABELS[index] for index in logits(model, task).argmax(-1)]


def test_other_adapters_are_exported(tiny_text_model, tmp_path):
    ia3 = IA3Config(task_type="SEQ_CLS", target_modules=["query", "value"], feedforward_modules=[])
    model, task = adapted(tiny_text_model, ia3)
    export(model, task, RECORD, tmp_path / "export", merge=True)

    prefix, task = adapted(tiny_text_model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    export(prefix, task, RECORD, tmp_path / "prefix")
    reloaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "prefix", id2label=ID2LABEL)
    torch.testing.assert_close(logits(reloaded.eval(), task), logits(prefix, task), rtol=0, atol=1e-6)


def test_prefix_cannot_be_merged(tiny_text_model, tmp_path):
    model, task = adapted(tiny_text_model, PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    with pytest.raises(InputError, match="PREFIX_TUNING adapter cannot be merged"):
        export(model, task, RECORD, tmp_path / "export", merge=True)
    assert not list(tmp_path.iterdir())


def test_adapter_without_a_checkpoint_below_it_needs_merging(tiny_text_model):
    model, _ = adapted(tiny_text_model)
    model.get_base_model().config.name_or_path = ""
    model.get_base_model().name_or_path = ""
    model.active_peft_config.base_model_name_or_path = None

    assert [problem.where for problem in check(model, merge=False)] == ["model.adapter"]
    assert check(model, merge=True) == []


def test_an_adapter_is_not_merged_into_weights_without_a_way_back(tiny_text_model):
    model, _ = adapted(tiny_text_model)
    model.get_base_model().config.quantization_config = GPTQConfig(bits=4)
    (problem,) = check(model, merge=True)
    assert problem.where == "merge" and "gptq weights cannot be turned back" in problem.what
    assert check(model, merge=False) == []


def test_a_newer_export_replaces_the_older_one(tiny_text_model, tmp_path):
    for seed in (1, 2):
        model, task = classifier(tiny_text_model, seed)
        export(model, task, RECORD, tmp_path / "export")
    (tmp_path / "export" / "stray.txt").touch()
    export(model, task, RECORD, tmp_path / "export")

    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    assert same(weights(model), weights(reloaded))
    assert not (tmp_path / "export" / "stray.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_what_a_killed_export_left_is_cleared_away(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    (tmp_path / ".export.0123abcd").mkdir()
    (tmp_path / ".export.0123abcd" / "model.safetensors").write_text("cut")
    (tmp_path / ".export.0123abce.old").mkdir()
    (tmp_path / ".export.mine").mkdir()
    (tmp_path / ".export.89abcdef").mkdir()
    writing = package._hold(tmp_path / ".export.89abcdef")  # by another process
    try:
        export(model, task, RECORD, tmp_path / "export")
    finally:
        os.close(writing)
    assert {path.name for path in tmp_path.iterdir()} == {"export", ".export.mine", ".export.89abcdef"}


def test_an_export_that_was_being_replaced_is_brought_back(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export")
    before = files(tmp_path / "export")
    (tmp_path / "export").rename(tmp_path / ".export.0123abcd.old")  # killed between two renames
    (tmp_path / ".export.0123abcd").mkdir()
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(LitHFError, match="nan"):  # the new one fails: the old one stays
        export(model, task, RECORD, tmp_path / "export")
    assert files(tmp_path / "export") == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_folder_with_other_things_is_not_replaced(tiny_text_model, tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    model, task = classifier(tiny_text_model)
    with pytest.raises(InputError, match="not an export of lit-hf"):
        export(model, task, RECORD, tmp_path)
    assert files(tmp_path) == {"thesis.txt": b"ten years of work"}


def test_a_model_that_reloads_differently_is_not_published(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export")
    before = files(tmp_path / "export")
    model, task = adapted(tiny_text_model)
    base = tmp_path / "base"
    shutil.copytree(tiny_text_model, base)
    model.active_peft_config.base_model_name_or_path = str(base)
    other = AutoModelForSequenceClassification.from_config(BertConfig.from_pretrained(tiny_text_model))
    other.bert.save_pretrained(base)  # the base has changed since: the adapter does not fit it any more

    with pytest.raises(LitHFError, match=r"logits differ by [\d.]+"):
        export(model, task, RECORD, tmp_path / "export")
    assert files(tmp_path / "export") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "export"]


def test_a_model_of_nan_is_not_published(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    model.classifier.bias.data[0] = float("nan")
    with pytest.raises(LitHFError, match="nan"):
        export(model, task, RECORD, tmp_path / "export")


def test_a_full_disk_is_found_before_anything_is_written(tiny_text_model, tmp_path, monkeypatch):
    model, task = classifier(tiny_text_model)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(package.shutil, "disk_usage", lambda _: usage(2**30, 2**30 - 1000, 1000))
    with pytest.raises(InputError, match="0 MiB are free"):
        export(model, task, RECORD, tmp_path / "export")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_to_is_told(tiny_text_model, tmp_path):
    (tmp_path / "file").touch()
    model, task = classifier(tiny_text_model)
    with pytest.raises(InputError, match="cannot be written to"):
        export(model, task, RECORD, tmp_path / "file" / "export")


def test_export_says_what_it_did(tiny_text_model, tmp_path, caplog):
    model, task = adapted(tiny_text_model)
    with caplog.at_level(logging.INFO, "lit_hf"):
        export(model, task, RECORD, tmp_path / "export")
    assert f"exported the adapter to {tmp_path / 'export'}; reloaded, its outputs differ by 0 at most" in caplog.text
