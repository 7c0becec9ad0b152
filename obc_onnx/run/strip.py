"""Strip a model: what costs and does nothing goes, and the original proves the result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from obc_onnx.coupling.analysis import Clock, Model, load_model, model_name, settled, told
from obc_onnx.errors import RequestError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.model import Graph
from obc_onnx.graph.precision import relative_error
from obc_onnx.graph.session import Session
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.report.stripping import Stripping, StripReport
from obc_onnx.report.summary import Change, notes_on_graph
from obc_onnx.stripping.strip import strip_graph
from obc_onnx.verification.apart import checks_apart
from obc_onnx.verification.checks import (
    Check,
    check_description,
    check_format,
    check_interface,
    check_runs,
    doubts,
    require,
)
from obc_onnx.verification.same import check_same

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.stripping.strip import Stripped

    Shape = tuple[int, ...]
    Feed = Mapping[str, NDArray[Any]]


def strip(
    model: Model,
    *,
    below: float = 0.0,
    input_shape: Mapping[str, Shape] | None = None,
    batch_axes: Axes | None = None,
    seed: int = 0,
    rules: RuleSet = DEFAULT_RULES,
) -> Stripping:
    """Remove what costs and does nothing, without data and without loss, and prove it.

    Units go that no weight reads, that are zero or the same in every run, and that equal others.

    Args:
        model: A file, a loaded model, or a graph; it is left as it is.
        below: Weights of products, their biases and scales of norms that are not larger count as
            zeros and are written as such. Above 0 the result is no longer exact: the report says
            by how much.
        input_shape: Sizes of dynamic inputs, by input name.
        batch_axes: The axis of each input that holds samples, or None; found where it is not named.
        seed: Of the inputs that original and result are compared on.
        rules: What is known of operators.
    Returns:
        The model and its report. Nothing is written.
    Raises:
        ObcError: The request cannot be met; the message says why.
        VerificationError: The result failed a check.
    """
    if not (math.isfinite(below) and below >= 0):
        raise RequestError(f"`below` is the size up to which weights are zeros, not {below}")
    clock = Clock()
    with clock("load"):
        graph = load_model(model)
    with told(graph, input_shape):
        with clock("strip"):
            graph = settled(graph, input_shape, batch_axes or {}, rules)
            stripped = strip_graph(graph, input_shape, rules, seed, below)
        with clock("verify"):
            feeds = _feeds(stripped, seed + 1)
            checks = _check(stripped, graph, feeds)
            require(checks)
    errors = _errors(graph, stripped.graph, feeds[0])
    report = StripReport(
        model=model_name(model),
        below=below,
        macs=Change(stripped.scenes.coupling.macs({}), stripped.coupling.macs({})),
        params=Change(graph.params, stripped.graph.params),
        file_bytes=Change(graph.file_bytes or graph.size_bytes(), stripped.graph.size_bytes()),
        rounds=[list(findings) for findings in stripped.rounds],
        initializers={
            name: {str(axis): kept.tolist() for axis, kept in axes.items()}
            for name, axes in stripped.kept.items()
        },
        errors=errors,
        notes=[*notes_on_graph(graph), *_notes(stripped, below, errors)],
        warnings=doubts(checks),
        verification=checks,
        seconds=clock.seconds,
    )
    return Stripping(stripped.graph, report)


def _feeds(stripped: Stripped, seed: int) -> list[Feed]:
    """Draw inputs at the sizes of all runs; not those that constants were read off."""
    graph = stripped.scenes.coupling.graph
    shapes = [{n: a.shape for n, a in run.feed.items()} for run in stripped.scenes.runs]
    return [random_feed(graph, own, seed) for own in shapes]


def _check(stripped: Stripped, original: Graph, feeds: list[Feed]) -> list[Check]:
    """Check the result as it is read back."""
    written = Graph.from_model(stripped.graph.written()).with_batch(original.batch_axes)
    sizes = {name: array.shape for name, array in feeds[0].items()}
    merged = stripped.graph.merged
    copies = {n: of for n, of in stripped.graph.copies.items() if n not in merged}
    checks = [
        check_description(original, written, copies),
        check_interface(original, written),
        *checks_apart(original, written),
        *check_format(original, written, sizes),
        check_runs(written, feeds[0]),
    ]
    if not all(check.passed for check in checks):
        return checks
    names = ["same outputs", "same outputs at other sizes"]
    for name, feed in zip(names, feeds, strict=False):
        checks.append(check_same(name, stripped.looked_at, written, feed, stripped.coupling))
    return checks


def _errors(original: Graph, result: Graph, feed: Feed) -> dict[str, float]:
    before, after = (Session(graph, optimize=False).run(feed) for graph in (original, result))
    return {name: relative_error(after[name], value) for name, value in before.items()}


def _notes(stripped: Stripped, below: float, errors: Mapping[str, float]) -> list[str]:
    found = []
    if not stripped.rounds:
        found.append("nothing was found that does nothing: the model is as it was")
    if not stripped.scenes.settled:
        found.append(
            "constants other than zero stay: the model runs at one size of its open axes alone, so "
            "that no other shows whether they depend on it"
        )
    if below > 0:
        worst = max(errors, key=errors.__getitem__)
        found.append(
            f"`below={below:g}` made zeros of weights: on random inputs output '{worst}' is off by "
            f"{errors[worst]:.3g} of its root mean square"
        )
    return found
