import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PromptTuningConfig, VeraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from lit_hf.models.stored import base_weights, misfit, stored_names

NEW = ["classifier.weight", "classifier.bias"]
QUERIES = ["query", "value"]


def adapted(folder, adapter, **settings):
    model = AutoModelForSequenceClassification.from_pretrained(folder, **settings)
    weights = base_weights(model, NEW)
    model = get_peft_model(model, adapter)
    return model, stored_names(model, weights)


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=QUERIES),
        LoraConfig(task_type="SEQ_CLS", r=2, target_modules=QUERIES, use_dora=True),
        IA3Config(task_type="SEQ_CLS", target_modules=["value"], feedforward_modules=[]),
        AdaLoraConfig(task_type="SEQ_CLS", init_r=4, target_r=2, target_modules=QUERIES, total_step=100),
        VeraConfig(task_type="SEQ_CLS", r=2, target_modules=QUERIES),
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    ],
    ids=lambda adapter: adapter.peft_type,
)
def test_what_is_stored_and_the_checkpoint_make_the_model_again(tiny_text_model, adapter):
    torch.manual_seed(0)
    model, stored = adapted(tiny_text_model, adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    state = {name: value for name, value in model.state_dict().items() if name in stored}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained <= state.keys()
    assert not any("attention" in name and "base_layer" in name for name in state)
    assert not any("embeddings" in name for name in state)

    torch.manual_seed(1)
    again, stored_again = adapted(tiny_text_model, adapter)
    assert misfit(state, again.state_dict(), stored_again) is None
    again.load_state_dict(state, strict=False)
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("settings", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_nothing_of_a_quantized_base_is_stored(tiny_text_model, settings):
    adapter = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=QUERIES)
    quantization = {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": "cpu"}}
    model, stored = adapted(tiny_text_model, adapter, **quantization)
    state = {name for name in model.state_dict() if name in stored}
    assert all("lora_" in name or "classifier" in name for name in state)
    assert len(state) == 2 * 2 * 2 + 4  # two matrices in two places of two layers; the head, and what it was before


def test_a_checkpoint_that_lacks_something_or_has_more_is_told():
    own, wanted = {"frozen", "lora_A", "lora_B"}, {"lora_A", "lora_B"}
    assert misfit({"lora_A": 0, "lora_B": 0}, own, wanted) is None
    assert misfit({"lora_A": 0, "lora_B": 0, "frozen": 0}, own, wanted) is None
    assert misfit({"lora_A": 0}, own, wanted) == "tensors are 1 missing (lora_B, ...)"
    assert misfit({"x": 0}, own, wanted) == "tensors are 2 missing (lora_A, ...) and 1 unexpected (x, ...)"
