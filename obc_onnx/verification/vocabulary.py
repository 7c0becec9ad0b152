"""Checks of a smaller vocabulary, which compare with the original by numpy and by running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.errors import ModelError
from obc_onnx.graph.session import Session
from obc_onnx.verification.checks import Check

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.stripping.heads import Head

    Feed = Mapping[str, NDArray[Any]]
    Kept = Mapping[str, Mapping[int, NDArray[np.int64]]]


def check_rows(original: Graph, result: Graph, kept: Kept, merged: Mapping[str, str]) -> Check:
    """Check to the bit that what shrank is a slice of the original's.

    Args:
        original: The model before.
        result: As it is read back.
        kept: For each initializer that shrank, for each axis, which positions stay.
        merged: Under which name some are written, see `Graph.merged`.
    """
    name = "kept rows to the bit"
    for initializer, axes in kept.items():
        expected = original.initializers[initializer]
        for axis, positions in axes.items():
            expected = np.moveaxis(np.moveaxis(expected, axis, 0)[positions], 0, axis)
        found = result.initializers.get(merged.get(initializer, initializer))
        if found is None:
            return Check(name, passed=False, detail=f"'{initializer}' is missing")
        if found.shape != expected.shape or found.tobytes() != expected.tobytes():
            return Check(name, passed=False, detail=f"'{initializer}' is not the original's slice")
    return Check(name, passed=True)


def check_others(result: Graph, feed: Feed, *, refused: bool) -> Check:
    """Run on an id that did not stay: it is refused, or taken as another one.

    Args:
        result: The model.
        feed: Inputs with such an id everywhere.
        refused: Which of both it is to be.
    """
    name = "other ids are refused" if refused else "other ids are taken"
    try:
        Session(result, optimize=False).run(feed)
    except ModelError as error:
        return Check(name, passed=refused, detail="" if refused else str(error))
    return Check(name, passed=not refused, detail="the model runs on them" if refused else "")


def check_put_back(result: Graph, feed: Feed, head: Head, kept: NDArray[np.int64]) -> Check:
    """Check that what was cut of an output is the lowest number of its type."""
    found = Session(result, optimize=False).run(feed)[head.output]
    gone = np.delete(found, kept, head.axis)
    lowest = np.finfo(found.dtype).min
    wrong = int(np.count_nonzero(gone != lowest))
    detail = f"{wrong} numbers of '{head.output}' are not {lowest}" if wrong else ""
    return Check(f"'{head.output}' put back", passed=not wrong, detail=detail)
