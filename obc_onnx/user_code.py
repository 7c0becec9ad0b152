"""Load functions that users write."""

from __future__ import annotations

import importlib.util
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obc_onnx.errors import RequestError, UserCodeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


_RAISED = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What Python and its libraries raise; errors of the user's own kind give a traceback."""


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Name the code of the user that is called, where it raises.

    Args:
        what: How messages call it.
    Raises:
        UserCodeError: It has raised; the message says in which line.
    """
    try:
        yield
    except _RAISED as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserCodeError(
            f"{what} raised {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        ) from error


def file_of(source: str | Path) -> Path | None:
    """Return the file that `FILE.py` or `FILE.py:NAME` names; None for what names no code."""
    file, separator, name = str(source).rpartition(":")
    if str(source).endswith(".py"):
        return Path(source)
    return Path(file) if separator and name.isidentifier() and file.endswith(".py") else None


def load_function(source: str) -> Callable[..., Any]:
    """Load a function from `FILE.py:FUNCTION`.

    Raises:
        RequestError: There is no such file or function, or the file cannot be run.
    """
    path, _, name = source.rpartition(":")
    if not path or not name:
        raise RequestError(f"'{source}' is not of the form FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise RequestError(f"there is no Python file '{path}'")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError) as error:
        raise RequestError(f"'{path}' cannot be run: {error}") from error
    function: Any = getattr(module, name, None)
    if not callable(function):
        raise RequestError(f"'{path}' has no function '{name}'")
    loaded: Callable[..., Any] = function
    return loaded
