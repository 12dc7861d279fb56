import pytest
import torch
from datasets import Dataset
from peft import EvaConfig, IA3Config, LoraConfig, LoraGAConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from lit_hf.models.adapter_starts import SAMPLED_ROWS, data_driven, finish, prepare, start_batches

TARGETS = ["query", "value"]


@pytest.fixture
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=40, initializer_range=0.3, **shape))


def collate(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
    ids = torch.tensor(ids)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor([r["labels"] for r in rows])}


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 9, (40,), generator=generator).tolist()
    ids = [torch.randint(1, 40, (length,), generator=generator).tolist() for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "labels": [number % 2 for number in range(40)]})


def loss(model, batch):
    return model(**batch).loss


def eva(**settings):
    return LoraConfig(
        r=4, target_modules=TARGETS, task_type="SEQ_CLS", init_lora_weights="eva", eva_config=EvaConfig(**settings)
    )


def test_starts_that_need_data_are_known():
    assert data_driven(eva()) == "eva"
    assert data_driven(LoraConfig(init_lora_weights="pissa")) is None
    assert data_driven(IA3Config()) is data_driven(None) is None


def test_batches_are_the_same_each_time_and_have_some_rows_only(rows):
    first, again = (start_batches(eva(), rows, 16, collate, seed=3) for _ in range(2))
    assert [len(batch["labels"]) for batch in first] == [16, 16, 8]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True))
    other = start_batches(eva(), rows, 16, collate, seed=4)
    assert not all(torch.equal(a["labels"], b["labels"]) for a, b in zip(first, other, strict=True))
    many = Dataset.from_dict({"input_ids": [[1, 2]] * 600, "labels": [0] * 600})
    assert sum(len(batch["labels"]) for batch in start_batches(eva(), many, 50, collate, 0)) == SAMPLED_ROWS


def test_drawing_batches_leaves_the_random_numbers_of_the_run_alone(rows):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    start_batches(eva(), rows, 16, collate, seed=3)
    assert torch.equal(torch.rand(3), expected)


def test_cordas_covariances_are_taken_row_by_row(rows):
    corda = LoraConfig(target_modules=TARGETS)
    corda.init_lora_weights = "corda"
    assert {len(batch["labels"]) for batch in start_batches(corda, rows, 16, collate, 0)} == {1}


def test_eva_starts_at_the_principal_directions_of_what_each_layer_reads(model, rows):
    inputs = []
    batches = start_batches(eva(), rows, 40, collate, seed=0)
    adapted = get_peft_model(model, eva(rho=1.0))
    finish(adapted, batches, loss)
    layer = adapted.base_model.model.bert.encoder.layer[0].attention.self.query
    layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    with torch.no_grad():
        loss(adapted.eval(), batches[0])
    counted = inputs[0][batches[0]["attention_mask"].bool()]  # padding counts nowhere
    centered = counted - counted.mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    found = layer.lora_A["default"].weight
    overlap = torch.linalg.svdvals(torch.nn.functional.normalize(found) @ directions[: len(found)].T)
    assert overlap.min() > 0.9
    assert not layer.lora_B["default"].weight.any()


def test_lora_ga_starts_from_gradients_and_leaves_the_model_as_it_answers(model, rows):
    config = LoraConfig(r=2, target_modules=TARGETS, task_type="SEQ_CLS", lora_ga_config=LoraGAConfig())
    config.init_lora_weights = "lora_ga"
    batches = start_batches(config, rows, 16, collate, seed=0)
    with torch.no_grad():
        before = model.eval()(**batches[0]).logits
    prepare(model, config, TARGETS, batches, loss)
    assert model.training
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        torch.testing.assert_close(adapted.eval()(**batches[0]).logits, before, atol=1e-4, rtol=1e-4)
    layer = adapted.base_model.model.bert.encoder.layer[0].attention.self.query
    assert layer.lora_B["default"].weight.any()
