from __future__ import annotations

from array import array

import pytest
import torch
from lightning.pytorch import LightningModule
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    LlamaConfig,
    PreTrainedModel,
)

from lit_hf.models.devices import peak_flops
from lit_hf.models.flops import training_flops
from lit_hf.task import Sizes
from lit_hf.training.figures import Model, Work, figures, percentiles

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}
WORK = Work(rows=4, tokens=30, padded_tokens=40, targets=10, attended=300)


class Module(LightningModule):
    def __init__(self, model: PreTrainedModel | None) -> None:
        super().__init__()
        self.model = model


def llama() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, num_key_value_heads=2))


def bert() -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_config(BertConfig(**SHAPE))


def test_work_is_summed_up() -> None:
    sizes = Sizes(rows=2, tokens=7, padded_tokens=10, targets=3, step_targets=9, attended=25)

    work = Work().plus(sizes).plus(sizes)

    assert work == Work(4, 14, 20, 6, 50)
    assert work.since(Work().plus(sizes)) == Work(2, 7, 10, 3, 25)
    assert work.padding_share == pytest.approx(0.3)
    assert Work().padding_share is None


def test_figures_are_work_by_time() -> None:
    assert figures(WORK, seconds=4, waited=1, model=None, ranks=1) == {
        "rows_per_second": 1,
        "tokens_per_second": 7.5,
        "padded_tokens_per_second": 10,
        "targets_per_second": 2.5,
        "data_wait_share": 0.25,
        "mfu": None,
    }
    assert set(figures(WORK, seconds=0, waited=0, model=None, ranks=1).values()) == {None}


@pytest.mark.parametrize(("make", "attended"), [(llama, (300 + 30) / 2), (bert, 300)], ids=["causal", "both ways"])
def test_mfu_is_what_the_tokens_need_of_what_all_devices_can_do(make, attended: float) -> None:
    model = make()
    measured = Model(Module(model), "32-true")
    assert figures(WORK, 4, None, measured, 1)["mfu"] is None  # the peak is not known yet

    measured.measure()

    peak, source = peak_flops("cpu", torch.float32)
    needed = training_flops(model, 30, attended, 10)
    assert figures(WORK, 4, None, measured, 2)["mfu"] == pytest.approx(needed / (4 * 2 * peak))
    assert measured.peak == {"flops_per_second": peak, "dtype": "float32", "source": source}


def test_the_peak_is_that_of_the_arithmetic_and_not_of_the_weights() -> None:
    measured = Model(Module(bert()), "bf16-mixed")
    measured.measure()

    assert measured.peak is not None
    assert measured.peak["dtype"] == "bfloat16"


def test_a_module_without_a_model_has_no_mfu() -> None:
    measured = Model(Module(None), "32-true")
    measured.measure()

    assert measured.peak is None


def test_percentiles_of_durations() -> None:
    assert percentiles(array("d", range(1, 102))) == {"p50": 51, "p90": 91, "p99": 100}
    assert percentiles(array("d")) is None
