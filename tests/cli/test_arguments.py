import pytest

from lit_hf.cli.arguments import Argument, read_arguments, with_run_config
from lit_hf.run import RunFolder


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-c", "a.yaml", "--config=b.yaml", "-cc.yaml"], [("config", n) for n in ("a.yaml", "b.yaml", "c.yaml")]),
        (["--trainer.max_steps", "-1", "--a.b=x=y"], [("trainer.max_steps", "-1"), ("a.b", "x=y")]),
        (["--x", ""], [("x", "")]),
        (["--print_config", "--x=1"], [("x", "1")]),
        (["--model.adapter.help", "--x=1"], [("model.adapter.help", ""), ("x", "1")]),
        (["--model.adapter.help", "peft.LoraConfig"], [("model.adapter.help", "peft.LoraConfig")]),
    ],
)
def test_options_are_read_in_their_order(argv, expected):
    arguments, problems = read_arguments(argv)
    assert [(argument.key, argument.text) for argument in arguments] == expected
    assert problems == []


def test_an_appended_value_is_told_from_a_set_one():
    assert read_arguments(["--x+=1", "--x", "2"])[0] == [Argument("x", "1", append=True), Argument("x", "2")]


def test_words_that_are_no_options_and_missing_values_are_told():
    arguments, problems = read_arguments(["stray", "--x", "--y", "1", "--z"])
    assert arguments == [Argument("y", "1")]
    assert [problem[:2] for problem in problems] == [
        ("stray", "is not an option."),
        ("x", "the value is missing."),
        ("z", "the value is missing."),
    ]


@pytest.mark.parametrize(
    "arguments", [["runs/a", "--x", "1"], ["--run", "runs/a", "--x", "1"], ["--x", "1", "--run=runs/a"]]
)
def test_a_run_folder_stands_for_its_config(folder, arguments):
    run = RunFolder("runs/a")
    run.create()
    run.write_config({"name": "a"})
    assert with_run_config(arguments) == [
        "-c", "runs/a/config.yaml", "--x", "1", "--output_dir", str((folder / "runs").resolve()),
    ]  # fmt: skip


def test_a_moved_run_is_named_as_its_folder(folder):
    run = RunFolder("runs/b")
    run.create()
    run.write_config({"name": "a"})
    assert with_run_config(["runs/b"])[-2:] == ["--name", "b"]


def test_options_without_a_run_stay_as_they_are():
    assert with_run_config(["-c", "a.yaml", "--x", "1"]) == ["-c", "a.yaml", "--x", "1"]
