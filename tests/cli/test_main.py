import subprocess
import sys

import pytest

from lit_hf import __version__
from lit_hf.cli.main import main
from lit_hf.cli.verbs import VERBS

HEAVY = ("torch", "lightning", "transformers", "datasets", "peft", "jsonargparse", "numpy")


@pytest.fixture(autouse=True)
def in_empty_folder(folder, messages_restored, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "lit_hf", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_the_module_and_its_exit_code_are_the_command():
    wrong = command("fitt", "--config", "x.yaml")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.splitlines() == [
        "error: there is no verb 'fitt'.",
        "    Did you mean 'lit-hf fit'? "
        "The verbs are fit, inspect, plan, validate, test, predict, export, push, checkpoints, env.",
    ]


def test_nothing_heavy_is_imported_before_a_verb_is_known():
    script = (
        "import sys\n"
        "from lit_hf.cli.main import main\n"
        "codes = [main(words) for words in ([], ['--help'], ['--version'], ['fitt'])]\n"
        f"print(codes, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 2] []"


def test_no_time_goes_into_collecting_garbage_while_a_verb_is_imported():
    script = (
        "import gc\n"
        "from lit_hf.cli import main\n"
        "collections = []\n"
        "gc.callbacks.append(lambda phase, info: collections.append(phase))\n"
        "main._runner('checkpoints')\n"
        "print(collections, gc.isenabled(), gc.get_freeze_count() > 10_000)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[] True True"


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["--help", "--debug"]])
def test_help_names_every_verb(arguments, capsys):
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: lit-hf <verb> [options]")
    assert [verb for verb in VERBS if f"\n  {verb} " not in shown] == []


def test_the_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-hf {__version__}\n"


def test_a_missing_verb_is_told(capsys):
    assert main(["-c", "task.yaml"]) == 2
    assert capsys.readouterr().err == (
        "error: the verb is missing; it comes first.\n    For example: lit-hf fit -c ...\n"
    )


def write_task(folder, body):
    (folder / "my_tasks.py").write_text(
        "from lit_hf.tasks import TextClassification\n"
        "class MyTask(TextClassification):\n"
        "    @property\n"
        "    def input_columns(self):\n"
        f"        {body}\n"
    )
    sys.modules.pop("my_tasks", None)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (
            "raise RuntimeError('first line\\nsecond line')",
            1,
            ["error: RuntimeError: first line", "Run again with --debug for the traceback."],
        ),
        (
            "raise MemoryError()",
            1,
            [
                "error: MemoryError",
                "    Lower data.batch_size (and raise trainer.accumulate_grad_batches by as much), or data.max_length, "
                "or train an adapter (model.adapter).",
                "Run again with --debug for the traceback.",
            ],
        ),
        (
            "import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried')",
            1,
            [
                "error: OutOfMemoryError: CUDA out of memory. Tried",
                "    Lower data.batch_size (and raise trainer.accumulate_grad_batches by as much), or data.max_length, "
                "or train an adapter (model.adapter).",
                "Run again with --debug for the traceback.",
            ],
        ),
        ("raise KeyboardInterrupt", 130, ["error: interrupted."]),
        (
            "from lit_hf.errors import Problem, TrainingError; raise TrainingError(Problem('loss', 'is NaN.', 'Why?'))",
            3,
            ["error: loss: is NaN.", "    Why?"],
        ),
    ],
)
def test_each_failure_has_its_words_and_its_exit_code(folder, capsys, body, code, said):
    write_task(folder, body)
    (folder / "rows.csv").write_text("text,label\na,b\n")
    files = ["--data.source.train", "rows.csv", "--data.source.validation", "rows.csv"]
    arguments = ["fit", "--task", "my_tasks.MyTask", *files, "--model.checkpoint", "none"]
    assert main(arguments) == code
    assert capsys.readouterr().err.splitlines() == said


def test_debug_shows_the_traceback_wherever_it_stands(folder, capsys):
    write_task(folder, "raise RuntimeError('broken')")
    (folder / "rows.csv").write_text("text,label\na,b\n")
    arguments = ["fit", "--debug", "--task", "my_tasks.MyTask", "--data.source.train", "rows.csv"]
    assert main(arguments) == 1
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last):" in shown
    assert "raise RuntimeError('broken')" in shown
    assert shown.endswith("error: RuntimeError: broken\n")


def test_a_config_error_of_a_verb_has_exit_code_2(capsys):
    assert main(["fit", "-c", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == "error: --config: there is no file nowhere.yaml."
