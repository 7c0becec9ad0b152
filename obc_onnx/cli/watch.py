"""Tell of a death that Python cannot catch, in one sentence: that of the whole process.

A malformed model may make onnx or ONNX Runtime read where nothing is, and a large one may fill the
memory. So a second process waits for the end of the first. It is forked before anything is loaded,
which takes about a millisecond, and it does nothing else: signals, exit codes and what is printed
are those of the first one. The stack comes from Python's `faulthandler`.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import tempfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

_GOOD_END = b"."
_CAUSE = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_CURRENT = "Current thread"
"""Where the thread that died begins: others may come before."""
_CALLER = re.compile(r'^  File "(?:.*site-packages/)?(.+)", line \d+ in (\S+)$', re.MULTILINE)
"""The innermost function of Python, and its file, without the folder of packages."""
_LEFT = "what was to be written is whole or not there"


@contextmanager
def watched() -> Iterator[None]:
    """Let a second process say why this one has ended, where it ends in the block by a signal.

    Windows cannot fork. Who has turned `faulthandler` on already gets what it says instead.
    """
    if not hasattr(os, "fork") or faulthandler.is_enabled():
        yield
        return
    ends, goes_on = os.pipe()
    with tempfile.TemporaryFile() as stack:
        if os.fork() == 0:
            os.close(goes_on)
            _wait(ends, stack)
        os.close(ends)
        faulthandler.enable(stack)
        owner = os.getpid()
        try:
            yield
        finally:
            faulthandler.disable()
            if os.getpid() == owner:
                os.write(goes_on, _GOOD_END)
            os.close(goes_on)


def _wait(ends: int, stack: IO[bytes]) -> NoReturn:
    """Wait until the other process closes its end of a pipe, and say why if it does not itself."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)  # whoever reads what the command prints is not to wait for this process
    if os.read(ends, 1) != _GOOD_END:
        stack.seek(0)
        os.write(2, f"Error: {sentence(stack.read().decode(errors='replace'))}\n".encode())
    os._exit(0)


def sentence(stack: str) -> str:
    """Say why a process has ended.

    Args:
        stack: What `faulthandler` has written; nothing, where the signal was none of a fault.
    """
    cause, caller = _CAUSE.search(stack), _CALLER.search(stack, max(stack.find(_CURRENT), 0))
    if cause is None or caller is None:
        return f"the process was killed, by hand or since memory ran out; {_LEFT}"
    file, function = caller.groups()
    return (
        f"a library that {function} in {file} has called ended the process ({cause[1]}): the model "
        f"may be malformed, or the library has a fault; {_LEFT}"
    )
