import json
import shutil
import sys

import jsonargparse._common as settings
import pytest
import yaml

from lit_hf.cli.config import check, parse
from lit_hf.cli.main import main
from lit_hf.errors import InputError
from lit_hf.run import RunFolder
from tests import tiny_run


@pytest.fixture(autouse=True)
def imports_allowed_again(monkeypatch):
    """What `--safe-config` tells jsonargparse holds for the process, which a test shares with others."""
    for name in ("import_path_verdicts", "import_paths_enforced"):
        monkeypatch.setitem(settings.parsing_settings, name, settings.parsing_settings[name])


@pytest.fixture
def hostile(folder, monkeypatch):
    """A working directory with a module that says so when it is imported."""
    monkeypatch.syspath_prepend(folder)
    (folder / "evil.py").write_text(
        "from pathlib import Path\nfrom torch.optim import AdamW\nPath('imported').touch()\n"
        "class Evil(AdamW): pass\ndef rows(): yield {}\ndef run(*_): Path('run').touch()\n"
    )
    yield folder
    sys.modules.pop("evil", None)


BASE = {"task": {"class_path": "TextClassification"}, "data": {"source": {"train": "a.jsonl"}}}

ATTACKS = {
    "an optimizer": ({"model": {"optimizer": {"class_path": "evil.Evil"}}}, "model.optimizer.class_path"),
    "an optimizer by its name alone": ({"model": {"optimizer": "evil.Evil"}}, "model.optimizer"),
    "a task": ({"task": {"class_path": "evil.Evil"}}, "task.class_path"),
    "an adapter": ({"model": {"adapter": {"class_path": "evil.Evil"}}}, "model.adapter.class_path"),
    "a quantization": ({"model": {"quantization": {"class_path": "evil.Evil"}}}, "model.quantization.class_path"),
    "a callback": ({"trainer": {"callbacks": [{"class_path": "evil.Evil"}]}}, "trainer.callbacks[0].class_path"),
    "a callback by its name alone": ({"trainer": {"callbacks": ["evil.Evil"]}}, "trainer.callbacks[0]"),
    "a logger": ({"trainer": {"logger": {"class_path": "evil.Evil"}}}, "trainer.logger.class_path"),
    "a strategy": ({"trainer": {"strategy": {"class_path": "evil.Evil"}}}, "trainer.strategy.class_path"),
    "a strategy where text may be, too": ({"trainer": {"strategy": "evil.Evil"}}, "trainer.strategy"),
    "a plugin in a list": ({"trainer": {"plugins": ["evil.Evil"]}}, "trainer.plugins[0]"),
    "a class among plain values": (
        {"model": {"config": {"model_type": "bert", "x": {"class_path": "evil.Evil"}}}},
        "model.config.x.class_path",
    ),
    "a function of an admitted callback": (
        {
            "trainer": {
                "callbacks": [
                    {
                        "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                        "init_args": {"on_fit_start": "evil.run"},
                    }
                ]
            }
        },
        "trainer.callbacks[0].init_args.on_fit_start",
    ),
    "a function in the place of a class": (
        {"model": {"optimizer": {"class_path": "torch.optim.lr_scheduler.cast"}}},
        "model.optimizer",
    ),
    "a module behind an admitted name": (
        {"model": {"optimizer": {"class_path": "torch.optimevil.Evil"}}},
        "model.optimizer.class_path",
    ),
    "rows from a function": ({"data": {"source": {"generator": "evil.rows"}}}, "data.source.generator"),
    "a function of the standard library": ({"data": {"source": {"generator": "os.system"}}}, "data.source.generator"),
    "the model's own code": ({"model": {"trust_remote_code": True}}, "model.trust_remote_code"),
    "an id on the Hub": ({"model": {"checkpoint": "someone/model"}}, "model.checkpoint"),
    "a bare id on the Hub": ({"model": {"checkpoint": "bert-base-uncased"}}, "model.checkpoint"),
    "a dataset on the Hub": ({"data": {"source": {"path": "someone/data"}}}, "data.source.path"),
    "a dataset among several": ({"data": {"source": [{"path": "someone/data"}]}}, "data.source[0].path"),
    "a tokenizer on the Hub": ({"data": {"tokenizer": {"checkpoint": "someone/x"}}}, "data.tokenizer.checkpoint"),
    "an address": ({"data": {"source": {"train": "https://evil.example/x.jsonl"}}}, "data.source.train"),
    "a kernel of the Hub": ({"model": {"attention": "someone/kernel"}}, "model.attention"),
    "code named by a model's config": ({"model": {"config": {"auto_map": {"AutoModel": "evil.Evil"}}}}, "auto_map"),
    "a file elsewhere": (
        {
            "trainer": {
                "callbacks": [
                    {
                        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                        "init_args": {"dirpath": "/tmp", "filename": "../../x"},
                    }
                ]
            }
        },
        "trainer.callbacks[0].init_args.filename",
    ),
}


def told(parser, config, *options):
    with pytest.raises(InputError) as refused:
        check(parser, ["-c", "attack.yaml", *options], safe=True)
    return [str(problem) for problem in refused.value.problems]


@pytest.mark.parametrize(("attack", "key"), ATTACKS.values(), ids=ATTACKS.keys())
def test_what_would_run_or_fetch_something_is_refused_unseen(parser, hostile, attack, key):
    (hostile / "attack.yaml").write_text(yaml.safe_dump(BASE | attack))
    refused = told(parser, attack)
    assert any(key in line and "attack.yaml:" in line and "--safe-config" in line for line in refused), refused
    assert not (hostile / "imported").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(("attack", "key"), ATTACKS.values(), ids=ATTACKS.keys())
def test_the_same_is_refused_as_an_option(parser, hostile, attack, key):
    def flat(values, prefix=""):
        for name, value in values.items():
            if isinstance(value, dict) and value and "class_path" not in value:
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield f"--{prefix}{name}", value if isinstance(value, str) else json.dumps(value)

    (hostile / "attack.yaml").write_text(yaml.safe_dump(BASE))
    refused = told(parser, attack, *(word for pair in flat(attack) for word in pair))
    assert any(key in line and "--safe-config" in line for line in refused), refused
    assert not (hostile / "imported").exists()


def test_all_is_told_at_once_each_in_a_line(parser, hostile):
    attack = {
        "task": "evil.Evil",
        "model": {"optimizer": {"class_path": "evil.Evil"}, "trust_remote_code": True, "checkpoint": "someone/x"},
        "data": {"source": {"generator": "os.system"}},
        "trainer": {"callbacks": [{"class_path": "evil.Evil"}, {"class_path": "evil.Other"}]},
    }
    (hostile / "attack.yaml").write_text(yaml.safe_dump(attack))
    assert len(told(parser, attack)) == 7


def test_a_block_in_a_file_of_its_own_is_read_like_the_rest(parser, hostile):
    (hostile / "model.yaml").write_text("optimizer: {class_path: evil.Evil}\ntrust_remote_code: true\n")
    (hostile / "attack.yaml").write_text(yaml.safe_dump(BASE | {"model": "model.yaml"}))
    refused = told(parser, {})
    assert len(refused) == 2 and all("model.yaml:" in line for line in refused)


def test_jsonargparse_itself_imports_nothing_else(parser, hostile, monkeypatch):
    monkeypatch.setattr("lit_hf.cli.config.check", lambda *_: [])
    (hostile / "attack.yaml").write_text(yaml.safe_dump(BASE | {"model": {"optimizer": "evil.Evil"}}))
    with pytest.raises(InputError):
        parse(parser, ["-c", "attack.yaml"], safe=True)
    assert not (hostile / "imported").exists()


HARMLESS = {
    "task": {"class_path": "lit_hf.tasks.TextClassification", "init_args": {"text": "sentence"}},
    "model": {
        "checkpoint": ".",
        "adapter": {"class_path": "peft.LoraConfig", "init_args": {"r": 4, "target_modules": "model.layers"}},
        "quantization": {"class_path": "transformers.BitsAndBytesConfig", "init_args": {"load_in_4bit": True}},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}},
        "attention": "sdpa",
    },
    "data": {"source": {"train": "os.path", "validation": "data/test.jsonl"}},
    "trainer": {
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}, "EarlyStopping"],
        "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "own"}},
        "strategy": {"class_path": "lightning.pytorch.strategies.DDPStrategy"},
        "precision": "bf16-mixed",
    },
}


def test_a_config_of_known_classes_passes_and_means_the_same(parser, folder):
    config = HARMLESS | {"trainer": {**HARMLESS["trainer"], "callbacks": HARMLESS["trainer"]["callbacks"][:1]}}
    (folder / "a.yaml").write_text(yaml.safe_dump(config))
    safe = parser.dump(parse(parser, ["-c", "a.yaml"], safe=True), skip_unset=False)
    (folder / "resolved.yaml").write_text(safe)
    assert parser.dump(parse(parser, ["-c", "a.yaml"]), skip_unset=False) == safe


def test_functions_that_run_commands_are_refused_without_it_too(parser, folder):
    (folder / "a.yaml").write_text(yaml.safe_dump(BASE | {"data": {"source": {"generator": "os.system"}}}))
    with pytest.raises(InputError, match=r"data\.source\.generator|os\.system"):
        parse(parser, ["-c", "a.yaml"])


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "inspect", "plan"])
def test_every_verb_that_reads_a_config_has_it(hostile, messages_restored, capsys, verb):
    (hostile / "attack.yaml").write_text(yaml.safe_dump(BASE | {"model": {"optimizer": "evil.Evil"}}))
    assert main([verb, "-c", "attack.yaml", "--safe-config"]) == 2
    assert "evil.Evil is not imported: --safe-config admits bitsandbytes.optim," in capsys.readouterr().err
    assert not (hostile / "imported").exists()


def written_run(hostile):
    run = hostile / "runs" / "x"
    run.mkdir(parents=True)
    run.joinpath("run.json").write_text("{}")
    run.joinpath("config.yaml").write_text(yaml.safe_dump(BASE | {"model": {"optimizer": "evil.Evil"}}))


@pytest.mark.parametrize(
    "command", [["validate", "runs/x"], ["test", "--run", "runs/x"], ["inspect", "runs/x"], ["plan", "runs/x"]]
)
def test_the_config_of_a_run_is_data_as_well(hostile, messages_restored, capsys, command):
    written_run(hostile)
    assert main([command[0], "--safe-config", *command[1:]]) == 2
    assert "evil.Evil is not imported" in capsys.readouterr().err
    assert not (hostile / "imported").exists()


@pytest.mark.parametrize("option", ["--config=https://evil.example/a.yaml", "--config=s3://evil/a.yaml"])
def test_a_config_from_another_machine_is_never_read(folder, messages_restored, capsys, option):
    assert main(["fit", option]) == 2
    assert "it must be a file on this machine" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["ckpt_path", "trainer.ckpt_path", "model.ckpt_path"])
def test_there_is_no_key_for_a_checkpoint_from_elsewhere(folder, messages_restored, capsys, where):
    assert main(["fit", f"--{where}", "http://evil.example/x.ckpt"]) == 2
    assert f"{where}: there is no such key." in capsys.readouterr().err


def test_a_run_that_is_data_goes_through_every_verb(folder, tiny_text_model, messages_restored, capsys):
    adapter = {"class_path": "peft.LoraConfig", "init_args": {"r": 2}}
    tiny_run.write(folder, tiny_text_model, model__adapter=adapter, trainer__max_epochs=1)
    assert main(["inspect", "-c", "tiny.yaml", "--safe-config"]) == 0
    assert main(["fit", "-c", "tiny.yaml", "--safe-config"]) == 0
    assert main(["validate", "runs/tiny", "--safe-config"]) == 0
    assert main(["export", "runs/tiny", "--safe-config", "--output", "exported"]) == 0
    assert main(["predict", "runs/tiny", "--safe-config", "--text", "good"]) == 0


def test_a_finished_run_that_is_exported_by_fit_is_taken_as_data_too(
    hostile, tiny_text_model, messages_restored, capsys
):
    tiny_run.write(hostile, tiny_text_model, trainer__max_epochs=1)
    assert main(["fit", "-c", "tiny.yaml"]) == 0
    run = RunFolder("runs/tiny")
    shutil.rmtree(run.export)
    config = run.read_config()
    config["trainer"]["callbacks"] = [{"class_path": "hostile.Evil"}]  # which a run that resumes may change
    run.write_config(config)
    assert main(["fit", "-c", "tiny.yaml", "--safe-config"]) == 2
    assert "hostile.Evil is not imported" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["export"], ["predict", "--text", "good", "--run"]])
def test_verbs_that_rebuild_a_run_take_its_config_as_data_too(
    hostile, tiny_text_model, messages_restored, capsys, command
):
    tiny_run.write(hostile, tiny_text_model, trainer__max_epochs=1)
    assert main(["fit", "-c", "tiny.yaml"]) == 0
    run = RunFolder("runs/tiny")
    shutil.rmtree(run.export)
    config = run.read_config()
    config["model"]["optimizer"] = {"class_path": "evil.Evil"}
    run.write_config(config)
    assert main([*command, "runs/tiny", "--safe-config"]) == 2
    assert "evil.Evil is not imported" in capsys.readouterr().err
    assert not (hostile / "imported").exists()
