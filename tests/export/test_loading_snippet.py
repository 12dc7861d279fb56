from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.pipelines import PIPELINE_REGISTRY

from lit_hf import tasks
from lit_hf.export.loading_snippet import PIPELINES, loading_snippet
from lit_hf.export.package import export
from lit_hf.models.vocabulary import grow, train_tokens
from lit_hf.tasks import TextClassification
from tests.classifiers import LABELS, RECORD, TEXTS, adapted


def loaded(snippet: str, folder) -> dict[str, Any]:
    """Run a snippet, and return what it defines."""
    known: dict[str, Any] = {}
    exec(snippet.removeprefix("```python\n").removesuffix("```").replace('"..."', repr(str(folder))), known)
    return known


def logits(model, tokenizer) -> torch.Tensor:
    with torch.inference_mode():
        return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits


def test_an_adapter_loads_on_its_base(tiny_text_model, tmp_path, hub):
    hub.add_model("org/base", tiny_text_model, revision="v1")
    model, task = adapted(tiny_text_model)
    export(model, task, RECORD, tmp_path)
    snippet = loading_snippet(task.auto_class, task.pipeline_tag, "peft", base="org/base", revision="v1")

    known = loaded(snippet, tmp_path)

    torch.testing.assert_close(logits(known["model"], known["tokenizer"]), logits(model, task.tokenizer))
    assert known["model"].config.id2label == dict(enumerate(LABELS))


def test_so_does_one_with_tokens_of_its_own(tiny_text_model, tmp_path):
    task = TextClassification(text="text")
    tokenizer = AutoTokenizer.from_pretrained(tiny_text_model)
    tokenizer.add_tokens(["acting", "plot-twist"])
    task.bind(tokenizer, LABELS)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_text_model, **task.model_kwargs())
    grow(base, len(tokenizer))
    adapter = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    train_tokens(adapter, base, ["acting", "plot-twist"], tokenizer)
    model = get_peft_model(base, adapter).eval()
    export(model, task, RECORD, tmp_path)
    options = {"base": str(tiny_text_model), "added_tokens": True}

    known = loaded(loading_snippet(task.auto_class, task.pipeline_tag, "peft", **options), tmp_path)

    torch.testing.assert_close(logits(known["model"], known["tokenizer"]), logits(model, tokenizer))


def test_options_stand_where_they_belong():
    snippet = loading_snippet(
        "AutoModelForCausalLM", "text-generation", "peft", base="a/b", revision="v1", trust_remote_code=True
    )
    assert "AutoTokenizer.from_pretrained(name, trust_remote_code=True)" in snippet
    assert "from_pretrained(\"a/b\", config=config, revision='v1', trust_remote_code=True)" in snippet


@pytest.mark.parametrize(
    ("library", "tag", "there", "not_there"),
    [
        ("sentence-transformers", "sentence-similarity", "SentenceTransformer(name).encode", "AutoTokenizer"),
        ("transformers", "question-answering", "model = AutoModelForX.from_pretrained(name)", "pipeline"),
        ("transformers", "fill-mask", 'pipeline("fill-mask", model=model', "PeftModel"),
    ],
)
def test_each_library_has_its_own(library, tag, there, not_there):
    snippet = loading_snippet("AutoModelForX", tag, library, base="...")
    assert there in snippet and not_there not in snippet
    compile(snippet.removeprefix("```python\n").removesuffix("```"), "card", "exec")


def test_these_are_the_tasks_that_have_a_pipeline():
    ours = {task.pipeline_tag for task in vars(tasks).values() if isinstance(getattr(task, "pipeline_tag", None), str)}
    assert ours & set(PIPELINE_REGISTRY.get_supported_tasks()) == set(PIPELINES)
