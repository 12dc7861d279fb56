from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lit_hf.errors import InputError
from lit_hf.export.package import export
from lit_hf.models.folder import fetch, load_config, load_model
from tests.classifiers import LABELS, RECORD, adapted, classifier

AUTO = "AutoModelForSequenceClassification"


@pytest.fixture
def full(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, RECORD, tmp_path / "full")
    return tmp_path / "full"


@pytest.fixture
def adapter(tiny_text_model, tmp_path):
    model, task = adapted(tiny_text_model)
    export(model, task, RECORD, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_local_folders_are_taken_as_they_are(full):
    assert fetch(full) == full


def test_a_repository_of_the_hub_is_loaded_without_its_code_and_pickles(hub, full):
    (full / "modeling_evil.py").write_text("raise SystemExit")
    (full / "pytorch_model.bin").write_bytes(b"\x80")
    hub.add_model("someone/classifier", full)
    loaded = fetch("someone/classifier")
    names = {path.name for path in loaded.iterdir()}
    assert {"config.json", "model.safetensors", "lit_hf.json"} <= names
    assert not {"modeling_evil.py", "pytorch_model.bin"} & names


@pytest.mark.parametrize("name", ["someone/nothing", "./no/such/folder", "a/b/c", "runs/x "])
def test_what_is_nowhere_is_told(hub, name):
    with pytest.raises(InputError) as error:
        fetch(name)
    assert name in str(error.value)


def test_labels_of_an_adapter_come_from_beside_it(adapter):
    assert list(load_config(adapter).id2label.values()) == LABELS


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_models_come_in_eval_mode(kind, request):
    model = load_model(request.getfixturevalue(kind), AUTO)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("kind, name", [("full", "model"), ("adapter", "adapter_model")])
def test_truncated_weights_are_named(kind, name, request):
    path = request.getfixturevalue(kind) / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged or cut off") as error:
        load_model(path.parent, AUTO)
    assert error.value.problems[0].where == str(path)


def test_a_model_without_a_trained_head_is_refused(tiny_text_model):
    with pytest.raises(InputError, match=r"no trained head.*classifier.bias, classifier.weight are not in"):
        load_model(tiny_text_model, AUTO)


def test_an_adapter_without_the_head_is_refused(adapter):
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "classifier" not in name}, path)
    with pytest.raises(InputError, match="no trained head"):
        load_model(adapter, AUTO)


def test_pickled_weights_are_not_read(full):
    weights = AutoModelForSequenceClassification.from_pretrained(full).state_dict()
    (full / "model.safetensors").unlink()
    torch.save(weights, full / "pytorch_model.bin")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(full, AUTO)


def test_a_lost_base_model_is_named(tiny_text_model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_text_model, base)
    model, task = adapted(base)
    export(model, task, RECORD, tmp_path / "adapter")
    base.rename(tmp_path / "moved")
    with pytest.raises(InputError, match="base model") as error:
        load_model(tmp_path / "adapter", AUTO)
    assert str(base) in str(error.value)
    assert "--merge" in str(error.value)


def test_code_in_a_folder_is_not_run(full):
    config = json.loads((full / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", AUTO: "evil.Evil"}}
    (full / "config.json").write_text(json.dumps(config))
    (full / "evil.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(full, AUTO)
