"""Run programs that time models, and say what went wrong with one."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

from obc_onnx.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def run_program(
    arguments: Sequence[str], doing: str, reason: Callable[[str], str] | None = None
) -> str:
    """Run a program to its end.

    Args:
        arguments: The program and what it is given.
        doing: What it does, as in "cannot time the model".
        reason: Picks out of what it printed why it failed; its last line without.
    Returns:
        What it wrote on stdout.
    Raises:
        EngineError: It is not there, fails, or is killed.
    """
    program = arguments[0]
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise EngineError(
            f"'{program}' cannot be run ({error.strerror}): install it, or give its path with "
            f"`EngineOptions.command`"
        ) from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise EngineError(
            f"'{program}' cannot {doing}: {name} ended it, by hand or since memory ran out"
        )
    if done.returncode > 0:
        why = (reason or last_line)(f"{done.stdout}\n{done.stderr}")
        raise EngineError(f"'{program}' cannot {doing} (exit code {done.returncode}): {why}")
    return done.stdout


def last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
