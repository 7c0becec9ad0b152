"""What a person who watches is shown, and what a log is told."""

from __future__ import annotations

import io
import sys
import time

import pytest

from obc_onnx import progress
from obc_onnx.coupling.analysis import Clock


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make waits short."""
    monkeypatch.setattr(progress, "_QUIET_SECONDS", 0.05)
    monkeypatch.setattr(progress, "_QUIET_SECONDS_UNWATCHED", 0.05)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.1)


def _work(seconds: float) -> None:
    for _ in progress.track(range(20), "counting"):
        time.sleep(seconds / 20)


@pytest.mark.usefixtures("hasty")
def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    _work(1.0)
    lines = written.getvalue().splitlines()
    assert 2 <= len(lines) <= 11
    assert all(line.startswith("counting: ") and " of 20, " in line for line in lines)
    assert "\r" not in written.getvalue()


@pytest.mark.usefixtures("hasty")
def test_a_person_has_a_bar_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    written = _Terminal()
    monkeypatch.setattr(sys, "stderr", written)
    _work(0.5)
    assert "counting:" in written.getvalue()
    assert "\n" not in written.getvalue()
    assert written.getvalue().endswith("\r")


@pytest.mark.parametrize("watched", [False, True])
def test_what_is_over_soon_shows_nothing(monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    written = _Terminal() if watched else io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with Clock()("measuring"):
        _work(0.1)
    assert written.getvalue().strip() == ""


@pytest.mark.usefixtures("hasty")
def test_a_stage_without_a_bar_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    written, clock = io.StringIO(), Clock()
    monkeypatch.setattr(sys, "stderr", written)
    with clock("measuring"):
        time.sleep(0.3)
    assert written.getvalue() == "measuring ...\n"
    assert clock.seconds["measuring"] >= 0.3
    with pytest.raises(ZeroDivisionError), clock("failing"):
        raise ZeroDivisionError
    time.sleep(0.2)
    assert written.getvalue() == "measuring ...\n"


@pytest.mark.usefixtures("hasty")
def test_bars_within_bars_are_lines_of_a_log_too(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    with progress.Progress("outer", 2) as outer:
        for _ in range(2):
            _work(0.5)
            outer.advance()
    lines = written.getvalue().splitlines()
    assert {line.partition(":")[0] for line in lines} == {"outer", "counting"}
    assert "\x1b" not in written.getvalue()
