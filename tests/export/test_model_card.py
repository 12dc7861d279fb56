from __future__ import annotations

import json
import math

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from lit_hf.export.merging import Loss
from lit_hf.export.model_card import HUB_METRICS, Provenance, keep_edited_card, write_card
from lit_hf.export.package import export
from tests.classifiers import LABELS, RECORD, TEXTS, adapted, classifier

HOME = "/home/somebody"
CONFIG = {
    "name": "reviews",
    "task": {"class_path": "lit_hf.tasks.TextClassification", "init_args": {"text": "text", "labels": None}},
    "model": {
        "checkpoint": "org/base",
        "revision": None,
        "config": None,
        "adapter": None,
        "quantization": None,
        "trust_remote_code": False,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "foreach": None}},
    },
    "data": {
        "source": {"path": "nyu-mll/glue", "name": "sst2", "revision": "v1", "validation_share": 0.1},
        "tokenizer": {"checkpoint": None, "add_tokens": None},
        "batch_size": 32,
    },
    "trainer": {"max_epochs": 3, "max_steps": -1},
    "seed_everything": 42,
}
RECORD_OF_RUN = {
    "versions": {"lit_hf": "0.1.0", "torch": "2.13.0"},
    "hardware": {"host": "somebodys-laptop", "precision": "bf16-mixed", "world_size": 2},
    "best": {"metric": "val/accuracy", "value": 0.75, "checkpoint": "checkpoints/step-00000120"},
}
RESULTS = {"loss": 0.5, "accuracy": 0.7512345678, "f1_macro": math.nan, "f1_rare": 0.5, "confusion_matrix": [[1, 2]]}


def provenance(config=CONFIG, results=RESULTS, checkpoint="step-00000120") -> Provenance:
    return Provenance(config, RECORD_OF_RUN, checkpoint, results, 2, 120)


@pytest.fixture
def written(tiny_text_model, tmp_path):
    """Export a model, and return its card."""

    def write(origin=None, made=None, merge=False) -> ModelCard:
        export(*(made or classifier(tiny_text_model)), RECORD, tmp_path / "model", merge=merge, origin=origin)
        return ModelCard.load(tmp_path / "model" / "README.md")

    return write


def test_its_head_is_what_the_hub_reads(written, tmp_path):
    card = written(provenance())

    assert metadata_load(tmp_path / "model" / "README.md") == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "datasets": ["nyu-mll/glue"],
        "library_name": "transformers",
        "metrics": ["accuracy"],
        "pipeline_tag": "text-classification",
        "tags": ["lit-hf"],
        "model-index": [
            {
                "name": "reviews",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {
                            "name": "nyu-mll/glue",
                            "type": "nyu-mll/glue",
                            "config": "sst2",
                            "split": "validation",
                            "revision": "v1",
                        },
                        "metrics": [
                            {"type": "accuracy", "value": 0.751235, "name": "accuracy"},
                            {"type": "f1_rare", "value": 0.5, "name": "f1_rare"},
                        ],
                    }
                ],
            }
        ],
    }
    assert [result.metric_type for result in card.data.eval_results] == ["accuracy", "f1_rare"]


def test_its_text_says_what_it_is_how_well_it_does_and_how_it_was_made(written):
    text = written(provenance()).text

    for part in (
        "# reviews\n",
        "[org/base](https://huggingface.co/org/base), fine-tuned for `text-classification` with lit-hf.",
        "Labels: `bad`, `good`, `so-so`.",
        "[nyu-mll/glue](https://huggingface.co/datasets/nyu-mll/glue), configuration `sst2`, revision `v1`",
        "On the validation split, after epoch 2, step 120, the best of the run by `accuracy`:",
        "| `accuracy` | 0.7512 | the share of rows whose label is right |",
        "| `f1_rare` | 0.5 |  |",
        "120 optimizer steps on 2 devices, in `bf16-mixed`",
        "      lr: 0.0002\n",
        "seed_everything: 42",
        "Versions: lit_hf 0.1.0, torch 2.13.0.",
    ):
        assert part in text
    for part in ("somebodys-laptop", "confusion_matrix", "nan", "null", "foreach", "max_steps"):
        assert part not in text, part


def test_another_checkpoint_than_the_best_is_not_called_so(written):
    assert "the best of the run" not in written(provenance(checkpoint="step-00000200")).text


def test_paths_secrets_and_names_of_this_machine_are_not_in_it(written, monkeypatch):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "planted-password")
    task = {"class_path": "my.Task", "init_args": {"folder": f"{HOME}/words", "note": "planted-password"}}
    source = {"train": [f"{HOME}/a.jsonl", "~/b.jsonl", "data/c.jsonl"], "validation_share": 0.25, "limit": 9}
    config = {
        **CONFIG,
        "task": task,
        "model": {**CONFIG["model"], "checkpoint": f"{HOME}/models/base", "adapter_checkpoint": f"{HOME}/first"},
        "data": {**CONFIG["data"], "source": source},
    }
    card = written(provenance(config))

    assert HOME not in str(card) and "planted" not in str(card) and "~" not in str(card)
    assert "`base` (a local folder), fine-tuned" in card.text
    assert (
        "  - train: `a.jsonl, b.jsonl, data/c.jsonl`\n  - validation: 25% of the training rows, held out" in card.text
    )
    assert "folder: words" in card.text and "adapter_checkpoint: first" in card.text
    assert card.data.base_model is None and card.data.datasets is None
    assert card.data.eval_results[0].dataset_type == "local"
    assert card.data.eval_results[0].dataset_name == "a.jsonl, b.jsonl, data/c.jsonl"


def test_several_sources_are_listed(written):
    sources = [CONFIG["data"]["source"], {"train": "own.jsonl", "validation": "held-out.jsonl"}]
    card = written(provenance({**CONFIG, "data": {**CONFIG["data"], "source": sources}}))

    assert card.data.datasets == ["nyu-mll/glue"]
    assert card.data.eval_results[0].dataset_type == "mixture"
    assert card.data.eval_results[0].dataset_name == "nyu-mll/glue, own.jsonl"
    assert "- files\n  - train: `own.jsonl`\n  - validation: `held-out.jsonl`" in card.text


def test_an_adapter_and_a_merged_one_are_told_apart(written, tiny_text_model):
    alone = written(provenance(), adapted(tiny_text_model))
    assert (alone.data.library_name, alone.data.base_model_relation) == ("peft", "adapter")
    assert "An adapter (LORA) for [org/base](https://huggingface.co/org/base), which it needs; trained" in alone.text

    merged = written(provenance(), adapted(tiny_text_model), merge=True)
    assert (merged.data.library_name, merged.data.base_model_relation) == ("transformers", "finetune")
    assert (
        "fine-tuned for `text-classification` with lit-hf, by an adapter (LORA) that is merged into it." in merged.text
    )


def test_a_model_merged_into_a_dequantized_base_says_what_its_metrics_are_of(tiny_text_model, tmp_path):
    model, task = adapted(tiny_text_model)
    write_card(tmp_path, model, task, provenance(), Loss("bitsandbytes 4-bit nf4", 0.25, 0.1, 1.5))
    assert "These are of the quantized model with its adapter. This one is merged into the dequantized base" in (
        (tmp_path / "README.md").read_text()
    )


def test_a_model_without_a_run_has_a_card_too(written):
    card = written()
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["lit-hf"],
    }
    assert "A `BertForSequenceClassification`, trained for `text-classification` with lit-hf." in card.text


def test_one_from_scratch_and_one_that_was_never_evaluated_say_so(written):
    config = {**CONFIG, "model": {**CONFIG["model"], "checkpoint": None, "config": {"model_type": "bert"}}}
    card = written(provenance(config, results={}))
    assert "trained for `text-classification` with lit-hf, from scratch." in card.text
    assert "  config:\n    model_type: bert" in card.text
    assert "It was not evaluated." in card.text
    assert card.data.eval_results is None and card.data.metrics is None


def test_the_python_of_a_card_loads_the_model(written, tmp_path):
    card = written(provenance())
    code = card.text.split("```python\n")[1].split("```")[0].replace('"..."', repr(str(tmp_path / "model")))
    known: dict = {}
    exec(code, known)
    assert known["answer"](TEXTS[0])[0]["label"] in LABELS


# cards that somebody has edited


def test_a_card_stays_as_it_was_edited_and_a_new_one_comes_where_it_was_removed(written, tmp_path):
    card = tmp_path / "model" / "README.md"
    written(provenance())
    first = card.read_text()
    written(provenance(results={"accuracy": 0.9}))
    assert card.read_text() != first  # nobody had edited it

    card.write_text("---\nlicense: mit\n---\n\n# Mine\n")
    for _ in range(2):
        written(provenance())
        assert card.read_text() == "---\nlicense: mit\n---\n\n# Mine\n"

    card.unlink()
    written(provenance())
    assert card.read_text() == first


def test_a_card_beside_a_manifest_that_names_none_is_somebody_s(tmp_path):
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(name)
    keep_edited_card(tmp_path / "nowhere", tmp_path / "after")
    assert (tmp_path / "after" / "README.md").read_text() == "after"
    (tmp_path / "before" / "lit_hf.json").write_text(json.dumps({"task": {}}))
    keep_edited_card(tmp_path / "before", tmp_path / "after")
    assert (tmp_path / "after" / "README.md").read_text() == "before"


def test_the_hub_knows_the_metrics_by_these_names():
    """The metrics of https://huggingface.co/metrics that ours are, as of the `evaluate` library."""
    assert set(HUB_METRICS.values()) == {
        *("accuracy", "bleu", "chrf", "exact_match", "f1", "matthews_correlation", "mse", "pearsonr", "perplexity"),
        *("precision", "recall", "roc_auc", "rouge", "spearmanr"),
    }
