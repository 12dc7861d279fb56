"""Language models and embeddings from fit to predict: the export answers alike in the libraries it is made for."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from lit_hf.cli.main import main
from lit_hf.inference.predictor import Predictor
from lit_hf.run import RunFolder

SENTENCES = [
    f"the {thing} was {word} and the {other} was {last}."
    for thing, other in (("film", "plot"), ("plot", "movie"), ("movie", "film"))
    for word, last in (("good", "bad"), ("very good", "great"), ("poor", "dull"), ("not good", "not great"))
]
LEARNING = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Run `lit-hf fit` on a config and return the run."""
    monkeypatch.chdir(tmp_path)
    text = "\n\n".join(SENTENCES)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
        pairs = [{"anchor": line.split(" and ")[0], "positive": line} for line in SENTENCES]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, pairs)))

    def run(task, model, extension, **data):
        config = {
            "name": "tiny",
            "task": task,
            "model": {**model, "optimizer": LEARNING},
            "data": {
                "source": {
                    "train": f"train.{extension}",
                    "validation": f"validation.{extension}",
                    "sample_by": "paragraph",
                },
                "batch_size": 4,
                **data,
            },
            "trainer": {"max_epochs": 4, "accelerator": "cpu"},
        }
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "-c", "tiny.yaml"]) == 0
        return RunFolder("runs/tiny")

    return run


def first_and_last_loss(run):
    lines = run.metrics.read_text().splitlines()
    column = lines[0].split(",").index("val/loss")
    losses = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    return losses[0], losses[-1]


def test_a_causal_model_goes_on_with_a_text_as_the_plain_model_does(fit):
    generation = {"max_new_tokens": 8, "min_new_tokens": 8}
    config = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
    }
    run = fit(
        {"class_path": "CausalLM", "init_args": {"block_length": 16, "generation": generation}},
        {"config": config},
        "txt",
        tokenizer={"train": {"vocab_size": 300}},
    )
    first, last = first_and_last_loss(run)
    assert last < first
    metrics = run.read_record()["metrics"]
    assert metrics["val/perplexity"] == pytest.approx(torch.tensor(metrics["val/loss"]).exp().item(), rel=1e-4)
    assert metrics["val/bits_per_byte"] > 0
    (predicted,) = Predictor.from_folder(run.export).predict([{"text": "the film was"}])
    tokenizer, model = (kind.from_pretrained(run.export) for kind in (AutoTokenizer, AutoModelForCausalLM))
    ids = tokenizer("the film was", return_tensors="pt")
    plain = model.generate(**ids, **generation)[0, ids["input_ids"].shape[1] :]
    assert predicted["generated_text"] == tokenizer.decode(plain, skip_special_tokens=True) != ""


def test_a_masked_model_fills_masks_as_the_pipeline_does(fit, tiny_text_model):
    task = {"class_path": "MaskedLM", "init_args": {"block_length": 32, "top_k": 2, "mlm_probability": 0.3}}
    run = fit(task, {"checkpoint": str(tiny_text_model)}, "txt")
    first, last = first_and_last_loss(run)
    assert last < first
    (predicted,) = Predictor.from_folder(run.export).predict([{"text": "the [MASK] was good."}])
    expected = pipeline("fill-mask", model=str(run.export), device="cpu", top_k=2)("the [MASK] was good.")
    assert predicted["filled_text"] == expected[0]["sequence"]
    assert [fill["token"] for fill in predicted["fills"][0]] == [fill["token_str"] for fill in expected]
    assert [fill["score"] for fill in predicted["fills"][0]] == pytest.approx([fill["score"] for fill in expected])


def test_an_embedding_is_the_same_in_sentence_transformers(fit, tiny_text_model):
    from sentence_transformers import SentenceTransformer

    run = fit({"class_path": "Embedding"}, {"checkpoint": str(tiny_text_model)}, "jsonl")
    first, last = first_and_last_loss(run)
    assert last < first
    assert 0 < run.read_record()["metrics"]["val/recall@1"] <= run.read_record()["metrics"]["val/recall@5"] <= 1
    rows = [{"anchor": "the film was good"}, {"anchor": "dull"}]
    ours = torch.tensor([row["embedding"] for row in Predictor.from_folder(run.export).predict(rows)])
    theirs = SentenceTransformer(str(run.export), device="cpu").encode([row["anchor"] for row in rows])
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-5, rtol=1e-4)
