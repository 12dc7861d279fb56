from __future__ import annotations

import pytest

from lit_hf.cli.blocks import Checker
from lit_hf.cli.config import parse
from lit_hf.cli.reading import Value, read_file, read_option
from lit_hf.cli.schema import read_options
from tests.cli.configs import LISTED, TASK, problems, write


@pytest.fixture(autouse=True)
def in_empty_folder(folder):
    return folder


@pytest.mark.parametrize(
    ("text", "where", "what", "cure"),
    [
        ("trainer: {max_epochs: foo}", "trainer.max_epochs (a.yaml:2)", "a whole number or null, found 'foo'", ""),
        ("trainer: {max_epochs: 2.5}", "trainer.max_epochs (a.yaml:2)", "a whole number or null, found 2.5", ""),
        ("trainer: {max_epochs: true}", "trainer.max_epochs (a.yaml:2)", "a whole number or null, found true", ""),
        ("trainer: {max_epochs: [1, 2]}", "trainer.max_epochs (a.yaml:2)", "a whole number or null, found [1, 2]", ""),
        ("data: {batch_size: null}", "data.batch_size (a.yaml:2)", "a whole number, found null", ""),
        ("data: {source: {validation_share: a}}", "data.source.validation_share (a.yaml:2)", "a number, found 'a'", ""),
        ("merge: maybe", "merge (a.yaml:2)", "true or false, found 'maybe'", ""),
        ("name: 2024", "name (a.yaml:2)", "text or null, found 2024", 'Put it in quotes: "2024".'),
        ("tracker: wandbb", "tracker (a.yaml:2)", "one of csv, tensorboard, wandb, found 'wandbb'", "'wandb'?"),
        (
            "data: {source: {limit: {train: few}}}",
            "data.source.limit (a.yaml:2)",
            "a whole number, a mapping (name: a whole number) or null, found {train: few}",
            "",
        ),
        (
            "model: {optimizer: {init_args: {lr: fast}}}",
            "model.optimizer.init_args.lr (a.yaml:2)",
            "a number, found 'fast'",
            "",
        ),
        (
            "model: {adapter: {class_path: peft.LoraConfig, init_args: {r: x}}}",
            "model.adapter.init_args.r (a.yaml:2)",
            "a whole number, found 'x'",
            "",
        ),
        ("model: {attention: {a: b}}", "model.attention (a.yaml:2)", "text or null, found {a: b}", ""),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(parser, text, where, what, cure):
    ((found_where, found_what, found_cure),) = problems(parser, TASK + text + "\n")
    assert (found_where, found_what) == (where, f"expected {what}.")
    assert found_cure.endswith(cure) and bool(found_cure) == bool(cure)


@pytest.mark.parametrize(
    ("text", "where", "what", "cure"),
    [
        ("batch_size: 3", "batch_size (a.yaml:2)", "there is no such key.", "Did you mean 'data.batch_size'?"),
        ("model: {lr: 3}", "model.lr (a.yaml:2)", "there is no such key.", None),
        ("data:\n", "data (a.yaml:2)", "is empty.", "Indent the keys that belong to it, or remove it."),
        ("data: [1]", "data (a.yaml:2)", "expected a block of keys, found [1].", ""),
        (
            "data: {checkpoint: bert}",
            "data.checkpoint (a.yaml:2)",
            "always follows model.checkpoint.",
            "Set model.checkpoint instead.",
        ),
        (
            "data: {task: TextClassification}",
            "data.task (a.yaml:2)",
            "always follows task.",
            "Set task instead.",
        ),
        (
            "trainer.max_epoch: 3",
            "trainer.max_epoch (a.yaml:2)",
            "there is no such key.",
            "Did you mean 'max_epochs'?",
        ),
        (
            "model: {optimizer: {class_path: torch.optim.AdamW, lr: 3}}",
            "model.optimizer.lr (a.yaml:2)",
            "does not belong here.",
            "Put it under init_args.",
        ),
        (
            "model: {adapter: {init_args: {r: 3}}}",
            "model.adapter (a.yaml:2)",
            "class_path is missing.",
            "Name the class: model.adapter.class_path.",
        ),
        (
            "model: {adapter: {class_path: peft.LoRAConfig}}",
            "model.adapter (a.yaml:2)",
            "peft has no 'LoRAConfig'.",
            "Did you mean 'LoraConfig'?",
        ),
        (
            "model: {adapter: {class_path: pefft.LoraConfig}}",
            "model.adapter (a.yaml:2)",
            "pefft.LoraConfig cannot be imported: there is no module 'pefft'.",
            "Did you mean 'LoraConfig'?",
        ),
        (
            "model: {optimizer: {class_path: torch.nn.Linear, init_args: {lr: 1}}}",
            "model.optimizer (a.yaml:2)",
            "torch.nn.Linear is not a Optimizer.",
            None,
        ),
        (
            "trainer: {callbacks: EarlyStopping}",
            "trainer.callbacks (a.yaml:2)",
            "EarlyStopping needs 'monitor': text.",
            "",
        ),
        (
            "data: {tokenizer: {train: {vocab: 3}}}",
            "data.tokenizer.train.vocab (a.yaml:2)",
            "there is no such key.",
            None,
        ),
    ],
)
def test_a_wrong_key_or_class_is_told_with_its_cure(parser, text, where, what, cure):
    ((found_where, found_what, found_cure),) = problems(parser, TASK + text + "\n")
    assert (found_where, found_what) == (where, what)
    assert cure is None or found_cure == cure


def test_another_class_drops_the_parameters_it_does_not_take_and_says_so(parser, caplog):
    files = (
        TASK + "model: {optimizer: {class_path: torch.optim.SGD, init_args: {momentum: 0.5, lr: 0.2}}}\n",
        "model: {optimizer: {class_path: torch.optim.AdamW, init_args: {weight_decay: 0.3}}}\n",
    )
    with caplog.at_level("INFO", "lit_hf"):
        config = parse(parser, write(*files))
    assert config.model.optimizer.class_path == "torch.optim.AdamW"
    assert (config.model.optimizer.init_args.lr, config.model.optimizer.init_args.weight_decay) == (0.2, 0.3)
    assert "momentum" not in config.model.optimizer.init_args
    assert caplog.messages == [
        "model.optimizer: torch.optim.AdamW does not take momentum of the earlier class; left out."
    ]


def test_a_parameter_of_the_earlier_class_is_wrong_in_the_later_block(parser):
    (problem,) = problems(
        parser,
        TASK + "model: {optimizer: {class_path: torch.optim.SGD, init_args: {momentum: 0.5}}}\n",
        "model: {optimizer: {class_path: torch.optim.AdamW, init_args: {momentum: 0.3}}}\n",
    )
    assert problem[0] == "model.optimizer.init_args.momentum (b.yaml:1)"


def test_all_problems_inside_of_a_list_are_told_with_their_lines(parser):
    text = (
        TASK + "data:\n  mixing: interlave\n  source:\n  - trian: a.jsonl\n  - path: [3]\n    columns: text\n"
        "    weight: much\n  - a.jsonl\n"
    )

    found = problems(parser, text)

    assert [(where, what) for where, what, _ in found] == [
        ("data.mixing (a.yaml:3)", "expected one of concatenate, interleave, found 'interlave'."),
        ("data.source[0].trian (a.yaml:5)", "there is no such key."),
        ("data.source[1].path (a.yaml:6)", "expected text or null, found [3]."),
        ("data.source[1].columns (a.yaml:7)", "expected a mapping (name: text) or null, found 'text'."),
        ("data.source[1].weight (a.yaml:8)", "expected a number, found 'much'."),
        ("data.source[2] (a.yaml:9)", "expected a block of keys, found 'a.jsonl'."),
    ]
    assert found[1][2].startswith("Did you mean 'train'? There is: columns, ")


def test_a_list_is_not_filled_up_with_what_was_given_before(parser):
    single = TASK + "data: {source: {path: org/rows, limit: 3}}\n"

    for files in ((single, LISTED), (LISTED, LISTED)):
        ((where, what, _),) = problems(parser, *files)
        assert (where, what) == (
            "data.source (b.yaml:4)",
            "there is a list here, but other values were given before.",
        )


def test_a_single_key_below_a_list_is_refused(parser):
    ((where, what, _),) = problems(parser, LISTED, options=["--data.source.limit", "7"])

    assert (where, what) == ("data.source.limit", "data.source is a list, so it has no 'limit'.")


def test_a_checker_remembers_what_files_and_options_gave(parser, folder):
    (folder / "a.yaml").write_text("task: TextClassification\ndata: {batch_size: 8}\n")
    checker = Checker(read_options(parser))
    checker.check_file(read_file("a.yaml")[0])
    checker.check_option("trainer.max_steps", read_option("10"))
    checker.check_option("task.text", read_option("review"))
    assert checker.given == {"task", "data.batch_size", "trainer.max_steps", "task.init_args.text"}
    assert (checker.problems, checker.notes) == ([], [])


def test_classes_are_held_against_their_parameters_only_when_all_is_read(parser):
    checker = Checker(read_options(parser))
    checker.check_option("trainer.callbacks", read_option("EarlyStopping"))
    assert checker.problems == []
    checker.check_required_parameters()
    (problem,) = checker.problems
    assert (problem.where, problem.what) == ("trainer.callbacks", "EarlyStopping needs 'monitor': text.")
    checker.check_option("trainer.callbacks.monitor", read_option("val/loss"))
    assert "trainer.callbacks.init_args.monitor" in checker.given


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("antigravity.Fly", "model.adapter", "antigravity.Fly is not imported"),
        ("peft.get_peft_config", "model.adapter", "peft.get_peft_config"),
    ],
)
def test_a_safe_checker_imports_only_what_is_admitted(parser, text, where, what):
    checker = Checker(read_options(parser), safe=True)
    checker.check_option("model.adapter", Value(text, text=text))
    assert [problem.where for problem in checker.problems] == [where]
    assert what in checker.problems[0].what
