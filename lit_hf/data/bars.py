"""The progress bars of `datasets`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import datasets


def bars_only_at_a_terminal() -> AbstractContextManager[None]:
    """Keep the bars out of a cluster's log."""
    return nullcontext() if sys.stderr.isatty() else no_bars()


@contextmanager
def no_bars() -> Iterator[None]:
    """Show none."""
    were_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
