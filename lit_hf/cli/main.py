"""The command `lit-hf`: finds the verb, hands it its options, and tells failures in plain words.

Nothing heavy is imported before the verb is known, so that help, version and a mistyped verb answer at once.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lit_hf import __version__
from lit_hf.cli import messages
from lit_hf.cli.verbs import VERBS
from lit_hf.errors import InputError, LitHFError, Problem, is_out_of_memory, without_secrets

MODULES = {"validate": "evaluate", "test": "evaluate"}
"""Where a verb is, if not in the module of its name."""

USAGE = f"""\
usage: lit-hf <verb> [options]

Fine-tune Hugging Face models with Lightning, from one YAML file.

verbs:
{chr(10).join(f"  {verb:<11} {purpose}" for verb, purpose in VERBS.items())}

options:
  -h, --help  Show this help; `lit-hf <verb> --help` shows a verb's own.
  --version   Show the version.
  --debug     Show tracebacks and the libraries' own messages; goes with every verb.

exit codes:
  0    done
  1    an unexpected failure
  2    bad input: config, options, data; nothing was started
  3    training failed, and the last good checkpoint is kept, and named; or a push was cut short: run it again
  75   fit was told to end (SIGTERM); the same command goes on from the last checkpoint
  130  interrupted (Ctrl-C); the same command goes on from the last checkpoint

examples:
  lit-hf fit --config configs/quickstart.yaml
  lit-hf fit -c task.yaml -c lora.yaml --trainer.max_steps 100
  lit-hf predict --run runs/quickstart --text "some text"
"""

OUT_OF_MEMORY_CURE = (
    "Lower data.batch_size (and raise trainer.accumulate_grad_batches by as much), or data.max_length, "
    "or train an adapter (model.adapter)."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lit-hf`.

    Args:
        argv: The arguments after the command's name; those of the process if left out.

    Returns:
        The exit code, as `USAGE` lists them.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = _dispatch(arguments, debug)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader of a pipe (`lit-hf env | head`) is gone. Python would flush stdout once more at exit, and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        return _tell("interrupted.", 130, error, debug)
    except LitHFError as error:
        return _tell(str(error), error.exit_code, error, debug)
    except Exception as error:
        hint = "" if debug else "\nRun again with --debug for the traceback."
        return _tell(_describe(error) + hint, 1, error, debug)


def _dispatch(arguments: list[str], debug: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] == "--version":
        print(f"lit-hf {__version__}")
        return 0
    verb, options = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise InputError(_unknown_verb(verb))
    messages.install(debug)
    sys.path.append(str(Path.cwd()))  # so that a config can name classes of the user's own project
    return _runner(verb)(options) or 0


def _runner(verb: str) -> Callable[[list[str]], int | None]:
    """Import what runs the verb; only now, because it imports torch and Lightning."""
    with _uncollected():
        module = importlib.import_module(f"lit_hf.cli.{MODULES.get(verb, verb)}")
    return partial(module.run, verb) if verb in MODULES else module.run


@contextmanager
def _uncollected() -> Iterator[None]:
    """Have the garbage collector leave alone what is made here: modules, none of which becomes garbage.

    Looking through all of them again and again would be a sixth of the time of the imports.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def _unknown_verb(word: str) -> Problem:
    if word.startswith("-"):
        return Problem("", "the verb is missing; it comes first.", f"For example: lit-hf fit {word} ...")
    close = difflib.get_close_matches(word, VERBS, n=1, cutoff=0.5)
    hint = f"Did you mean 'lit-hf {close[0]}'? " if close else ""
    return Problem("", f"there is no verb {word!r}.", f"{hint}The verbs are {', '.join(VERBS)}.")


def _tell(text: str, code: int, error: BaseException, debug: bool) -> int:
    text = without_secrets(text)
    if debug:
        traceback.print_exception(error)
    messages.print_error(text)
    return code


def _describe(error: Exception) -> str:
    """Return an unforeseen error as one line, with a cure where one is known."""
    lines = str(error).strip().splitlines()
    line = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    if is_out_of_memory(error):
        return f"{line}\n    {OUT_OF_MEMORY_CURE}"
    return line
