import pytest
import torch
from peft import AdaLoraConfig, KasaConfig, LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from lit_hf.models.adapter_losses import leave_loss_alone, regularization

BATCH = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "labels": torch.tensor([1])}


def adapted(adapter):
    torch.manual_seed(0)
    size = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 16}
    config = BertConfig(**size, num_hidden_layers=1, num_attention_heads=2)
    return get_peft_model(BertForSequenceClassification(config), adapter).eval()


def test_adalora_s_regularization_is_what_peft_adds_to_the_loss():
    model = adapted(
        AdaLoraConfig(task_type="SEQ_CLS", init_r=4, target_r=2, total_step=10, target_modules=["query", "value"])
    )
    with torch.no_grad():
        peft_s = model(**BATCH).loss
        leave_loss_alone(model)
        alone = model(**BATCH).loss
    assert peft_s - alone > 0.1
    torch.testing.assert_close(alone + regularization(model), peft_s)


@pytest.mark.parametrize(
    ("adapter", "adds"),
    [
        (LoraConfig(target_modules=["query"]), False),
        (LoraConfig(target_modules=["query"], kasa_config=KasaConfig()), True),
    ],
    ids=["lora", "kasa"],
)
def test_only_adapters_that_ask_for_it_add_to_the_loss(adapter, adds):
    added = regularization(adapted(adapter))
    assert (added is not None and added > 0) == adds
