import json

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.losses import MultipleNegativesRankingLoss
from transformers import AutoModel, AutoTokenizer

from lit_hf.data.batching import count_sizes
from lit_hf.errors import InputError
from lit_hf.models.loading import Base
from lit_hf.tasks import Embedding

COLUMNS = {
    "anchor": ["good film", "dull plot", "the movie", "very very bad"],
    "positive": ["the film was great", "the plot was poor", "it was a movie", "not good"],
    "negative": ["the film was bad", "the plot was good", "it was a plot", "fine, very good and not at all bad"],
}
SETTINGS = [
    {},
    {"negative": "negative"},
    {"pooling": "cls", "temperature": 0.1},
]


@pytest.fixture
def tokenizer(tiny_text_model):
    return AutoTokenizer.from_pretrained(tiny_text_model)


@pytest.fixture
def model(tiny_text_model):
    return AutoModel.from_pretrained(tiny_text_model).eval()


def bound(tokenizer, **settings):
    task = Embedding(**settings)
    task.bind(tokenizer)
    return task


def rows_of(encoded):
    return [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]


def exported(task, model, folder):
    model.save_pretrained(folder)
    task.tokenizer.save_pretrained(folder)
    task.export_files(folder)
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("settings", SETTINGS)
def test_loss_and_gradients_are_those_of_sentence_transformers(tokenizer, model, tmp_path, settings):
    task = bound(tokenizer, **settings)
    theirs = exported(task, model, tmp_path).eval()
    features = [theirs.preprocess(COLUMNS[column]) for column in task.text_columns]
    expected = MultipleNegativesRankingLoss(theirs, scale=1 / task.temperature)(features, None)
    expected.backward()

    batch = task.collator(training=True)(rows_of(task.encode(COLUMNS)))
    outputs = task.forward(model, batch)
    outputs.loss.backward()
    assert outputs.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert outputs.logits.shape == (4, 4 * len(task.target_columns))
    assert count_sizes(batch, [{}] * 4).targets == 4
    gradients = {name: weight.grad for name, weight in theirs[0].model.named_parameters()}
    for name, weight in model.named_parameters():
        if name.startswith("pooler"):
            assert weight.grad.abs().max() == 0  # there, for DDP waits for it
        else:
            torch.testing.assert_close(weight.grad, gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"pooling": "cls", "normalize": False}])
def test_the_export_gives_the_same_embeddings_in_sentence_transformers(tokenizer, model, tmp_path, settings):
    task = bound(tokenizer, **settings)
    theirs = exported(task, model, tmp_path)
    texts = {"anchor": COLUMNS["negative"]}
    with torch.no_grad():
        predictions = task.predict(model, task.collator()(rows_of(task.encode_inputs(texts))))
    ours = torch.tensor([prediction["embedding"] for prediction in predictions])
    torch.testing.assert_close(ours, torch.from_numpy(theirs.encode(texts["anchor"])), atol=1e-5, rtol=1e-4)
    assert theirs.max_seq_length == 64
    assert theirs.similarity_fn_name == ("dot" if settings else "cosine")
    lengths = ours.norm(dim=1)
    assert (lengths - 1).abs().max() < 1e-5 if task.normalize else (lengths - 1).abs().max() > 0.1
    assert json.loads((tmp_path / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == 16


def test_retrieval_is_over_the_positives_of_all_batches(tokenizer, model):
    task = bound(tokenizer)
    rows, metrics = rows_of(task.encode(COLUMNS)), task.metrics()
    with torch.no_grad():
        for part in (rows[:3], rows[3:]):
            task.evaluate(model, task.collator()(part), metrics)
        anchors, positives = (
            torch.tensor(
                [
                    row["embedding"]
                    for row in task.predict(model, task.collator()(rows_of(task.encode_inputs({"anchor": texts}))))
                ]
            )
            for texts in (COLUMNS["anchor"], COLUMNS["positive"])
        )
    order = (anchors @ positives.T).argsort(1, descending=True)
    ranks = [order[row].tolist().index(row) + 1 for row in range(4)]
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / 4)
    assert values["recall@1"] == sum(rank == 1 for rank in ranks) / 4
    assert values["recall@5"] == 1.0
    assert set(task.monitors) == set(values)
    assert next(iter(task.monitors)) == "mrr"


def test_faults_of_rows_name_column_and_rows():
    rows = Dataset.from_dict({"anchor": ["a", " ", "b"], "positive": ["x", "y", None]})
    first, second = Embedding().check(rows)
    assert (first.column, first.rows) == ("anchor", [1])
    assert (second.column, second.rows) == ("positive", [2])
    assert [problem.column for problem in Embedding().check(rows.select_columns("anchor"))] == ["anchor"]


def test_a_model_with_encoder_and_decoder_and_a_cold_temperature_are_refused(tokenizer):
    scratch = {"model_type": "t5", "d_model": 8, "num_heads": 2, "num_layers": 1, "d_kv": 4, "d_ff": 8}
    (problem,) = Base(config=scratch).problems(bound(tokenizer))
    assert problem.where == "model.config" and "encoder with a decoder" in problem.what
    with pytest.raises(InputError, match=r"task\.temperature"):
        Embedding(temperature=0.0)
