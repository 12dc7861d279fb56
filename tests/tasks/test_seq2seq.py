import logging

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
)

from lit_hf.data.tokenization import train_tokenizer
from lit_hf.errors import InputError
from lit_hf.models.loading import Base
from lit_hf.tasks import Seq2Seq

SOURCES = ["a man rides a bike", "two dogs play in the snow", "the red car", "a child laughs at the little dog"]
TARGETS = ["ein Mann fährt Rad", "zwei Hunde spielen", "das rote Auto dort", "ein Kind lacht"]
ROWS = {"source": SOURCES, "target": TARGETS}
SMALL = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2} | {
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
    "bart": SMALL,
    "marian": SMALL,
}


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(iter(SOURCES + TARGETS), 300)


@pytest.fixture
def tokenizer(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    return AutoTokenizer.from_pretrained(tmp_path)


def bound(tokenizer, **settings):
    task = Seq2Seq(**settings)
    task.bind(tokenizer)
    return task


def batch_of(task, rows, **collator):
    encoded = task.encode(rows)
    rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    return task.collator(**collator)(rows)


def model_of(task, kind="bart"):
    torch.manual_seed(0)
    return AutoModelForSeq2SeqLM.from_config(
        Base(config={"model_type": kind, **CONFIGS[kind]}).task_config(task)
    ).eval()


def test_sources_have_the_prefix_and_targets_the_end(tokenizer):
    task = bound(tokenizer, prefix="translate: ")
    encoded = task.encode(ROWS)
    assert set(encoded) == {"input_ids", "attention_mask", "labels", "references"}
    assert tokenizer.decode(encoded["input_ids"][0]) == "[CLS]translate: a man rides a bike[SEP]"
    assert tokenizer.decode(encoded["labels"][0]) == "[CLS]ein Mann fährt Rad[SEP]"
    assert encoded["labels"][0][-1] == tokenizer.eos_token_id


def test_without_targets_there_are_only_inputs(tokenizer):
    assert set(bound(tokenizer).encode({"source": SOURCES})) == {"input_ids", "attention_mask"}


def test_sources_and_targets_are_cut_at_limits_of_their_own(tokenizer):
    tokenizer.model_max_length = 6
    encoded = bound(tokenizer, max_target_length=5).encode(ROWS)
    assert [len(ids) for ids in encoded["input_ids"]] == [6] * 4
    assert [len(ids) for ids in encoded["labels"]] == [5] * 4
    assert {ids[-1] for ids in encoded["labels"]} == {tokenizer.eos_token_id}


def test_labels_are_padded_with_what_no_loss_counts(tokenizer):
    task = bound(tokenizer)
    encoded, batch = task.encode(ROWS), batch_of(task, ROWS, training=True)
    longest = max(map(len, encoded["labels"]))
    expected = [ids + [-100] * (longest - len(ids)) for ids in encoded["labels"]]
    assert batch["labels"].tolist() == expected
    assert any(-100 in ids for ids in expected)
    assert "references" not in batch


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_loss_and_gradients_are_the_plain_model_s(tokenizer, kind):
    task = bound(tokenizer)
    model, batch = model_of(task, kind), batch_of(task, ROWS, training=True)
    loss = task.forward(model, batch).loss
    loss.backward()
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {name: parameter.grad.clone() for name, parameter in parameters.items()}
    model.zero_grad()

    sources = tokenizer(SOURCES, padding=True, return_tensors="pt")
    targets = tokenizer(text_target=TARGETS, padding=True, return_tensors="pt")["input_ids"]
    started = torch.cat([torch.full((4, 1), model.config.decoder_start_token_id), targets[:, :-1]], dim=1)
    logits = model(**sources, decoder_input_ids=started).logits
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=tokenizer.pad_token_id
    )
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-6)
    for name, parameter in parameters.items():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6), name


def test_labels_are_smoothed_in_training_only(tokenizer):
    task = bound(tokenizer, label_smoothing=0.2)
    model, batch = model_of(task).eval(), batch_of(task, ROWS, training=True)
    logits = model(**batch).logits.flatten(0, 1)
    plain, smoothed = (
        torch.nn.functional.cross_entropy(logits, batch["labels"].flatten(), label_smoothing=share)
        for share in (0.0, 0.2)
    )
    torch.testing.assert_close(task.forward(model, batch).loss, plain)
    model.training = True  # but no module in it: dropout stays off
    torch.testing.assert_close(task.forward(model, batch).loss, smoothed)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_a_model_from_scratch_starts_and_ends_with_the_tokenizer_s_tokens(tokenizer, kind):
    model = model_of(bound(tokenizer), kind)
    start = tokenizer.eos_token_id if kind == "bart" else tokenizer.pad_token_id
    assert model.generation_config.decoder_start_token_id == start
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.forced_eos_token_id == (None if kind == "t5" else tokenizer.eos_token_id)
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)


def test_a_tokenizer_without_an_end_token_ends_with_its_separator(tiny_text_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_model)
    assert tokenizer.eos_token is None
    task = bound(tokenizer)
    encoded = task.encode(ROWS)
    assert encoded["labels"][0][-1] == tokenizer.sep_token_id == tokenizer.eos_token_id
    assert "token_type_ids" not in encoded


def test_a_tokenizer_that_cannot_end_is_refused(tokenizer):
    tokenizer.eos_token = tokenizer.sep_token = None
    with pytest.raises(InputError, match="no end token"):
        bound(tokenizer)


# languages

LANGUAGES = [
    (MBart50Tokenizer, "en_XX", "de_DE", "forced_bos_token_id", 0),
    (NllbTokenizer, "eng_Latn", "deu_Latn", "forced_bos_token_id", 0),
    (MBartTokenizer, "en_XX", "de_DE", "decoder_start_token_id", -1),
]


@pytest.mark.parametrize(("tokenizer_class", "source", "target", "key", "place"), LANGUAGES)
def test_texts_carry_their_languages_and_generation_starts_with_the_target_s(
    tokenizer_class, source, target, key, place
):
    tokenizer = tokenizer_class()
    task = bound(tokenizer, source_language=source, target_language=target)
    encoded = task.encode({"source": ["a"], "target": ["a"]})
    assert encoded["input_ids"][0][place] == tokenizer.convert_tokens_to_ids(source)
    assert encoded["labels"][0][place] == tokenizer.convert_tokens_to_ids(target)
    assert task.generation[key] == tokenizer.convert_tokens_to_ids(target)
    assert task.encode({"source": ["a"]})["input_ids"] == encoded["input_ids"]


def test_a_language_that_the_tokenizer_does_not_know_is_told_with_the_nearest():
    with pytest.raises(InputError) as caught:
        bound(NllbTokenizer(), source_language="en_Latn", target_language="deu_Latn")
    (problem,) = caught.value.problems
    assert problem.where == "task.source_language"
    assert problem.cure.startswith("Did you mean 'eng_Latn'?") or "eng_Latn" in problem.cure


def test_languages_are_needed_where_the_tokenizer_has_them_and_only_there(tokenizer):
    with pytest.raises(InputError) as caught:
        bound(MBart50Tokenizer())
    assert [problem.where for problem in caught.value.problems] == ["task.source_language", "task.target_language"]
    with pytest.raises(InputError, match="knows no languages"):
        bound(tokenizer, source_language="en_XX", target_language="de_DE")


# rows


def test_faults_of_rows_name_rows_and_columns():
    rows = Dataset.from_dict(
        {"source": ["a", "", None, "b"], "target": [" ", "x", "y", "z"], "all": [["r"], [], None, ["s", ""]]}
    )
    source, target, references = Seq2Seq(references="all").check(rows)
    assert (list(source.rows), source.column) == ([1, 2], "source")
    assert (list(target.rows), target.column) == ([0], "target")
    assert (list(references.rows), references.column) == ([1, 2, 3], "all")
    assert "none of them empty" in references.cure


def test_what_is_no_text_is_told():
    (problem,) = Seq2Seq().check(Dataset.from_dict({"source": ["a"], "target": [{"de": "b"}]}))
    assert problem.what == "this is no text: {'de': 'b'}."


def test_a_split_without_references_is_scored_against_its_targets(tokenizer, caplog):
    task = bound(tokenizer, references="references")
    with caplog.at_level(logging.INFO):
        assert list(task.check(Dataset.from_dict(ROWS))) == []
    assert "scored against 'target'" in caplog.text
    assert batch_of(task, ROWS)["references"] == [[text] for text in TARGETS]
    several = [[text, text.upper()] for text in TARGETS]
    assert batch_of(task, {**ROWS, "references": several})["references"] == several


def test_a_misspelled_references_column_is_told():
    (problem,) = Seq2Seq(references="reference").check(Dataset.from_dict({**ROWS, "references": [["a"]] * 4}))
    assert "but 'references': is it misspelled" in problem.what


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"source": "a", "target": "a"}, "task.target"),
        ({"max_target_length": 1}, "task.max_target_length"),
        ({"source_language": "en_XX"}, "task.target_language"),
        ({"generation": {"num_beam": 4}}, "task.generation.num_beam"),
        ({"generation": {"num_return_sequences": 2, "num_beams": 2}}, "task.generation.num_return_sequences"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, where):
    with pytest.raises(InputError) as caught:
        Seq2Seq(**settings)
    assert caught.value.problems[0].where == where


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_model_without_encoder_and_decoder_is_refused(tokenizer, kind):
    (problem,) = Base(config={"model_type": kind}).problems(bound(tokenizer, kind="translation"))
    assert f"a '{kind}' model cannot do translation" in problem.what
    assert "t5, bart" in problem.cure


def test_more_output_than_the_model_has_positions_is_refused(tokenizer):
    base = Base(config={"model_type": "bart", **SMALL})
    (problem,) = base.problems(bound(tokenizer, max_target_length=65))
    assert (problem.where, problem.what) == (
        "task.generation.max_new_tokens",
        "65 tokens are more than the model can write: 64.",
    )
    assert list(base.problems(bound(tokenizer, max_target_length=64))) == []


# evaluation and prediction


def test_evaluation_scores_what_the_plain_model_generates(tokenizer):
    task = bound(tokenizer, kind="translation", metrics=["chrf", "rouge"], max_target_length=6)
    model, batch, metrics = model_of(task), batch_of(task, ROWS), task.metrics()
    with torch.inference_mode():
        loss = task.evaluate(model, batch, metrics)
        tokens = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6, num_beams=1
        )
        assert loss == model(**{name: value for name, value in batch.items() if name != "references"}).loss
    assert metrics["text"].predictions == tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert metrics["text"].references == [[text] for text in TARGETS]
    assert set(metrics.compute()) == set(task.monitors) == {"chrf", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert next(iter(task.monitors.items())) == ("chrf", "max")


def test_without_generation_there_is_the_loss_alone(tokenizer):
    task = bound(tokenizer, predict_with_generate=False)
    model, batch, metrics = model_of(task), batch_of(task, ROWS), task.metrics()
    assert "references" not in batch
    assert task.evaluate(model, batch, metrics) == model(**batch).loss
    assert (dict(metrics.compute()), task.monitors) == ({}, {"loss": "min"})


def test_the_export_of_a_checkpoint_with_beams_writes_with_one_as_the_task_does(tokenizer, tmp_path):
    task = bound(tokenizer, generation={"num_beams": 1}, max_target_length=8)
    model = model_of(task)
    model.generation_config.update(num_beams=4, early_stopping=True, length_penalty=2.0, max_length=142)
    batch = batch_of(task, {"source": SOURCES})
    texts = [row["generated_text"] for row in task.predict(model, batch)]
    model.save_pretrained(tmp_path)
    task.export_files(tmp_path)
    exported = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    exported.generation_config.validate(strict=True)
    assert tokenizer.batch_decode(exported.generate(**batch), skip_special_tokens=True) == texts


def test_predictions_do_not_depend_on_the_batch(tokenizer):
    task = bound(tokenizer, generation={"num_beams": 2, "max_new_tokens": 8})
    model = model_of(task, "t5")
    together = task.predict(model, batch_of(task, {"source": SOURCES}))
    alone = [task.predict(model, batch_of(task, {"source": [text]}))[0] for text in SOURCES]
    assert together == alone
    assert [list(row) for row in together] == [["generated_text"]] * 4


@pytest.mark.parametrize(
    ("settings", "scores"),
    [({}, ["rouge"]), ({"kind": "translation"}, ["bleu", "chrf"]), ({"metrics": ["bleu", "bleu"]}, ["bleu"])],
)
def test_the_kind_chooses_the_metrics(settings, scores):
    assert Seq2Seq(**settings).scores == scores
    assert Seq2Seq(**settings).pipeline_tag == settings.get("kind", "summarization")
