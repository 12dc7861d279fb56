"""What the user sees on stderr: our own lines, real warnings, and nothing that libraries merely chat about."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings

RED, YELLOW, RESET = "\033[31m", "\033[33m", "\033[0m"

CHATTY_LOGGERS = (
    "bitsandbytes.autograd._functions",
    "bitsandbytes.backends.cpu.ops",
    "torch.utils._pytree",
    "torchao",
    "torchao.kernel.intmm",
)
"""Their warnings are about optional speed-ups that the user did not ask for, and about types that they turn over."""

NEEDLESS_WARNINGS = (
    r".*does not have many workers.*",
    r"Total length of `list` across ranks is zero.*",  # ours says that there is no validation split
    r".*litlogger.*",
    r"The number of training batches .* is smaller than the logging interval.*",
    r"Checkpoint directory .* exists and is not empty.*",
)

LIBRARIES = "lit_hf.libraries"
"""The logger of the warnings that libraries give by `warnings.warn`."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def install(debug: bool = False) -> None:
    """Show messages plainly on stderr; call it before anything heavy is imported.

    Args:
        debug: Let the libraries say all they want to.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainFormatter(coloured(sys.stderr)))
    logging.getLogger("lit_hf").setLevel(logging.INFO)
    root = logging.getLogger()
    root.handlers = [old for old in root.handlers if not isinstance(old.formatter, _PlainFormatter)]
    root.addHandler(handler)
    for library in ("lightning", "huggingface_hub"):
        _take_over(library)
    if not debug:
        handler.addFilter(_wanted)
        _quieten_libraries()


def coloured(stream: object) -> bool:
    """Say whether a stream is a terminal that wants colours."""
    return getattr(stream, "isatty", lambda: False)() and "NO_COLOR" not in os.environ


def print_error(text: str) -> None:
    """Print why the command failed."""
    prefix = f"{RED}error:{RESET}" if coloured(sys.stderr) else "error:"
    print(f"{prefix} {text}", file=sys.stderr)


def _take_over(name: str) -> None:
    """Leave a library's messages to the root's handler, though the library adds one of its own when it is imported."""
    previous = logging.getLoggerClass()
    logging.setLoggerClass(_LoggerWithoutHandlers)
    try:
        logging.getLogger(name).handlers.clear()
    finally:
        logging.setLoggerClass(previous)


class _LoggerWithoutHandlers(logging.Logger):
    def addHandler(self, hdlr: logging.Handler) -> None:
        """Add nothing."""


class _PlainFormatter(logging.Formatter):
    """The message alone, and "warning: " or "error: " before one that is more than a note."""

    def __init__(self, colour: bool) -> None:
        super().__init__()
        self._warning = f"{YELLOW}warning:{RESET} " if colour else "warning: "
        self._error = f"{RED}error:{RESET} " if colour else "error: "

    def format(self, record: logging.LogRecord) -> str:
        if record.levelno < logging.WARNING:
            return super().format(record)
        return (self._error if record.levelno >= logging.ERROR else self._warning) + super().format(record)


def _wanted(record: logging.LogRecord) -> bool:
    """Let pass our own notes and warnings, once for all ranks, and other people's warnings."""
    if record.name.partition(".")[0] == "lit_hf" and record.name != LIBRARIES:
        return _rank() == 0
    return record.levelno >= logging.WARNING


def _rank() -> int:
    return next((int(os.environ[name]) for name in RANK_VARIABLES if name in os.environ), 0)


class _OneLineOfRetries(logging.Filter):
    """Says once, in our words, that the Hub is asked again, where its client tells of each time in two lines."""

    def __init__(self) -> None:
        super().__init__()
        self._is_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if failed := re.search(r"^(?:HTTP Error (\d+)|.*) thrown while requesting ", text, re.DOTALL):
            if not self._is_told:
                why = f"answers with status {failed[1]}" if failed[1] else "cannot be reached"
                logging.getLogger("lit_hf").warning("the Hub %s; it is asked again, for some seconds.", why)
            self._is_told = True
        return not (failed or re.match(r"Retrying in|Rate limited", text))


def _quieten_libraries() -> None:
    quiet = {
        "TOKENIZERS_PARALLELISM": "true",  # or it warns of every loader worker
        "TRANSFORMERS_VERBOSITY": "error",
        "DATASETS_VERBOSITY": "error",
        "POSSIBLE_USER_WARNINGS": "off",  # Lightning's advice
    }
    if not sys.stderr.isatty():
        quiet |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    for name in CHATTY_LOGGERS:  # some of them have handlers of their own
        logging.getLogger(name).setLevel(logging.ERROR)
    retries = logging.getLogger("huggingface_hub.utils._http")
    retries.filters = [_OneLineOfRetries()]
    for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
        warnings.simplefilter("ignore", category)
    for message in NEEDLESS_WARNINGS:
        warnings.filterwarnings("ignore", message)
    warnings.showwarning = _show_warning


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    logging.getLogger(LIBRARIES).warning("%s", " ".join(str(message).split()))
