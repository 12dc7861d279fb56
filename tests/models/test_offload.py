from __future__ import annotations

import copy

import pytest
import torch
from peft import HiraConfig, LoraConfig, PromptTuningConfig, VBLoRAConfig, VeraConfig

from lit_hf.errors import InputError
from lit_hf.export.package import export
from lit_hf.inference.predictor import Predictor
from lit_hf.models.folder import load_model
from lit_hf.models.offload import OWN_FOLDER, Offload, adapter_problems, input_device
from tests.classifiers import RECORD, TEXTS, adapted, classifier

AUTO = "AutoModelForSequenceClassification"
BY_MODULE = {"bert.embeddings": "cpu", "bert.encoder": "disk", "bert.pooler": "disk", "classifier": "cpu"}


@pytest.fixture
def folder(tiny_text_model, tmp_path):
    model, task = classifier(tiny_text_model)
    export(model, task, RECORD, tmp_path / "export")
    return tmp_path / "export"


def scores(predictor):
    return [row["scores"] for row in predictor.predict({"text": text} for text in TEXTS)]


@pytest.mark.parametrize(
    ("device_map", "max_memory"),
    [(BY_MODULE, None), ({"": "disk"}, None), ("auto", {"cpu": "12KB"}), ("auto", None)],
)
def test_a_model_that_is_spread_over_memory_and_disk_predicts_the_same(folder, tmp_path, device_map, max_memory):
    expected = scores(Predictor.from_folder(folder, device="cpu"))
    offload = Offload(device_map, max_memory, tmp_path / "weights")
    predictor = Predictor.from_folder(folder, offload=offload)
    assert scores(predictor) == expected
    devices = {parameter.device.type for parameter in predictor.model.parameters()}
    if not torch.cuda.is_available():
        assert ("meta" in devices) == ((device_map, max_memory) != ("auto", None))
        assert input_device(predictor.model).type == "cpu"


ADAPTERS = {
    "lora": LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
    "embeddings": LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "word_embeddings"]),
    "dora": LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "dense"], use_dora=True),
    "pissa": LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"], init_lora_weights="pissa"),
    "vera": VeraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
    "hira": HiraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
}


@pytest.mark.parametrize(
    ("device_map", "max_memory"), [(BY_MODULE, None), ({"": "disk"}, None), ("auto", {"cpu": "14KB"}), ("auto", None)]
)
@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_spread_with_its_base_model(tiny_text_model, tmp_path, name, device_map, max_memory):
    model, task = adapted(tiny_text_model, copy.deepcopy(ADAPTERS[name]))
    export(model, task, RECORD, tmp_path / "adapter")
    before = {path: path.read_bytes() for path in tiny_text_model.iterdir()}
    expected = scores(Predictor.from_folder(tmp_path / "adapter", device="cpu"))
    (tmp_path / "weights" / OWN_FOLDER).mkdir(parents=True)
    (tmp_path / "weights" / OWN_FOLDER / "index.json").write_text("{}")  # another model's
    (tmp_path / "weights" / "index.json").write_text("the user's")
    offload = Offload(device_map, max_memory, tmp_path / "weights")
    predictor = Predictor.from_folder(tmp_path / "adapter", offload=offload)
    assert scores(predictor) == expected
    if not torch.cuda.is_available():
        devices = {parameter.device.type for parameter in predictor.model.parameters()}
        assert ("meta" in devices) == ((device_map, max_memory) != ("auto", None))
    assert {path: path.read_bytes() for path in tiny_text_model.iterdir()} == before
    assert (tmp_path / "weights" / "index.json").read_text() == "the user's"
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["index.json", OWN_FOLDER]


@pytest.mark.parametrize(
    ("adapter", "is_quantized", "what"),
    [
        (PromptTuningConfig(num_virtual_tokens=2), False, "a prompt and its base model share their embeddings"),
        (ADAPTERS["lora"], True, "the adapter's base model is quantized"),
    ],
    ids=["prompt", "quantized"],
)
def test_what_is_not_spread_is_told(adapter, is_quantized, what):
    (problem,) = adapter_problems(adapter, is_quantized)
    assert problem.where == "--device_map" and what in problem.what


def test_a_prompt_is_refused_before_its_base_model_loads(tiny_text_model, tmp_path):
    model, task = adapted(tiny_text_model, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    export(model, task, RECORD, tmp_path / "prompt")
    with pytest.raises(InputError, match="--device_map: a prompt"):
        load_model(tmp_path / "prompt", AUTO, offload=Offload())


def test_weights_that_an_adapter_shares_with_what_is_elsewhere_are_told(tiny_text_model, tmp_path):
    vectors = VBLoRAConfig(task_type="SEQ_CLS", target_modules=["query"], vector_length=8, num_vectors=4)
    model, task = adapted(tiny_text_model, vectors)
    export(model, task, RECORD, tmp_path / "adapter")
    with pytest.raises(InputError, match="--device_map: the adapter cannot be spread so"):
        load_model(tmp_path / "adapter", AUTO, offload=Offload({"": "disk"}, None, tmp_path / "weights"))


def test_weights_on_the_disk_need_a_folder(folder, tiny_text_model, tmp_path):
    with pytest.raises(InputError, match="--offload_folder: is missing"):
        load_model(folder, AUTO, offload=Offload(BY_MODULE))
    model, task = adapted(tiny_text_model)
    export(model, task, RECORD, tmp_path / "adapter")
    with pytest.raises(InputError, match="--offload_folder: is missing"):
        load_model(tmp_path / "adapter", AUTO, offload=Offload("auto", {"cpu": "14KB"}))


def test_a_way_to_spread_that_there_is_not_is_refused(folder):
    with pytest.raises(InputError, match="'everywhere' is no way to spread a model"):
        load_model(folder, AUTO, offload=Offload("everywhere"))


def test_a_device_that_there_is_not_is_told(folder):
    with pytest.raises(InputError, match="the model cannot be loaded"):
        load_model(folder, AUTO, offload=Offload({"": "nowhere"}))
