from __future__ import annotations

from pathlib import Path

import pytest

from lit_hf.cli.options import Parser, positive, run_folder
from lit_hf.errors import InputError


@pytest.fixture
def parser():
    parser = Parser("predict", "Predict.")
    parser.add_folder("folder")
    parser.add_argument("--batch_size", type=int)
    return parser


@pytest.mark.parametrize("argv", [["runs/x"], ["--run", "runs/x"], ["--run=runs/x"]])
def test_the_folder_is_given_by_place_or_name(parser, argv):
    assert parser.folder(parser.parse_args(argv)) == "runs/x"


@pytest.mark.parametrize(
    "argv", [[], ["a", "--run", "b"], ["--batch", "3", "a"], ["a", "--batch_size", "x"], ["a", "b"]]
)
def test_bad_options_fail_in_one_line(parser, argv):
    with pytest.raises(InputError) as error:
        parser.folder(parser.parse_args(argv))
    assert error.value.exit_code == 2
    (problem,) = error.value.problems
    assert problem.cure == "See lit-hf predict --help."
    assert "\n" not in problem.what


@pytest.mark.parametrize(("text", "reason"), [("0", "0 is not above 0"), ("-3", "-3 is not above 0"), ("x", "'x'")])
def test_a_number_that_is_not_above_0_is_told(text, reason):
    parser = Parser("inspect", "Inspect.")
    parser.add_argument("-n", type=positive)
    assert parser.parse_args(["-n", "7"]).n == 7
    with pytest.raises(InputError) as error:
        parser.parse_args(["-n", text])
    assert reason in error.value.problems[0].what


def test_the_config_names_the_run(tmp_path, parser):
    (tmp_path / "task.yaml").write_text("output_dir: somewhere\ndata: {batch_size: 3}\n")
    (tmp_path / "lora.yaml").write_text("model: {}\n")
    configs = [str(tmp_path / "task.yaml"), str(tmp_path / "lora.yaml")]
    assert run_folder(configs).path == Path("somewhere/task-lora")
    options = parser.parse_args(["-c", configs[0], "--config", configs[1]])
    assert parser.folder(options) == "somewhere/task-lora"

    (tmp_path / "lora.yaml").write_text("name: mine\n")
    assert run_folder(configs).path == Path("somewhere/mine")
    (tmp_path / "empty.yaml").touch()
    assert run_folder([tmp_path / "empty.yaml"]).path == Path("runs/empty")


@pytest.mark.parametrize("content", [None, b"a: [", b"- list\n", b"\xff\xfe"])
def test_a_config_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "task.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="the config cannot be read") as error:
        run_folder([path])
    assert error.value.problems[0].where == str(path)
