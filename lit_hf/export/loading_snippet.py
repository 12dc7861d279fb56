"""The lines of Python that load an exported model without lit-hf, for its card."""

from __future__ import annotations

PIPELINES = ("fill-mask", "text-classification", "text-generation", "token-classification")
"""The tasks of ours that `transformers.pipeline` knows."""

NAME = 'name = "..."  # a folder, or the id of its repository on the Hub'


def loading_snippet(
    auto_class: str,
    pipeline_tag: str,
    library: str,
    *,
    base: str,
    revision: str | None = None,
    added_tokens: bool = False,
    trust_remote_code: bool = False,
) -> str:
    """Return a block of Markdown that loads a model and its tokenizer.

    Args:
        auto_class: Name of the `transformers` Auto class.
        pipeline_tag: The Hub's name of the task.
        library: `transformers`, `sentence-transformers`, or `peft` for an adapter.
        base: An adapter's base model.
        revision: The base model's revision.
        added_tokens: Whether the adapter brings tokens that its base model does not know.
        trust_remote_code: Whether the model brings code of its own.
    """
    trust = ", trust_remote_code=True" if trust_remote_code else ""
    if library == "peft":
        lines = _adapter(auto_class, base, f", revision={revision!r}{trust}" if revision else trust, added_tokens)
    elif library == "sentence-transformers":
        lines = ["from sentence_transformers import SentenceTransformer", "", NAME]
        lines += [f'embeddings = SentenceTransformer(name{trust}).encode(["some text"])']
    else:
        lines = [f"from transformers import {auto_class}, AutoTokenizer, pipeline", "", NAME]
        lines += [f"tokenizer = AutoTokenizer.from_pretrained(name{trust})"]
        lines += [f"model = {auto_class}.from_pretrained(name{trust})"]
        if pipeline_tag in PIPELINES:
            lines.append(f'answer = pipeline("{pipeline_tag}", model=model, tokenizer=tokenizer)')
        else:
            lines[0] = f"from transformers import {auto_class}, AutoTokenizer"
    return "\n".join(["```python", *lines, "```"])


def _adapter(auto_class: str, base: str, options: str, added_tokens: bool) -> list[str]:
    trust = ", trust_remote_code=True" if "trust_remote_code" in options else ""
    lines = [
        "from peft import PeftModel",
        f"from transformers import AutoConfig, {auto_class}, AutoTokenizer",
        "",
        NAME,
        f"tokenizer = AutoTokenizer.from_pretrained(name{trust})",
        f'config = AutoConfig.from_pretrained(name, subfolder="model_config"{trust})',
    ]
    if added_tokens:
        own = f'AutoConfig.from_pretrained("{base}"{options})'
        lines.append(f"size, config.vocab_size = config.vocab_size, {own}.vocab_size")
    lines.append(f'base = {auto_class}.from_pretrained("{base}", config=config{options})')
    if added_tokens:
        lines.append("base.resize_token_embeddings(size)  # for the tokens that were added")
    return [*lines, "model = PeftModel.from_pretrained(base, name).eval()"]
