import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, RobertaConfig, T5Config

from lit_hf.errors import InputError
from lit_hf.models.loading import Base, max_positions
from lit_hf.tasks import TextClassification

SCRATCH = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def task(tiny_text_model):
    task = TextClassification(labels=["bad", "good", "none"])
    task.bind(AutoTokenizer.from_pretrained(tiny_text_model))
    return task


def problems(base, task):
    return {problem.where: problem for problem in base.problems(task)}


def test_a_checkpoint_without_a_head_gets_a_new_one_that_is_named(task, tiny_text_model):
    model, new = Base(str(tiny_text_model)).build(task)
    assert new == ["classifier.bias", "classifier.weight"]
    assert model.config.id2label == {0: "bad", 1: "good", 2: "none"}
    assert model.classifier.out_features == 3
    stored = load_file(tiny_text_model / "model.safetensors")
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, stored["embeddings.word_embeddings.weight"])


def test_a_head_for_other_labels_is_new_again(task, tiny_text_model, tmp_path):
    two = TextClassification(labels=["a", "b"])
    two.bind(task.tokenizer)
    Base(str(tiny_text_model)).build(two)[0].save_pretrained(tmp_path)
    assert Base(str(tmp_path)).build(task)[1] == ["classifier.bias", "classifier.weight"]
    assert Base(str(tmp_path)).build(two)[1] == []


def test_the_model_is_in_training_mode_and_float32(task, tiny_text_model, tmp_path):
    model, _ = Base(str(tiny_text_model)).build(task)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    again, _ = Base(str(tmp_path)).build(task)
    assert all(module.training for module in again.modules())
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in Base(str(tmp_path), dtype="auto").build(task)[0].parameters()} == {
        torch.bfloat16
    }


def test_a_model_from_scratch_takes_vocabulary_and_labels_from_the_task(task):
    model, new = Base(config=SCRATCH).build(task)
    assert new == []
    assert model.config.vocab_size == len(task.tokenizer)
    assert model.config.pad_token_id == task.tokenizer.pad_token_id
    assert model.config.num_labels == 3
    assert model.training


def test_the_skeleton_has_the_shapes_and_no_weights(task, tiny_text_model):
    skeleton = Base(str(tiny_text_model)).skeleton(task)
    model, _ = Base(str(tiny_text_model)).build(task)
    assert {name: p.shape for name, p in skeleton.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("config", "where", "cure"),
    [
        ({}, "model", "model.checkpoint"),
        ({"model_type": "brt"}, "model.config.model_type", "bert"),
        ({**SCRATCH, "hiden_size": 3}, "model.config.hiden_size", "Did you mean 'hidden_size'?"),
    ],
)
def test_a_config_that_makes_no_model_is_told(task, config, where, cure):
    with pytest.raises(InputError) as caught:
        Base(config=config).build(task)
    (problem,) = caught.value.problems
    assert problem.where == where
    assert cure in problem.cure


def test_a_number_of_labels_beside_other_names_is_refused(task):
    found = problems(Base(config={**SCRATCH, "num_labels": 5}), task)
    assert "the data has 3: bad, good, none" in found["model.config.num_labels"].what


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(task, tiny_text_model):
    task.tokenizer.add_tokens(["new"])
    assert "the model's vocabulary only" in problems(Base(str(tiny_text_model)), task)["data.tokenizer"].what


def test_an_architecture_that_cannot_do_the_task_is_refused(task):
    found = problems(Base(config={"model_type": "clip"}), task)
    assert "'clip' model cannot do text-classification" in found["model.config"].what
    assert "bert" in found["model.config"].cure


@pytest.mark.parametrize(
    ("config", "limit"),
    [(BertConfig(), 512), (RobertaConfig(max_position_embeddings=514), 512), (T5Config(), None)],
)
def test_the_longest_text_of_a_model(config, limit):
    assert max_positions(config) == limit


def test_a_folder_that_is_not_there_names_the_nearest(task, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match=r"Did you mean .*/model\?"):
        Base(str(tmp_path / "modl")).build(task)


def test_a_folder_without_a_model_is_told(task, tmp_path):
    with pytest.raises(InputError, match="no model can be loaded from"):
        Base(str(tmp_path)).build(task)


def test_weights_that_were_cut_off_are_told(task, tiny_text_model, tmp_path):
    Base(str(tiny_text_model)).build(task)[0].save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="are damaged"):
        Base(str(tmp_path)).build(task)


def test_a_pickled_checkpoint_is_refused(task, tiny_text_model, tmp_path):
    (tmp_path / "config.json").write_text((tiny_text_model / "config.json").read_text())
    torch.save(load_file(tiny_text_model / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        Base(str(tmp_path)).build(task)


def test_code_that_comes_with_a_checkpoint_is_not_run(task, tmp_path):
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('was run')")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="trust_remote_code"):
        Base(str(tmp_path)).build(task)


def test_a_model_loads_from_the_hub_by_id_and_revision(task, tiny_text_model, hub):
    hub.add_model("org/tiny", tiny_text_model)
    assert Base("org/tiny").build(task)[1] == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize(
    ("status", "words"), [(401, "hf auth login"), (403, "gated"), (404, "spelling"), (429, "Wait")]
)
def test_what_the_hub_answers_is_told(task, hub, status, words):
    hub.fail("org/absent", status)
    with pytest.raises(InputError, match=words) as caught:
        Base("org/absent").build(task)
    assert f"status {status}" in caught.value.problems[0].what


def test_other_weights_are_another_model(tiny_text_model, tmp_path):
    shutil.copytree(tiny_text_model, tmp_path / "copy")
    copy = Base(str(tmp_path / "copy"))
    before = copy.fingerprint
    assert before == Base(str(tiny_text_model)).fingerprint
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 7] += 1
    save_file(weights, tmp_path / "copy" / "model.safetensors", {"format": "pt"})
    assert copy.fingerprint != before
