"""Malformed models told from bugs of ours, by asking ONNX Runtime.

The rules of operators take a model at its word: that a weight of an LSTM has three axes, say. Where
one fails on a model, either the model breaks the standard, or the rule does. ONNX Runtime knows:
what it refuses is told in a sentence, and what it runs is a bug, which gives a traceback.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from obc_onnx.errors import InvariantError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError),
    *(TypeError, ValueError),
)
"""How Python fails on what a model does not say as it should."""


@contextmanager
def faults_told(why_refused: Callable[[], str | None]) -> Iterator[None]:
    """Turn faults into a `ModelError` where the model is to blame.

    Args:
        why_refused: Says why ONNX Runtime refuses the model, None where it does not.
    Raises:
        ModelError: A fault came up, and ONNX Runtime refuses the model.
    """
    try:
        yield
    except (*FAULTS, InvariantError) as error:
        reason = why_refused()
        if reason is None:
            raise
        raise ModelError(f"the model is malformed: {reason}") from error
