"""Adapters from fit to predict: those that start from the data or from others, that move ranks, and that add tokens."""

import json

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lit_hf.cli.main import main
from lit_hf.cli.runs import read_checkpoint
from lit_hf.run import RunFolder

WORDS = {"good": ["great", "good", "fine", "very good"], "bad": ["bad", "poor", "dull", "very bad"]}
LORA = {"class_path": "peft.LoraConfig", "init_args": {"r": 2, "target_modules": ["query", "value"]}}


@pytest.fixture
def fit(tmp_path, monkeypatch, tiny_text_model):
    """Run `lit-hf fit` with settings of the model, and return its exit code and the run."""
    monkeypatch.chdir(tmp_path)
    for split, repeat in (("train", 4), ("validation", 1)):
        rows = [
            {"text": f"the {thing} was {word}" + " amazing" * (number % 3), "label": label}
            for number in range(repeat)
            for thing in ("film", "plot")
            for label, words in WORDS.items()
            for word in words
        ]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def run(name, *options, tokenizer=None, **model):
        config = {
            "name": name,
            "task": {"class_path": "TextClassification"},
            "model": {
                "checkpoint": str(tiny_text_model),
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                **model,
            },
            "data": {
                "source": {"train": "train.jsonl", "validation": "validation.jsonl"},
                "batch_size": 8,
                "tokenizer": tokenizer or {},
            },
            "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
        }
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return main(["fit", "-c", f"{name}.yaml", *options]), RunFolder(f"runs/{name}")

    return run


def lora(**settings):
    return {"class_path": "peft.LoraConfig", "init_args": {**LORA["init_args"], **settings}}


def adapter_config(run):
    return json.loads((run.export / "adapter_config.json").read_text())


def predictions(folder, capsys):
    capsys.readouterr()
    assert main(["predict", str(folder), "--text", "the film was great"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("adapter", "options"),
    [
        (lora(init_lora_weights="eva"), []),
        (lora(init_lora_weights="pissa"), []),
        (lora(init_lora_weights="olora"), []),
        (lora(init_lora_weights="corda"), ["--merge", "true"]),
        (lora(lora_ga_config={"direction": "ArB2r"}), ["--merge", "true"]),
        (lora(use_dora=True, use_rslora=True), []),
        ({"class_path": "peft.AdaLoraConfig", "init_args": {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2}}, []),
        ({"class_path": "peft.VeraConfig", "init_args": {"r": 4}}, []),
        ({"class_path": "peft.OFTConfig", "init_args": {"oft_block_size": 4}}, []),
        ({"class_path": "peft.PrefixTuningConfig", "init_args": {"num_virtual_tokens": 3}}, []),
    ],
    ids=["eva", "pissa", "olora", "corda", "lora-ga", "dora", "adalora", "vera", "oft", "prefix"],
)
def test_a_run_resumes_exports_and_predicts(fit, capsys, adapter, options):
    code, run = fit("a", *options, "--trainer.max_epochs", "1", adapter=adapter)
    assert code == 0, capsys.readouterr().err
    begun = read_checkpoint(run.checkpoint("last"))["state_dict"]
    code, run = fit("a", *options, adapter=adapter)
    assert code == 0, capsys.readouterr().err
    ended = read_checkpoint(run.checkpoint("last"))
    assert ended["global_step"] == 2 * 8
    assert begun.keys() == ended["state_dict"].keys()
    assert any(not torch.equal(value, begun[name]) for name, value in ended["state_dict"].items())
    first = predictions(run.export, capsys)
    assert main(["export", str(run.path)]) == 0
    assert predictions(run.export, capsys) == first
    assert main(["validate", str(run.path)]) == 0


def test_eva_starts_from_the_rows_and_keeps_the_ranks_that_it_chose(fit):
    code, run = fit("eva", adapter=lora(r=2, init_lora_weights="eva", target_modules="all-linear"))
    assert code == 0
    saved, weights = adapter_config(run), load_file(run.export / "adapter_model.safetensors")
    ranks = [len(value) for name, value in weights.items() if "lora_A" in name]
    assert sum(ranks) == 2 * 13
    assert len(set(ranks)) > 1
    assert saved["rank_pattern"]


def test_adalora_shrinks_to_its_budget_by_the_trainers_steps(fit, capsys):
    adapter = {
        "class_path": "peft.AdaLoraConfig",
        "init_args": {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 4, "target_modules": ["query", "value"]},
    }
    code, run = fit("ada", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1", adapter=adapter)
    assert code == 0, capsys.readouterr().err
    saved = adapter_config(run)
    assert saved["total_step"] == 8
    assert sum(sum(kept) for kept in saved["rank_pattern"].values()) in (2 * 4, 2 * 4 + 1)
    first = predictions(run.export, capsys)
    assert main(["export", str(run.path)]) == 0
    assert predictions(run.export, capsys) == first
    rows = (run.path / "metrics.csv").read_text().splitlines()
    assert "train/regularization" in rows[0]


def test_adalora_that_was_stopped_ends_as_if_it_had_not_been(fit, tmp_path, capsys):
    settings = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 4, "deltaT": 2, "lora_dropout": 0.2}
    adapter = {"class_path": "peft.AdaLoraConfig", "init_args": {**settings, "target_modules": ["query", "value"]}}
    stop = {"class_path": "tests.cli.test_fit.StopAfter", "init_args": {"steps": 10}}
    (tmp_path / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    code, whole = fit("whole", adapter=adapter)
    assert code == 0, capsys.readouterr().err
    assert fit("part", "--checkpoint_every", "7", "-c", "stop.yaml", "--name", "part", adapter=adapter)[0] == 1
    capsys.readouterr()
    code, part = fit("part", adapter=adapter)
    assert code == 0
    assert "resuming runs/part from step 8" in capsys.readouterr().err
    expected, found = (read_checkpoint(run.checkpoint("last")) for run in (whole, part))
    assert found["adapter"]["rank_pattern"] == expected["adapter"]["rank_pattern"]
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(value, expected["state_dict"][name]) for name, value in found["state_dict"].items())


def test_adalora_without_room_for_its_schedule_is_told(fit, capsys):
    adapter = {"class_path": "peft.AdaLoraConfig", "init_args": {"init_r": 4, "target_r": 2, "tinit": 20}}
    code, _ = fit("ada", adapter=adapter)
    assert code == 2
    told = capsys.readouterr().err
    assert "model.adapter.init_args.tinit: 20 steps before ranks move and 0 after leave none of the run's 16." in told
    assert "Loading weights" not in told and "model: " not in told


def test_adalora_gets_to_its_target_in_a_run_that_is_made_longer_or_shorter(fit, tmp_path, capsys):
    settings = {"init_r": 4, "target_r": 2, "tfinal": 3, "deltaT": 100, "target_modules": ["query", "value"]}
    adapter = {"class_path": "peft.AdaLoraConfig", "init_args": settings}
    stop = {"class_path": "tests.cli.test_fit.StopAfter", "init_args": {"steps": 10}}
    (tmp_path / "stop.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))

    assert fit("longer", "--trainer.max_steps", "8", adapter=adapter)[0] == 0
    code, longer = fit(
        "longer", "--trainer.max_steps", "12", adapter=adapter
    )  # its first step is that of the last move
    assert code == 0, capsys.readouterr().err
    assert fit("shorter", "-c", "stop.yaml", "--name", "shorter", adapter=adapter)[0] == 1
    code, shorter = fit("shorter", "--trainer.max_steps", "9", adapter=adapter)  # the last move was to be in its step 6
    assert code == 0, capsys.readouterr().err

    assert "rank_pattern" not in capsys.readouterr().err  # PEFT's warnings that are none to a user
    for run, steps in ((longer, 12), (shorter, 9)):
        last = read_checkpoint(run.checkpoint("last"))
        assert last["global_step"] == steps
        ranks = sum(int((value != 0).sum()) for name, value in last["state_dict"].items() if "lora_E" in name)
        assert ranks == 2 * 4, run.path


def test_a_run_starts_from_another_runs_adapter(fit, capsys):
    _, first = fit("first", adapter=LORA)
    code, second = fit(
        "second", "--trainer.max_steps", "1", "--model.optimizer.lr", "0", adapter_checkpoint=str(first.export)
    )
    assert code == 0, capsys.readouterr().err
    before, after = (load_file(run.export / "adapter_model.safetensors") for run in (first, second))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert adapter_config(second)["r"] == 2


def test_an_adapter_of_another_shape_is_refused_before_weights_load(fit, capsys):
    _, first = fit("first", adapter=LORA)
    config = adapter_config(first) | {"r": 3}
    (first.export / "adapter_config.json").write_text(json.dumps(config))
    capsys.readouterr()
    code, _ = fit("second", adapter_checkpoint=str(first.export))
    assert code == 2
    told = capsys.readouterr().err
    assert "query.lora_A.weight has the shape (2, 16), the model wants (3, 16) (8 of its weights do not fit)." in told


def test_both_kinds_of_adapter_are_refused_together(fit, capsys):
    _, first = fit("first", adapter=LORA)
    code, _ = fit("second", adapter=LORA, adapter_checkpoint=str(first.export))
    assert code == 2
    assert "model.adapter_checkpoint: model.adapter makes a new adapter" in capsys.readouterr().err


def test_adapters_are_merged_before_the_new_one(fit, tiny_text_model, capsys):
    _, first = fit("first", adapter=LORA)
    code, _ = fit("alone", adapter=LORA, merge_adapters=[str(first.export)])
    assert code == 2
    assert "model.merge_adapters: the new adapter is trained on a base with others" in capsys.readouterr().err
    code, second = fit(
        "second", "--merge", "true", "--model.optimizer.lr", "0", adapter=LORA, merge_adapters=[str(first.export)]
    )
    assert code == 0, capsys.readouterr().err
    base = AutoModelForSequenceClassification.from_pretrained(tiny_text_model, num_labels=2)
    expected = PeftModel.from_pretrained(base, str(first.export)).merge_and_unload().bert.state_dict()
    merged = load_file(second.export / "model.safetensors")
    name = "encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(merged[f"bert.{name}"], expected[name])
    first_answer = predictions(second.export, capsys)
    assert main(["export", str(second.path)]) == 0
    assert predictions(second.export, capsys) == first_answer


OTHERS = {"good": ["excellent", "wonderful", "superb"], "bad": ["terrible", "horrible", "awful"]}


def test_lora_on_a_pretrained_model_tells_words_apart_that_it_has_not_trained_on(fit, minilm, tmp_path, capsys):
    (tmp_path / "validation.jsonl").write_text(
        "\n".join(
            json.dumps({"text": f"the {thing} was {word}", "label": label})
            for thing in ("book", "play")
            for label, words in OTHERS.items()
            for word in words
        )
    )
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.005}}
    adapter = lora(r=8, lora_alpha=32)
    code, run = fit("minilm", "--trainer.max_epochs", "4", checkpoint=str(minilm), adapter=adapter, optimizer=optimizer)
    assert code == 0, capsys.readouterr().err
    record = run.read_record()
    assert record["parameters"]["trainable"] < 0.02 * record["parameters"]["total"]
    assert record["metrics"]["val/loss"] < 0.35  # guessing has 0.69
    assert record["metrics"]["val/accuracy"] == 1


@pytest.mark.parametrize("kind", ["lora", "prefix", "none"])
def test_added_tokens_grow_the_model_and_come_back_with_the_export(fit, tiny_text_model, capsys, kind):
    prefix = {"class_path": "peft.PrefixTuningConfig", "init_args": {"num_virtual_tokens": 3}}
    adapter = {"lora": LORA, "prefix": prefix, "none": None}[kind]
    old = len(AutoTokenizer.from_pretrained(tiny_text_model))
    code, run = fit("tokens", tokenizer={"add_tokens": ["amazing", "<new>"]}, adapter=adapter)
    assert code == 0, capsys.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(run.export)
    assert len(tokenizer) == old + 2
    assert tokenizer.tokenize("the amazing <new>film") == ["the", "amazing", "<new>", "film"]
    first = predictions(run.export, capsys)
    assert main(["export", str(run.path)]) == 0
    assert predictions(run.export, capsys) == first
