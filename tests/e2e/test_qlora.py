"""Adapters on quantized weights, from fit to predict: what is kept, what is exported, and what merging costs."""

import json
import shutil

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    pipeline,
)

from lit_hf.cli.main import main
from lit_hf.cli.runs import load_run
from lit_hf.run import RunFolder
from tests.conftest import ROOT

QLORA = str(ROOT / "configs" / "methods" / "qlora.yaml")
LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"}}
WORDS = {"good": ["great", "good", "fine", "very good"], "bad": ["bad", "poor", "dull", "very bad"]}
ROWS = [
    {"text": f"the {thing} was {word}", "label": label}
    for thing in ("film", "plot", "movie")
    for label, words in WORDS.items()
    for word in words
]


def bits_and_bytes(**settings):
    return {"class_path": "transformers.BitsAndBytesConfig", "init_args": settings}


METHODS = {
    "nf4": bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "fp4": bits_and_bytes(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": bits_and_bytes(load_in_8bit=True),
    "torchao": {
        "class_path": "transformers.TorchAoConfig",
        "init_args": {"quant_type": {"class_path": "torchao.quantization.Int8WeightOnlyConfig"}},
    },
}


@pytest.fixture(scope="session")
def base(tiny_text_model, tmp_path_factory):
    """A checkpoint whose weights are large enough to tell words apart and to be worth quantizing."""
    model, folder = AutoModel.from_pretrained(tiny_text_model), tmp_path_factory.mktemp("base")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter *= 10
    for part in (model, AutoTokenizer.from_pretrained(tiny_text_model)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    config = {
        "name": "tiny",
        "task": {"class_path": "TextClassification"},
        "model": {"checkpoint": str(base)},
        "data": {"source": {"train": "train.jsonl", "validation": "validation.jsonl"}, "batch_size": 8},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def overlay(folder, quantization, **model):
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.02}}
    values = {"model": {"adapter": LORA, "quantization": quantization, "optimizer": optimizer, **model}}
    (folder / "overlay.yaml").write_text(yaml.safe_dump(values))
    return ("-c", "overlay.yaml")


def column(run, name):
    lines = run.metrics.read_text().splitlines()
    index = lines[0].split(",").index(name)
    return [float(line.split(",")[index]) for line in lines[1:] if line.split(",")[index]]


def test_qlora_from_fit_to_a_merged_model(folder, capsys):
    fit = ["fit", "-c", "tiny.yaml", "-c", QLORA, "--model.optimizer.init_args.lr", "0.02"]
    assert main(fit) == 0
    run = RunFolder("runs/tiny")
    first = torch.load(run.checkpoint("last"), weights_only=True)
    assert first["global_step"] == 6
    # neither the frozen base nor its quantization constants are stored
    assert {name.split(".")[-1] for name in first["state_dict"]} == {"weight", "bias"}
    assert all(part in name for name in first["state_dict"] for part in ["lora_" if "lora_" in name else "classifier"])

    assert main([*fit, "--trainer.max_epochs", "6"]) == 0
    assert "resuming runs/tiny from step 6" in capsys.readouterr().err
    assert torch.load(run.checkpoint("last"), weights_only=True)["global_step"] == 18
    losses = column(run, "val/loss")
    assert len(losses) == 6 and losses[-1] < losses[0]

    assert main(["validate", "runs/tiny"]) == 0
    assert f"{run.read_record()['metrics']['val/accuracy']:.4f}" in capsys.readouterr().out

    assert main(["predict", "runs/tiny", "--text", "the film was great"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main(["export", "runs/tiny", "--merge"]) == 0
    told = capsys.readouterr().err
    assert "merged into the dequantized base (bitsandbytes 4-bit nf4)" in told
    lost = json.loads((run.export / "lit_hf.json").read_text())["merged"]
    assert 0 < lost["mean"] <= lost["largest"] < 0.2
    assert main(["predict", "runs/tiny", "--text", "the film was great"]) == 0
    merged = json.loads(capsys.readouterr().out)
    assert merged["label"] == alone["label"]
    (answer,) = pipeline("text-classification", str(run.export), device="cpu")("the film was great")
    assert answer["label"] == merged["label"]
    assert answer["score"] == pytest.approx(max(merged["scores"].values()), abs=1e-4)
    assert not hasattr(AutoConfig.from_pretrained(run.export), "quantization_config")


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_alone_answers_in_peft_as_it_did_in_training(folder, base, method):
    if method == "torchao":
        pytest.importorskip("torchao")
    assert main(["fit", "-c", "tiny.yaml", *overlay(folder, METHODS[method]), "--trainer.max_epochs", "3"]) == 0
    run = RunFolder("runs/tiny")
    losses = column(run, "val/loss")
    assert losses[-1] < losses[0]

    config = AutoConfig.from_pretrained(run.export / "model_config")
    quantization = config.__dict__.pop("quantization_config")
    quantized = AutoModelForSequenceClassification.from_pretrained(
        base, config=config, quantization_config=quantization_of(quantization), device_map={"": "cpu"}
    )
    for module in quantized.modules():
        module.support_avx512bf16_for_cpu = False
    theirs = PeftModel.from_pretrained(quantized, run.export).eval()
    ours = load_run(run, run.checkpoint("best")).model
    inputs = AutoTokenizer.from_pretrained(run.export)("the plot was not very good", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(theirs(**inputs).logits, ours(**inputs).logits, atol=1e-5, rtol=1e-5)


def quantization_of(values):
    from transformers import TorchAoConfig

    return (TorchAoConfig if values["quant_method"] == "torchao" else BitsAndBytesConfig).from_dict(values)


def test_loftq_starts_once_and_what_is_exported_is_plain_lora(folder, capsys):
    adapter = {**LORA, "init_args": {**LORA["init_args"], "init_lora_weights": "loftq"}}
    fit = ["fit", "-c", "tiny.yaml", *overlay(folder, METHODS["nf4"], adapter=adapter)]
    assert main([*fit, "--trainer.max_epochs", "1"]) == 0
    assert "LoftQ gives back" in capsys.readouterr().err
    assert main([*fit, "--merge", "true"]) == 0
    told = capsys.readouterr().err
    assert "resuming runs/tiny from step 3" in told and "LoftQ" not in told
    assert "merge: the export has the base dequantized (bitsandbytes 4-bit nf4)" in told
    assert main(["export", "runs/tiny"]) == 0
    run = RunFolder("runs/tiny")
    assert not any("base_layer" in name for name in torch.load(run.checkpoint("last"), weights_only=True)["state_dict"])
    assert main(["validate", "runs/tiny"]) == 0
    capsys.readouterr()
    assert main(["export", "runs/tiny", "--output", "alone"]) == 0


def test_adapters_are_not_merged_into_quantized_weights(folder, capsys):
    assert main(["fit", "-c", "tiny.yaml", *overlay(folder, METHODS["nf4"], merge_adapters=["runs/first/export"])]) == 2
    assert "model.merge_adapters: an adapter that is merged into quantized weights is" in capsys.readouterr().err


def test_a_checkpoint_of_lora_holds_the_adapter_alone_and_goes_on(folder, capsys):
    fit = ["fit", "-c", "tiny.yaml", *overlay(folder, None)]
    assert main(fit) == 0
    run = RunFolder("runs/tiny")
    state = torch.load(run.checkpoint("last"), weights_only=True)["state_dict"]
    assert all("lora_" in name or "classifier" in name for name in state)
    assert main([*fit, "--trainer.max_epochs", "3"]) == 0
    assert "resuming runs/tiny from step 6" in capsys.readouterr().err
    assert main(["validate", "runs/tiny"]) == 0
    assert f"{run.read_record()['metrics']['val/accuracy']:.4f}" in capsys.readouterr().out


def test_what_is_wrong_is_told_before_weights_load(folder, capsys):
    settings = overlay(folder, METHODS["nf4"], adapter=None)
    assert main(["fit", "-c", "tiny.yaml", *settings, "--trainer.precision", "bf16-true"]) == 2
    told = capsys.readouterr().err
    assert "model.adapter: quantized weights do not train themselves" in told
    assert "trainer.precision: bf16-true" in told


def test_a_merge_that_the_weights_do_not_allow_is_told_before_they_load(folder, base, capsys):
    packed = folder / "gptq"
    shutil.copytree(base, packed)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (packed / "config.json").write_text(json.dumps(config))
    settings = overlay(folder, None, checkpoint=str(packed))
    assert main(["fit", "-c", "tiny.yaml", *settings, "--merge", "true"]) == 2
    told = capsys.readouterr().err
    assert "merge: gptq weights cannot be turned back into plain ones" in told
    assert "model.quantization: gptq does not work on this machine" in told  # without its package or a GPU
    assert "Loading weights" not in told
