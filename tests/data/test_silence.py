from __future__ import annotations

import sys

import datasets
import pytest

from lit_hf.data.silence import bars_only_at_a_terminal, no_bars, no_log


@pytest.mark.parametrize("were_on", [True, False])
def test_bars_are_off_and_then_as_they_were(were_on: bool) -> None:
    switch = datasets.enable_progress_bars if were_on else datasets.disable_progress_bars
    before = datasets.is_progress_bar_enabled()
    switch()
    try:
        with pytest.raises(ValueError), no_bars():
            assert not datasets.is_progress_bar_enabled()
            raise ValueError
        assert datasets.is_progress_bar_enabled() is were_on
    finally:
        (datasets.enable_progress_bars if before else datasets.disable_progress_bars)()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars_are_shown_at_a_terminal_only(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    before = datasets.is_progress_bar_enabled()

    with bars_only_at_a_terminal():
        assert datasets.is_progress_bar_enabled() is (before and is_terminal)

    assert datasets.is_progress_bar_enabled() is before


def test_the_log_is_as_loud_again_as_before() -> None:
    logging = datasets.utils.logging
    before = logging.get_verbosity()

    with no_log():
        assert logging.get_verbosity() == logging.CRITICAL

    assert logging.get_verbosity() == before != logging.CRITICAL
