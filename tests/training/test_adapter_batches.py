import torch
from transformers import BertConfig, BertForSequenceClassification, BitsAndBytesConfig

from lit_hf.training.adapter_batches import place

META = torch.device("meta")


def tiny():
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=40, **shape))


def test_model_and_batches_come_to_the_device_that_trains():
    model, ids = tiny(), torch.arange(6).reshape(2, 3)
    (batch,) = place([{"input_ids": ids, "name": "kept"}], model, META)
    assert {parameter.device for parameter in model.parameters()} == {META}
    assert batch["input_ids"].device == META and batch["input_ids"].shape == (2, 3)
    assert batch["name"] == "kept"


def test_batches_come_to_quantized_weights_which_stay():
    model, ids = tiny(), torch.arange(6).reshape(2, 3)
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True)
    (batch,) = place([{"input_ids": ids}], model, META)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert torch.equal(batch["input_ids"], ids)
