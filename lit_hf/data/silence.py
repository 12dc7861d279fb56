"""Keeping `datasets` from telling what we tell better, or not at all."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import datasets


def bars_only_at_a_terminal() -> AbstractContextManager[None]:
    """Keep progress bars out of a cluster's log."""
    return nullcontext() if sys.stderr.isatty() else no_bars()


@contextmanager
def no_bars() -> Iterator[None]:
    """Show no progress bars."""
    were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


@contextmanager
def no_log() -> Iterator[None]:
    """Log no errors, which we report ourselves."""
    level = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(level)
