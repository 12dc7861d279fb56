from pathlib import Path

import fsspec
import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lit_hf.cli.config import instantiate, parse
from lit_hf.errors import InputError
from lit_hf.task import Task
from tests.cli.configs import LISTED, TASK, problems, write


@pytest.fixture(autouse=True)
def in_empty_folder(folder):
    return folder


def test_all_problems_of_files_and_options_are_told_at_once(parser):
    with pytest.raises(InputError) as caught:
        parse(
            parser,
            [
                *write(
                    "task:\n"
                    "  class_path: TextClassification\n"
                    "  init_args: {txt: sentence}\n"
                    "model:\n"
                    "  optimzer: {class_path: torch.optim.AdamW}\n"
                    "  dtype: bfloat\n"
                    "data:\n"
                    "  source: {trian: a.csv}\n"
                    "  batch_size: many\n",
                    "trainer:\n  max_epoch: 3\n  callbacks:\n  - class_path: EarlyStopping\n"
                    "    init_args: {monitor: loss, patiense: 3}\n",
                ),
                "--trainer.max_step=10",
                "--patience",
                "soon",
            ],
        )
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines() == [
        "9 problems:",
        "1. task.init_args.txt (a.yaml:3): there is no such key.",
        "    Did you mean 'text'? There is: class_weights, join, kind, label, label_smoothing, labels, text.",
        "2. model.optimzer (a.yaml:5): there is no such key.",
        "    Did you mean 'optimizer'?",
        "3. model.dtype (a.yaml:6): expected one of float32, bfloat16, float16, auto, found 'bfloat'.",
        "    Did you mean 'bfloat16'?",
        "4. data.source.trian (a.yaml:8): there is no such key.",
        "    Did you mean 'train'? There is: columns, generator, limit, name, path, revision, sample_by, streaming, "
        "test, train, validation, validation_share, weight.",
        "5. data.batch_size (a.yaml:9): expected a whole number, found 'many'.",
        "6. trainer.max_epoch (b.yaml:2): there is no such key.",
        "    Did you mean 'max_epochs'?",
        "7. trainer.callbacks[0].init_args.patiense (b.yaml:5): there is no such key.",
        "    Did you mean 'patience'? There is: check_finite, check_on_train_epoch_end, divergence_threshold, "
        "log_rank_zero_only, min_delta, mode, monitor, patience, stopping_threshold, strict, verbose.",
        "8. trainer.max_step: there is no such key.",
        "    Did you mean 'max_steps'?",
        "9. patience: expected a whole number or null, found 'soon'.",
    ]


def test_an_unknown_task_names_the_nearest(parser):
    ((where, what, cure),) = problems(parser, "task: {class_path: TextClasification, init_args: {no: matter}}\n")
    assert (where, what) == ("task (a.yaml:1)", "there is no Task named 'TextClasification'.")
    assert cure.startswith("Did you mean 'TextClassification'?")


def test_a_missing_task_names_those_there_are(parser):
    ((where, what, cure),) = problems(parser, "name: x\n")
    assert (where, what) == ("task", "is missing.")
    assert "TextClassification" in cure


def test_abbreviated_unknown_and_stray_options_are_refused(parser):
    found = problems(
        parser,
        TASK,
        options=["--trainer.max_epoch", "3", "--task.lable=x", "stray", "--data.batch_size", "--nam=x"],
    )
    assert [problem[:2] for problem in found] == [
        ("stray", "is not an option."),
        ("data.batch_size", "the value is missing."),
        ("trainer.max_epoch", "there is no such key."),
        ("task.init_args.lable", "there is no such key."),
        ("nam", "there is no such key."),
    ]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (
            "trainer: {logger: {class_path: WandbLogger, init_args: {api_key: SECRET}}}",
            "trainer.logger.init_args.api_key",
        ),
        ("model: {token: SECRET}", "model.token"),
        ("model: {checkpoint: hf_SECRETabcdefghijklmnopq}", "model.checkpoint"),
        ("model: {config: {model_type: bert, auth_token: SECRET}}", "model.config.auth_token"),
        ("hub_token: SECRET", "hub_token"),
    ],
)
def test_a_secret_is_refused_and_never_shown(parser, text, where):
    with pytest.raises(InputError) as caught:
        parse(parser, write(TASK + text + "\n"))
    assert [problem.where for problem in caught.value.problems] == [f"{where} (a.yaml:2)"]
    assert "SECRET" not in str(caught.value)
    assert "hf auth login" in str(caught.value)


def test_a_secret_option_is_refused_and_never_shown(parser):
    with pytest.raises(InputError) as caught:
        parse(parser, [*write(TASK), "--model.checkpoint", "hf_SECRETabcdefghijklmnopq", "--token=SECRET"])
    assert [problem.where for problem in caught.value.problems] == ["model.checkpoint", "token"]
    assert "SECRET" not in str(caught.value)


def test_unreadable_files_are_told_together_and_nothing_is_guessed_missing(parser):
    found = problems(parser, "a: [\n", "- 1\n", options=["-c", "https://x.org/a.yaml", "-c", "aa.yaml"])
    assert [problem[0] for problem in found] == ["a.yaml:2:1", "b.yaml", "--config", "--config"]
    assert found[2][1].startswith("https://x.org/a.yaml is not read:")
    assert found[3][1:] == ("there is no file aa.yaml.", "Did you mean a.yaml?")


def test_later_files_and_options_win_and_blocks_merge(parser):
    config = parse(
        parser,
        [
            *write(
                TASK + "data: {batch_size: 8, max_length: 64}\ntrainer: {max_steps: 5}\n",
                "task: {init_args: {label: y}}\ndata: {batch_size: 16}\n",
            ),
            "--trainer.max_steps",
            "10",
            "--model.optimizer.lr",
            "1e-3",
            "--task.text=review",
            "--data.tokenizer.train.vocab_size=500",
        ],
    )
    assert config.task.class_path.endswith("TextClassification")
    assert (config.task.init_args.text, config.task.init_args.label) == ("review", "y")
    assert (config.data.batch_size, config.data.max_length, config.trainer.max_steps) == (16, 64, 10)
    assert config.model.optimizer.init_args.lr == 0.001
    assert config.data.tokenizer.train.vocab_size == 500


@pytest.mark.parametrize(
    "arguments",
    [
        ["--task", "TextClassification"],
        ["--task=TextClassification", "--task.init_args.label", "y"],
        ["--task.class_path=TextClassification", "--task.label", "y"],
        ['--task={"class_path": "TextClassification"}'],
        ["--task", "lit_hf.tasks.TextClassification"],
        ["--task=TextClassification", "--model.adapter=peft.LoraConfig", "--model.adapter.target_modules+=query"],
        ["--task=TextClassification", "--trainer.callbacks+=TQDMProgressBar", "--trainer.logger", "false"],
        ["--task=TextClassification", "--trainer.devices=[0, 1]", "--trainer.strategy", "ddp"],
        ["--task=TextClassification", "--trainer.limit_train_batches=1e-1", "--trainer.max_time", "00:12:00:00"],
        ["--task=TextClassification", "--data.source.limit", '{"train": 10}', "--name", "123"],
    ],
)
def test_the_short_forms_of_jsonargparse_work(parser, arguments):
    assert parse(parser, arguments).task.class_path.endswith("TextClassification")


def test_a_block_may_be_in_a_file_of_its_own(parser, folder):
    (folder / "parts").mkdir()
    (folder / "parts" / "model.yaml").write_text("checkpoint: bert\ndtype: bfloat16\n")
    (folder / "parts" / "bad.yaml").write_text("dtyp: bfloat16\n")
    assert parse(parser, write(TASK + "model: parts/model.yaml\n")).model.checkpoint == "bert"
    (problem,) = problems(parser, TASK + "model: parts/bad.yaml\n")
    assert problem[:2] == ("model.dtyp (parts/bad.yaml:1)", "there is no such key.")


def test_the_printed_config_parses_to_the_same_config(parser, capsys):
    files = write(
        TASK
        + "model:\n"
        + "  checkpoint: bert\n"
        + "  adapter: {class_path: peft.LoraConfig, init_args: {r: 4, target_modules: [query, value]}}\n"
        + "  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 2.0e-4}}\n"
        + "data: {source: {train: [a.csv, b.csv], limit: {train: 9}}, tokenizer: {train: {vocab_size: 99}}}\n"
        + "trainer: {gradient_clip_val: null, callbacks: [{class_path: TQDMProgressBar}]}\n"
    )
    with pytest.raises(SystemExit) as ended:
        parse(parser, [*files, "--print_config"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["model"]["adapter"]["init_args"]["r"] == 4
    first = parse(parser, files).as_dict()
    second = parse(parser, write(printed)).as_dict()
    del first["config"], second["config"]
    assert second == first


def test_a_quantization_config_is_given_by_class_path(parser):
    text = (
        TASK + "model: {quantization: {class_path: transformers.BitsAndBytesConfig, init_args: {load_in_4bit: true}}}\n"
    )
    config = parse(parser, write(text))
    assert config.model.quantization.class_path.endswith("BitsAndBytesConfig")
    assert config.model.quantization.init_args.load_in_4bit is True


def test_a_remote_config_is_refused_even_as_a_block(parser):
    (problem,) = problems(parser, TASK + "model: https://x.org/model.yaml\n")
    assert "is not read" in problem[1]


def test_what_a_class_raises_is_told_without_what_jsonargparse_wraps_it_in(parser, folder, monkeypatch):
    (folder / "raising_tasks.py").write_text(
        "from lit_hf.errors import InputError, Problem\n"
        "from lit_hf.tasks import TextClassification\n"
        "class Refusing(TextClassification):\n"
        "    def __init__(self):\n"
        "        raise InputError(Problem('task.text', 'is bad.'))\n"
        "class Failing(TextClassification):\n"
        "    def __init__(self):\n"
        "        raise RuntimeError('no disk')\n"
        "class Wrong(TextClassification):\n"
        "    def __init__(self, low: int = 1):\n"
        "        raise ValueError('low is too low')\n"
    )
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(InputError, match=r"^task\.text: is bad\.$"):
        instantiate(parser, parse(parser, ["--task", "raising_tasks.Refusing"]))
    with pytest.raises(RuntimeError, match=r"^no disk$"):
        instantiate(parser, parse(parser, ["--task", "raising_tasks.Failing"]))
    with pytest.raises(InputError, match=r"^task: low is too low$"):
        instantiate(parser, parse(parser, ["--task", "raising_tasks.Wrong"]))


def test_a_class_s_missing_parameter_is_told_and_may_come_from_another_file(parser, folder, monkeypatch):
    (folder / "needy_tasks.py").write_text(
        "from lit_hf.tasks import TextClassification\n"
        "class Needy(TextClassification):\n"
        "    def __init__(self, first: str, second: int, third: float = 0.5):\n"
        "        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(folder)
    needy = "task: {class_path: needy_tasks.Needy, init_args: {second: 2}}\n"
    assert problems(parser, needy) == [("task (a.yaml:1)", "Needy needs 'first': text.", "")]
    config = parse(parser, write(needy, "task: {init_args: {first: one}}\n"))
    assert config.task.init_args.as_dict() == {"first": "one", "second": 2, "third": 0.5}


def test_a_later_list_replaces_the_earlier_one(parser):
    early = "trainer: {callbacks: [TQDMProgressBar, {class_path: EarlyStopping, init_args: {patience: 2}}]}\n"
    assert problems(parser, TASK + early)[0][1] == "EarlyStopping needs 'monitor': text."
    config = parse(parser, write(TASK + early, "trainer: {callbacks: [TQDMProgressBar]}\n"))
    assert [callback.class_path.rpartition(".")[2] for callback in config.trainer.callbacks] == ["TQDMProgressBar"]


def test_what_only_jsonargparse_finds_is_told_in_one_sentence_too():
    parser = ArgumentParser()
    parser.add_subclass_arguments(Task, "task")
    with pytest.raises(InputError) as caught:
        parse(parser, ["--task", "os.getcwd"])
    (problem,) = caught.value.problems
    assert problem.where == "task"
    assert "os.getcwd" in problem.what and "\n" not in problem.what


def test_jsonargparse_itself_reads_no_remote_config(parser):
    with fsspec.open("memory://a.yaml", "w") as file:
        file.write(TASK)
    parse(parser, write(TASK))
    with pytest.raises(ArgumentError):
        parser.parse_args(["-c", "memory://a.yaml"])


def test_sources_may_be_a_list(parser):
    one, two = parse(parser, write(LISTED)).data.source

    assert (one.train, one.limit, one.weight) == ("a.jsonl", {"train": 3}, 1.0)
    assert (two.path, two.columns, two.weight) == ("org/rows", {"sentence": "translation.en"}, 2.0)


def test_a_list_of_sources_is_printed_so_that_it_parses_to_the_same(parser):
    config = parse(parser, write(LISTED))
    again = parse(parser, write(parser.dump(config, skip_unset=False)))

    assert again.data == config.data
    assert [type(source).__name__ for source in instantiate(parser, again).data.source] == ["Source", "Source"]


def test_sources_may_be_in_files_of_their_own(parser):
    Path("one.yaml").write_text("train: a.jsonl\n", encoding="utf-8")
    Path("two.yaml").write_text("path: org/rows\n", encoding="utf-8")

    config = parse(parser, write(TASK + "data: {source: [one.yaml, two.yaml]}\n"))

    assert [(source.train, source.path) for source in config.data.source] == [("a.jsonl", None), (None, "org/rows")]
    assert [source.train for source in instantiate(parser, config).data.source] == ["a.jsonl", None]


def test_a_source_takes_the_place_of_a_list(parser):
    config = parse(parser, write(LISTED, "data: {source: {test: other.jsonl}}\n"))

    assert (config.data.source.test, config.data.source.train, config.data.source.path) == ("other.jsonl", None, None)


def test_sources_may_be_a_list_on_the_command_line(parser):
    config = parse(parser, [*write(TASK), "--data.source", "[{train: a.jsonl}, {path: org/rows}]"])

    assert [source.train for source in config.data.source] == ["a.jsonl", None]


def test_keys_of_one_source_are_merged_over_files_and_options(parser):
    config = parse(
        parser,
        [*write(TASK + "data: {source: {train: a.jsonl}}\n", "data: {source: {limit: 3}}\n"), "--data.source.weight=2"],
    )

    assert (config.data.source.train, config.data.source.limit, config.data.source.weight) == ("a.jsonl", 3, 2.0)
