"""Every tuner of the installed PEFT, by its config alone, on three tiny models, and on quantized weights of one.

What comes out is the generated part of docs/support-matrix.md: `python -m tests.models.test_tuners` writes it.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel
from torchao.quantization import Int8WeightOnlyConfig
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TorchAoConfig,
)

from lit_hf.errors import InputError
from lit_hf.export.package import check
from lit_hf.models.adaptation import Adaptation
from lit_hf.models.adapter_losses import leave_loss_alone, regularization
from lit_hf.models.adapters import reference_problems, settle_ranks
from lit_hf.models.loading import Base
from lit_hf.models.quantization import dequantize, quantization_problems
from lit_hf.tasks import CausalLM, Seq2Seq, TextClassification

MATRIX = Path(__file__).resolve().parents[2] / "docs" / "support-matrix.md"
BEGIN, END = "<!-- tuners: generated -->\n", "<!-- tuners: end -->\n"

SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 100},
    "ADAMSS": {"num_subspaces": 2, "r": 8},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "C3A": {"block_size": 8},
    "CARTRIDGE": {"num_virtual_tokens": 4},
    "CPT": {"task_type": "CAUSAL_LM", "cpt_token_ids": [1, 2], "cpt_mask": [1, 1], "cpt_tokens_type_mask": [1, 2]},
    "FOURIERFT": {"n_frequency": 64},
    "MISS": {"r": 8},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 4, "num_tasks": 2},
    "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "PREFIX_TUNING": {"num_virtual_tokens": 4},
    "PSOFT": {"r": 8},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [1, 2, 3, 4, 5]},
    "VBLORA": {"vector_length": 8, "num_vectors": 16},
    "WAVEFT": {"n_frequency": 64},
}
"""Settings that PEFT has no default for, or whose default is too large for a model of 16 hidden units."""


class Effort(NamedTuple):
    """How long a tuner trains, and how far the loss must fall.

    Attributes:
        rate: Learning rate of Adam.
        steps: Steps on one batch.
        left: The most that may be left of the first loss.
    """

    rate: float = 0.05
    steps: int = 16
    left: float = 0.9


EFFORTS = {
    "ADAPTION_PROMPT": Effort(steps=24),
    "BEFT": Effort(rate=0.2),
    "C3A": Effort(rate=0.2),
    "CARTRIDGE": Effort(rate=0.2),
    "PREFIX_TUNING": Effort(rate=0.2),
    "PROMPT_TUNING": Effort(rate=0.1, steps=64),  # a few vectors that all rows share
    "SUPERTUNING": Effort(rate=0.5, left=0.98),  # a few numbers a layer
}

SIZE = {"vocab_size": 24, "pad_token_id": 0}
SPREAD = 0.3
"""Of the base models' random weights: at 0.02, as they start by default, all rows would look alike to an adapter."""


class Family(NamedTuple):
    """A kind of task, and the smallest model that can do it."""

    task: Any
    make: Any


def _bert() -> Any:
    config = BertConfig(
        **SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=SPREAD,
        num_labels=2,
    )
    return BertForSequenceClassification(config)


def _llama() -> Any:
    config = LlamaConfig(
        **SIZE,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=SPREAD,
    )
    return LlamaForCausalLM(config)


def _t5() -> Any:
    config = T5Config(**SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)


FAMILIES = {
    "text classification (BERT)": Family(TextClassification(labels=["bad", "good"]), _bert),
    "causal LM (Llama)": Family(CausalLM(), _llama),
    "seq2seq (T5)": Family(Seq2Seq(source="a", target="b"), _t5),
}


LLAMA = FAMILIES["causal LM (Llama)"]
QUANTIZED = {
    "on 4 bits": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "on 8 bits": BitsAndBytesConfig(load_in_8bit=True),
    "on 8 bits of torchao": TorchAoConfig(Int8WeightOnlyConfig()),
}
"""Ways in which Llama's weights are quantized, by their columns in the table."""


class Outcome(NamedTuple):
    """What a tuner does on a model.

    Attributes:
        refusal: Why it does not train; None if it does.
        merges: Whether it can be merged into the base model.
        off_is_base: Whether the model with the adapter off is the one from before training; None if it cannot be off.
    """

    refusal: str | None = None
    merges: bool = False
    off_is_base: bool | None = None


def _model(family: Family) -> Any:
    torch.manual_seed(0)
    return family.make()


def _logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits.float()


def _batch(family: Family) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 24, (8, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1] * 4) if family.make is _bert else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _config(tuner: Any, family: Family) -> Any:
    settings = copy.deepcopy(SETTINGS.get(tuner.value, {}))
    if tuner == "LN_TUNING" and family.make is _bert:
        settings["target_modules"] = ["LayerNorm"]  # PEFT does not know BERT's
    return PEFT_TYPE_TO_CONFIG_MAPPING[tuner](**settings)


def _adapted(family: Family, tuner: Any, base: Any = None) -> Any:
    """Return the adapted model, or why there is none."""
    adaptation = Adaptation(_config(tuner, family))
    with torch.device("meta"):
        skeleton = family.make()
    if problems := list(adaptation.problems(family.task, skeleton)):
        return problems[0].what
    new = ["classifier.weight", "classifier.bias"] if family.make is _bert else []
    base = _model(family) if base is None else base
    try:
        return adaptation.apply(base, family.task, new, lambda model: [])
    except InputError as error:
        return error.problems[0].what


def _try(family: Family, tuner: Any, folder: Path) -> Outcome:
    model, batch = _adapted(family, tuner), _batch(family)
    if isinstance(model, str):
        return Outcome(model)
    _train(model, batch, EFFORTS.get(tuner.value, Effort()))
    trained = _logits(model, batch)
    settle_ranks(model)
    model.save_pretrained(folder, save_embedding_layers=False)
    again = PeftModel.from_pretrained(_model(family), folder)
    leave_loss_alone(again)
    torch.testing.assert_close(_logits(again, batch), trained, atol=1e-5, rtol=1e-4)
    merges = _merges(model, batch, trained)
    assert merges or check(_skeleton(family, tuner), merge=True), "a merge that fails must be told before training"
    off_is_base = _off_is_base(model, family, batch)
    assert off_is_base is not False or list(reference_problems(model.peft_config["default"])), "must be no reference"
    return Outcome(None, merges, off_is_base)


def _train(model: Any, batch: dict[str, Any], effort: Effort) -> None:
    """Train for some steps: the loss falls, the adapter has moved, and nothing has that does not train."""
    before = {name: _plain(parameter).clone() for name, parameter in model.named_parameters()}
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(p.numel() for p in trainable.values()) < sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.Adam(trainable.values(), lr=effort.rate)
    losses = []
    model.train()
    for _ in range(effort.steps):
        loss = model(**batch).loss
        losses.append(loss.item())
        (loss + (regularization(model) or 0)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < effort.left * losses[0], (losses[0], losses[-1])
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(_plain(parameter), before[name])}
    assert any("classifier" not in name for name in moved), "the head alone has learnt"
    assert moved <= trainable.keys()


def _plain(parameter: Any) -> torch.Tensor:
    """Return a parameter's numbers, which torchao keeps from comparisons."""
    parameter = parameter.detach()
    return parameter.dequantize() if type(parameter).__module__.startswith("torchao.") else parameter


def _merges(model: Any, batch: dict[str, Any], expected: torch.Tensor) -> bool:
    try:
        merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, ValueError):
        return False
    torch.testing.assert_close(_logits(merged, batch), expected, atol=1e-4, rtol=1e-3)
    return True


def _skeleton(family: Family, tuner: Any) -> Any:
    with torch.device("meta"):
        base = family.make()
    base.name_or_path = "base"
    return Adaptation(_config(tuner, family)).skeleton(family.task, base)


def _off_is_base(model: Any, family: Family, batch: dict[str, Any]) -> bool | None:
    model.train()
    try:
        with model.disable_adapter():
            off = _logits(model, batch)
    except UnboundLocalError:  # PEFT has no such context for prompts of a classifier
        return None
    return torch.allclose(off, _logits(_model(family), batch), atol=1e-5)


def _fits(tuner: Any, quantization: Any, folder: Path) -> bool:
    """Say whether a tuner trains on quantized weights: those that are refused must not, and all others must."""
    if any(quantization_problems(quantization, None, _config(tuner, LLAMA))):
        with pytest.raises((AssertionError, InputError, IndexError, NotImplementedError, RuntimeError, TypeError)):
            _try_on_quantized(tuner, quantization, folder)
        return False
    return _try_on_quantized(tuner, quantization, folder)


def _try_on_quantized(tuner: Any, quantization: Any, folder: Path) -> bool:
    """Train on quantized weights; return whether there is such an adapter on this model at all.

    On the weights that the quantized ones stand for, the trained adapter answers as it does on them: closely where
    activations are not rounded. One that took packed numbers for weights would not.
    """
    torch.manual_seed(0)
    _model(LLAMA).save_pretrained(folder / "base")
    base = Base(str(folder / "base"), quantization=quantization)
    model, batch = _adapted(LLAMA, tuner, base.build(LLAMA.task)[0]), _batch(LLAMA)
    if isinstance(model, str):
        assert isinstance(_adapted(LLAMA, tuner), str), model
        return False
    _train(model, batch, EFFORTS.get(tuner.value, Effort()))
    trained = _logits(model, batch)
    settle_ranks(model)
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    plain = PeftModel.from_pretrained(dequantize(base.build(LLAMA.task)[0]), folder / "adapter")
    leave_loss_alone(plain)
    difference = (_logits(plain, batch) - trained).abs().mean() / trained.abs().mean()
    assert difference < (0.05 if getattr(quantization, "load_in_8bit", False) else 1e-5), difference
    return True


def _row(tuner: Any, folder: Path) -> tuple[str, list[str]]:
    """Return the table's row of a tuner, and the reasons why it does not train."""
    config = PEFT_TYPE_TO_CONFIG_MAPPING[tuner]
    reasons: dict[str, list[str]] = {}
    cells, outcomes = [], []
    for number, (name, family) in enumerate(FAMILIES.items()):
        outcome = _try(family, tuner, folder / str(number))
        cells.append("no" if outcome.refusal else "yes")
        if outcome.refusal:
            reasons.setdefault(outcome.refusal.removeprefix(f"{config.__name__} "), []).append(name)
        else:
            outcomes.append(outcome)
    cells += ["yes" if _fits(tuner, method, folder / name) else "no" for name, method in QUANTIZED.items()]
    cells += [_summed(outcomes, "merges"), _summed(outcomes, "off_is_base")]
    lines = [f"- `{config.__name__}`{_places(names)}: {reason}\n" for reason, names in reasons.items()]
    return f"| `peft.{config.__name__}` | {' | '.join(cells)} |\n", lines


def _places(names: list[str]) -> str:
    return "" if len(names) == len(FAMILIES) else f" for {' and '.join(names)}"


def _summed(outcomes: list[Outcome], name: str) -> str:
    values = {getattr(outcome, name) for outcome in outcomes} - {None}
    return {frozenset(): "", frozenset({True}): "yes", frozenset({False}): "no"}.get(frozenset(values), "in part")


@pytest.mark.parametrize("tuner", PEFT_TYPE_TO_CONFIG_MAPPING, ids=lambda tuner: tuner.value)
def test_a_tuner_does_what_the_support_matrix_says(tuner, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row, reasons = _row(tuner, tmp_path)
    committed = _generated(MATRIX.read_text("utf-8"))
    assert row in committed, "write it anew: python -m tests.models.test_tuners"
    name = PEFT_TYPE_TO_CONFIG_MAPPING[tuner].__name__
    assert [line for line in committed if line.startswith(f"- `{name}`")] == reasons


def test_the_support_matrix_has_no_other_tuners():
    rows = [line for line in _generated(MATRIX.read_text("utf-8")) if line.startswith("| `peft.")]
    names = {line.split("`")[1].removeprefix("peft.") for line in rows}
    assert names == {config.__name__ for config in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    assert len(rows) == len(names)


def _generated(text: str) -> list[str]:
    return text.partition(BEGIN)[2].partition(END)[0].splitlines(keepends=True)


def _write(folder: Path) -> None:
    rows = [_row(tuner, folder / tuner.value) for tuner in PEFT_TYPE_TO_CONFIG_MAPPING]
    head = ["class_path", *FAMILIES, *QUANTIZED, "merge", "adapter off is the base"]
    table = f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n" + "".join(row for row, _ in rows)
    reasons = "".join(reason for _, found in rows for reason in found)
    before, _, rest = MATRIX.read_text("utf-8").partition(BEGIN)
    text = f"{before}{BEGIN}\n{table}\nWhy not:\n\n{reasons}\n{END}{rest.partition(END)[2]}"
    MATRIX.write_text(text, "utf-8")


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)  # more would wait for each other, on models as small as these
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _write(Path(place))
