"""What went wrong, where, and how to mend it: the only error types that users see."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple

_SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|wandb_v\d_\w{20,}|gh[pous]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,})"
    r"|(?<=://)([^/\s@:]*:[^/\s@]+|[^/\s@:]{20,})@"
)
"""Tokens of the Hub, of W&B, of GitHub and of those who copy OpenAI's; logins in URLs, with a password or like one."""


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        where: The config key, or the file and row.
        what: What is wrong there, in one sentence.
        cure: What to do about it; empty where the sentence already says it.
    """

    where: str
    what: str
    cure: str = ""

    def __str__(self) -> str:
        """Return the problem as one or two lines, the cure indented below."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n    {self.cure}" if self.cure else head


class LitHFError(Exception):
    """A failure that is told to the user without a traceback.

    Args:
        problems: Everything that is wrong; all of it is printed.

    Attributes:
        exit_code: The exit code of the command that ends with this error.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        """Return one problem plainly, several as a numbered list."""
        if len(self.problems) == 1:
            return str(self.problems[0])
        numbered = (f"{number}. {problem}" for number, problem in enumerate(self.problems, start=1))
        return "\n".join([f"{len(self.problems)} problems:", *numbered])


class InputError(LitHFError):
    """The config, the data or the command line is wrong; nothing was started."""

    exit_code = 2


class TrainingError(LitHFError):
    """Training had to stop; what was written before is kept."""

    exit_code = 3


class UploadError(LitHFError):
    """An upload was cut short; the same command goes on with what is not there yet."""

    exit_code = 3


class Preempted(LitHFError):
    """The process was told to end; the same command goes on from the last checkpoint."""

    exit_code = 75


def raise_problems(problems: Iterable[Problem]) -> None:
    """Raise all problems as one error, or do nothing when there is none.

    Raises:
        InputError: If there is at least one problem.
    """
    if problems := tuple(problems):
        raise InputError(*problems)


def collect(*parts: Callable[[], Iterable[Problem] | None]) -> list[Problem]:
    """Return the problems that several checks find, each once.

    Args:
        parts: Each returns the problems that it finds, or raises them as an InputError; all of them are called.
    """
    problems: dict[Problem, None] = {}
    for part in parts:
        try:
            found = tuple(part() or ())
        except InputError as error:
            found = error.problems
        problems |= dict.fromkeys(found)
    return list(problems)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a cure for a name that is not valid: the nearest valid one first, then the rest.

    >>> nearest("tokn", ["label", "token"])
    "Did you mean 'token'? There is: label, token."
    """
    names = sorted(map(str, valid))
    if not names:
        return "There is none."
    listed = f"There is: {', '.join(names)}."
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}? {listed}" if close else listed


_ALLOCATORS = ("DefaultCPUAllocator: can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What errors without a type of their own say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory was asked for that there is not, of a device or of the host.

    Torch's own error is told by its name, as torch need not be imported here; its CPU allocator raises no type of its
    own.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _ALLOCATORS)


def environment_secrets() -> list[str]:
    """Return the values of environment variables whose name says that they are secret; a path to one is not."""
    return [
        value for name, value in os.environ.items() if len(value) >= 8 and value[0] != "/" and _SECRET_NAME.search(name)
    ]


def holds_secret(text: str) -> bool:
    """Say whether something stands in a text that `without_secrets` stars out."""
    return bool(_SECRET_TEXT.search(text)) or any(secret in text for secret in environment_secrets())


def without_secrets(text: str) -> str:
    """Return a text with what looks like a secret starred out.

    Secrets are the values of environment variables whose name says so, tokens of known services, and logins in URLs.
    """
    for value in environment_secrets():
        text = text.replace(value, "***")
    return _SECRET_TEXT.sub("***", text)
