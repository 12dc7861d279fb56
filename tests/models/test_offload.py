from __future__ import annotations

import pytest
import torch

from lit_hf.errors import InputError
from lit_hf.export.package import export
from lit_hf.inference.predictor import Predictor
from lit_hf.models.folder import load_model
from lit_hf.models.offload import Offload, input_device
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


def test_only_whole_models_are_spread(tiny_text_model, tmp_path):
    model, task = adapted(tiny_text_model)
    export(model, task, RECORD, tmp_path / "adapter")
    with pytest.raises(InputError, match="export <run> --merge"):
        load_model(tmp_path / "adapter", AUTO, offload=Offload())


def test_weights_on_the_disk_need_a_folder(folder):
    with pytest.raises(InputError, match="--offload_folder: is missing"):
        load_model(folder, AUTO, offload=Offload(BY_MODULE))


def test_a_way_to_spread_that_there_is_not_is_refused(folder):
    with pytest.raises(InputError, match="'everywhere' is no way to spread a model"):
        load_model(folder, AUTO, offload=Offload("everywhere"))


def test_a_device_that_there_is_not_is_told(folder):
    with pytest.raises(InputError, match="the model cannot be loaded"):
        load_model(folder, AUTO, offload=Offload({"": "nowhere"}))
