"""Two processes give the metrics of one, whatever is learnt; with Lightning's launcher and with torchrun."""

import json
import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lit_hf.cli.main import main
from lit_hf.run import RunFolder
from tests import preferences
from tests.conftest import ROOT
from tests.killing import digest

pytestmark = pytest.mark.slow

WORDS = {"good": ["great", "good", "fine", "very good"], "bad": ["bad", "poor", "dull", "very bad"]}
THINGS = ("film", "plot", "movie")
ADAM, SGD, STILL = (
    {"class_path": f"torch.optim.{name}", "init_args": {"lr": lr}}
    for name, lr in (("AdamW", 0.01), ("SGD", 0.5), ("SGD", 0.0))
)
TRAINER = {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1}
NOTES = ("model: ", "new weights", "train: ", "validation: ", "resuming ", "exported ", "epoch ")
LAUNCHERS = {
    "lightning": [sys.executable, "-m", "lit_hf"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "lit_hf"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, task, model, train, validation, optimizer=ADAM, **data):
    for split, rows in {"train": train, "validation": validation}.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = {split: f"{split}.jsonl" for split in ("train", "validation")}
    config = {
        "task": task,
        "model": {**model, "optimizer": optimizer},
        "data": {"source": source, **data},
        "trainer": TRAINER,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))


def fit_alone(folder, name, batch_size, *options):
    """Fit in this process."""
    sizes = ("--data.batch_size", str(batch_size), "--data.eval_batch_size", "5")
    assert main(["fit", "-c", "tiny.yaml", "--name", name, *sizes, "--trainer.devices", "1", *options]) == 0
    return RunFolder(folder / "runs" / name)


def fit_together(folder, name, batch_size, *options, launcher="torchrun"):
    """Fit in two processes, which find nothing in the cache; return the run and what they told."""
    sizes = ("--data.batch_size", str(batch_size), "--data.eval_batch_size", "3")
    command = [*LAUNCHERS[launcher], "fit", "-c", "tiny.yaml", "--name", name, *sizes, "--trainer.devices", "2"]
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "runs" / name), done.stderr


def fit_until_told_to_end(folder, name, batch_size, *options):
    """Fit in two processes that Lightning starts, tell the first one to end in the middle, and return its exit code."""
    sizes = ("--data.batch_size", str(batch_size), "--data.eval_batch_size", "3")
    command = [*LAUNCHERS["lightning"], "fit", "-c", "tiny.yaml", "--name", name, *sizes, "--trainer.devices", "2"]
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    metrics, until = folder / "runs" / name / "metrics.csv", time.monotonic() + 120
    with subprocess.Popen([*command, *options], cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
        while not metrics.is_file() or metrics.read_text().count("\n") < 6:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.terminate()
        return process.wait(60)


def assert_same(one, two, steps, without=()):
    first, second = one.read_record(), two.read_record()
    assert second["hardware"]["world_size"] == 2
    assert second["steps"] == first["steps"] == steps
    metrics = [
        {key: value for key, value in record["metrics"].items() if key not in without} for record in (first, second)
    ]
    assert metrics[0] and metrics[1] == pytest.approx(metrics[0], abs=1e-4)


def assert_same_weights(one, two):
    first, second = (torch.load(run.checkpoint("last"), weights_only=True)["state_dict"] for run in (one, two))
    torch.testing.assert_close(second, first, atol=1e-4, rtol=1e-3)


def assert_told_once(told):
    """All notes come from one process: each stands there once."""
    notes = [line for line in told.splitlines() if line.startswith(NOTES)]
    assert {"model:", "train:", "epoch"} <= {line.split()[0] for line in notes}
    assert len(notes) == len(set(notes))


def opinions():
    rows = [
        {"text": f"the {thing} was {word}" + " indeed" * number, "label": label}
        for number in range(3)
        for thing in THINGS
        for label, words in WORDS.items()
        for word in words
    ]
    return rows[:-5], rows[-37:]


def test_text_classification_whose_run_goes_on_and_is_asked_for_again(folder, tiny_text_model, capsys):
    write(folder, {"class_path": "TextClassification"}, {"checkpoint": str(tiny_text_model)}, *opinions())
    # the same global batch: 67 rows are four batches of 16 and one of 3
    together = partial(fit_together, folder, "two", 8, launcher="lightning")
    one, (two, told) = fit_alone(folder, "one", 16), together()
    assert_same(one, two, steps=10)
    assert_told_once(told)

    more = ("--trainer.max_epochs", "3")
    one, (two, told) = fit_alone(folder, "one", 16, *more), together(*more)
    assert_same(one, two, steps=15)
    assert two.read_record()["state"] == "finished"
    assert told.count("resuming runs/two from step 10") == 1
    assert_told_once(told)

    before = two.read_record()
    _, told = fit_together(folder, "two", 8, *more)  # torchrun starts both processes whatever there is to do
    assert told.count("is finished already; nothing was done") == 1
    assert two.read_record() == before


def test_two_ranks_that_are_told_to_end_do_so_together_and_go_on_as_if_nothing_had_happened(folder, tiny_text_model):
    write(folder, {"class_path": "TextClassification"}, {"checkpoint": str(tiny_text_model)}, *opinions())
    settings = ("--trainer.max_epochs", "12", "--checkpoint_every", "2")
    whole, _ = fit_together(folder, "whole", 8, *settings, launcher="lightning")

    assert fit_until_told_to_end(folder, "told", 8, *settings) == 75
    told = RunFolder(folder / "runs" / "told")
    assert told.read_record()["state"] == "preempted"
    fit_together(folder, "told", 8, *settings, launcher="lightning")

    assert digest(told.path) == digest(whole.path)


def test_generated_text(folder):
    words = {"one": "eins", "two": "zwei", "red": "rot", "blue": "blau", "dog": "Hund", "cat": "Katze"}
    rows = [
        {"source": f"{first} {second}", "target": f"{words[first]} {words[second]}"}
        for first in words
        for second in words
    ]
    settings = {"kind": "translation", "metrics": ["chrf", "rouge"], "generation": {"max_new_tokens": 8}}
    shape = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    # 7 rows to validate are a batch of three on each rank, and one row on rank 0 beside a filler on rank 1
    write(
        folder,
        {"class_path": "Seq2Seq", "init_args": settings},
        {"config": {"model_type": "t5", **shape}},
        rows * 4,
        rows[::5][:7],
        tokenizer={"train": {"vocab_size": 300}},
    )
    one, (two, told) = fit_alone(folder, "one", 16), fit_together(folder, "two", 8)
    assert_same(one, two, steps=18)
    assert one.read_record()["metrics"]["val/chrf"] > 10
    assert_told_once(told)


def test_answers_whose_windows_lie_on_both_ranks(folder, tiny_text_model):
    def row(number, thing, word):
        context = (
            f"the film was not very dull and not very poor and the {thing} was {word} and the plot and the film fine"
        )
        answers = {"text": [word], "answer_start": [context.index(f"{thing} was {word}") + len(f"{thing} was ")]}
        return {"id": str(number), "question": f"the {thing}", "context": context, "answers": answers}

    pairs = [(thing, word) for thing in ("movie", "plot") for word in ("good", "great", "fine", "bad", "poor")]
    rows = [row(number, *pair) for number, pair in enumerate(pairs)]
    settings = {"doc_stride": 4, "max_question_length": 3, "max_answer_length": 2}
    write(
        folder,
        {"class_path": "QuestionAnswering", "init_args": settings},
        {"checkpoint": str(tiny_text_model)},
        rows,
        rows,
        SGD,
        max_length=16,
        pad_to_multiple_of=16,  # the model's softmax is over the padding, too: the loss of a row depends on its batch
    )
    one, (two, told) = fit_alone(folder, "one", 8), fit_together(folder, "two", 4)
    assert_same(one, two, steps=one.read_record()["steps"])
    assert_told_once(told)


def test_preferences_whose_reference_is_computed_once(folder):
    preferences.tokenizer().save_pretrained(folder / "tokenizer")
    write(
        folder,
        {"class_path": "Preference"},
        {"config": preferences.MODEL},
        preferences.texts(24),
        preferences.texts(11),
        tokenizer={"checkpoint": "tokenizer"},
    )
    one, (two, told) = fit_alone(folder, "one", 8), fit_together(folder, "two", 4, "--debug")
    assert_same(one, two, steps=6)
    # with --debug all ranks are heard
    for split in ("train", "validation"):
        notes = [line for line in told.splitlines() if f"{split}: reference_" in line]
        assert sorted(line.rpartition("reference_rejected ")[2] for line in notes) == [
            "computed with the model as it is before training",
            "reused from the cache",
        ]


def test_tags_of_sentences_of_unequal_length(folder, tiny_text_model):
    chance = random.Random(0)
    names = {"ann": "B-PER", "bob": "B-PER", "turku": "B-LOC", "rig": "B-LOC"}
    words = [*names, *["the", "film", "was"] * 3]
    texts = [[chance.choice(words) for _ in range(chance.choice([1, 2, 13, 14]))] for _ in range(45)]
    rows = [{"tokens": text, "ner_tags": [names.get(word, "O") for word in text]} for text in texts]
    # plain gradient descent, as the scale of a gradient is nothing to Adam
    write(
        folder,
        {"class_path": "TokenClassification"},
        {"checkpoint": str(tiny_text_model)},
        rows,
        rows[:13],
        SGD,
        group_by_length=False,
    )
    one, (two, told) = fit_alone(folder, "one", 4), fit_together(folder, "two", 2)
    assert_same(one, two, steps=24)
    assert_same_weights(one, two)
    assert_told_once(told)


class CountSums(Callback):
    """Writes down how often the ranks add something up between each batch's forward and backward pass."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.counts = []
        self.all_reduce = torch.distributed.all_reduce

    def on_train_start(self, trainer, pl_module):
        pl_module.model.register_forward_hook(self._count)

    def _count(self, model, inputs, outputs):
        if model.training:
            self.counts.append(0)
            torch.distributed.all_reduce = self._counted

    def _counted(self, *args, **settings):
        self.counts[-1] += 1
        return self.all_reduce(*args, **settings)

    def on_before_backward(self, trainer, pl_module, loss):
        torch.distributed.all_reduce = self.all_reduce

    def on_train_end(self, trainer, pl_module):
        Path(f"{self.file}{trainer.global_rank}").write_text(json.dumps(self.counts))


def test_an_adapter_with_accumulated_batches(folder, tiny_text_model):
    adapter = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}}
    model = {"checkpoint": str(tiny_text_model), "adapter": adapter}
    write(folder, {"class_path": "TextClassification"}, model, *opinions(), SGD)
    accumulate = ("--trainer.accumulate_grad_batches", "2")
    count = {"class_path": f"{__name__}.CountSums", "init_args": {"file": str(folder / "counts")}}
    counted = f"--trainer.callbacks+={json.dumps(count)}"
    one, (two, told) = fit_alone(folder, "one", 8, *accumulate), fit_together(folder, "two", 4, *accumulate, counted)
    # hardly anything is learnt, so that rows are nearly of the same probability and may change places
    assert_same(one, two, steps=10, without=["val/auroc"])
    assert_same_weights(one, two)
    assert_told_once(told)
    # nine batches an epoch: the last one is a step by itself
    counts = [json.loads((folder / f"counts{rank}").read_text()) for rank in (0, 1)]
    assert counts == [[1, 0, 1, 0, 1, 0, 1, 0, 1] * 2] * 2


def test_an_adapter_on_quantized_weights_goes_on_where_it_was(folder, tiny_text_model):
    adapter = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}}
    quantization = {"class_path": "transformers.BitsAndBytesConfig", "init_args": {"load_in_4bit": True}}
    model = {"checkpoint": str(tiny_text_model), "adapter": adapter, "quantization": quantization}
    write(folder, {"class_path": "TextClassification"}, model, *opinions(), SGD)
    fit_alone(folder, "one", 16), fit_together(folder, "two", 8)
    more = ("--trainer.max_epochs", "3")
    one, (two, told) = fit_alone(folder, "one", 16, *more), fit_together(folder, "two", 8, *more)
    assert_same(one, two, steps=15, without=["val/auroc"])
    assert_same_weights(one, two)
    assert_told_once(told)


def test_an_adapter_on_weights_of_torchao_learns_the_same_on_two_ranks(folder, tiny_text_model):
    adapter = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "all-linear"}}
    kind = {"class_path": "torchao.quantization.Int8WeightOnlyConfig"}
    quantization = {"class_path": "transformers.TorchAoConfig", "init_args": {"quant_type": kind}}
    model = {"checkpoint": str(tiny_text_model), "adapter": adapter, "quantization": quantization}
    write(folder, {"class_path": "TextClassification"}, model, *opinions(), SGD)
    one, (two, told) = fit_alone(folder, "one", 16), fit_together(folder, "two", 8)
    assert_same_weights(one, two)
    assert_told_once(told)


def test_embeddings_are_looked_for_among_those_of_all_ranks(folder, tiny_text_model):
    rows = [
        {"anchor": f"the {thing} was {word}", "positive": f"{word} {thing}"}
        for thing in THINGS
        for words in WORDS.values()
        for word in words
    ]
    # 19 rows to validate: the last one is alone on rank 0; nothing is learnt, as each rank has negatives of its own
    write(folder, {"class_path": "Embedding"}, {"checkpoint": str(tiny_text_model)}, rows[:8], rows[:19], STILL)
    one, (two, told) = fit_alone(folder, "one", 8), fit_together(folder, "two", 4)
    assert_same(one, two, steps=2, without=["val/loss"])
    assert 0 < one.read_record()["metrics"]["val/recall@1"] < 1
    assert_told_once(told)


def test_packed_documents_of_three_bins_on_two_ranks(folder, capsys):
    """Three bins are two steps of two: in the second one, rank 1 has a filler."""
    rows = [{"text": f"the {thing} was {word} " * 3} for thing in THINGS for words in WORDS.values() for word in words]
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    write(
        folder,
        {"class_path": "CausalLM"},
        {"config": {"model_type": "llama", **shape}},
        rows,
        rows[:5],
        SGD,
        tokenizer={"train": {"vocab_size": 300}},
        packing=True,
        batch_tokens=160,
    )
    accumulated = ("--trainer.accumulate_grad_batches", "2")
    one = fit_alone(folder, "one", 1, *accumulated)
    assert "train: 3 batches" in capsys.readouterr().err
    two, told = fit_together(folder, "two", 1)
    assert "train: 2 batches" in told
    assert_same(one, two, steps=4)
    assert_same_weights(one, two)
    assert_told_once(told)
