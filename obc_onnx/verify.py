"""Checks that can fail. Nothing is written before they hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from obc_onnx.costs import share_of
from obc_onnx.errors import ModelError, UnsupportedOperatorError, VerificationError
from obc_onnx.feeds import random_feed
from obc_onnx.foreign import without_foreign
from obc_onnx.node import holds_weights
from obc_onnx.precision import allowed_error, is_vacuous, precision_of, relative_error
from obc_onnx.runtime import Session
from obc_onnx.shapes import infer_strictly
from obc_onnx.surgery import mask_reads, remove_units, slice_initializers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.coupling import Coupling, Keep
    from obc_onnx.data import Samples
    from obc_onnx.graph import Graph
    from obc_onnx.node import Node
    from obc_onnx.plan import PruningPlan

    Feed = Mapping[str, NDArray[Any]]

_VERIFIED_SAMPLES = 4
_BIASED, BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"}), 2
"""Products that may gain a bias, and the slot where it goes."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was checked.
        passed: Whether it held.
        error: The measured error; 0 where a fact was checked.
        tolerance: The largest accepted error.
        detail: What was found, where it did not hold.
    """

    name: str
    passed: bool
    error: float = 0.0
    tolerance: float = 0.0
    detail: str = ""


def require(checks: Sequence[Check]) -> None:
    """Stop where a check failed.

    Raises:
        VerificationError: Names every failed check with what was measured and what is allowed.
    """
    failed = [check for check in checks if not check.passed]
    if failed:
        lines = "; ".join(
            f"{c.name}: {c.detail or f'error {c.error:.3g} above {c.tolerance:.3g}'}"
            for c in failed
        )
        raise VerificationError(f"{len(failed)} of {len(checks)} checks failed: {lines}")


def compare(name: str, found: Feed, reference: Feed, graph: Graph) -> Check:
    """Compare outputs; the check reports the worst of them against what it is allowed.

    Args:
        name: Of the check.
        found: Outputs by name.
        reference: What they should be.
        graph: What computed them; its types decide how close they have to be.
    """
    precision = precision_of(graph)
    worst, worst_share = Check(name, passed=True), -1.0
    for output, expected in reference.items():
        error, allowed = relative_error(found[output], expected), allowed_error(expected, precision)
        share = error / allowed if allowed else (float("inf") if error else 0.0)
        if share <= worst_share:
            continue
        detail, worst_share = "", share
        if error > allowed:
            detail = f"output '{output}': error {error:.3g} above {allowed:.3g}"
            if not np.isfinite(error):
                detail += "; an output is not finite, or of another shape"
        elif is_vacuous(expected, precision):
            detail = f"output '{output}' does not depend on the samples beyond rounding"
        worst = Check(name, error <= allowed, error, allowed, detail)
    return worst


def check_masked(coupling: Coupling, keep: Keep, feed: Feed) -> Check:
    """Compare the pruned graph with the original in which removed units are masked.

    Both run in ONNX Runtime without optimisations, on the same input. Groups under a statistic lose
    nothing in either, since a mask does not stand for their removal.
    """
    exact = coupling.exact(keep)
    pruned = Session(remove_units(coupling, exact), optimize=False).run(feed)
    masked = Session(mask_reads(coupling, exact), optimize=False).run(feed)
    check = compare("pruned equals masked original", pruned, masked, coupling.graph)
    n_left_out = len(keep) - len(exact)
    if n_left_out and not check.detail:
        detail = f"{n_left_out} inexact groups are left out"
        return replace(check, detail=detail)
    return check


def check_format(
    original: Graph, result: Graph, shapes: Mapping[str, tuple[int, ...]]
) -> list[Check]:
    """Run the ONNX checker, and strict shape inference for the given input shapes.

    Fault may be found with a result where it is found with the original too.
    """
    foreign = [port.name for port in result.inputs if port.name not in shapes]
    if foreign:
        detail = f"input '{foreign[0]}' is not one of the original"
        inference = Check("strict shape inference", passed=False, detail=detail)
    else:
        inference = _compare_faults(
            "strict shape inference", lambda graph: infer_strictly(graph, shapes), original, result
        )
    return [_compare_faults("ONNX checker", _run_checker, original, result), inference]


def _run_checker(graph: Graph) -> None:
    onnx.checker.check_model(without_foreign(graph.outline().declared()), full_check=True)


def _compare_faults(
    name: str, finder: Callable[[Graph], object], original: Graph, result: Graph
) -> Check:
    """Check that what finds no fault with the original finds none with the result."""
    faults = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ModelError)
    try:
        finder(result)
    except faults as error:
        detail = str(error)
    else:
        return Check(name, passed=True)
    try:
        finder(original)
    except faults:
        return Check(name, passed=True, detail=f"fails as it does for the original: {detail}")
    return Check(name, passed=False, detail=detail)


def check_interface(original: Graph, result: Graph) -> Check:
    """Compare names, types and sizes of inputs and outputs, dynamic axes included."""
    for kind in ("inputs", "outputs"):
        if getattr(original, kind) != getattr(result, kind):
            detail = f"{kind} differ: {getattr(original, kind)} became {getattr(result, kind)}"
            return Check("same interface", passed=False, detail=detail)
    return Check("same interface", passed=True)


def check_plan(original: Graph, result: Graph, plan: PruningPlan) -> Check:
    """Check with numpy alone that every initializer has the size that the plan says."""
    name = "initializers as planned"
    kept, arrays = _kept(plan), dict(original.initializers)
    expected = {k: v.shape for k, v in (arrays | slice_initializers(arrays, kept)).items()}
    for initializer, shape in expected.items():
        found = result.initializers.get(initializer)
        if initializer not in kept and not holds_weights(arrays[initializer].dtype):
            continue  # numbers that surgery writes anew, such as positions that a node picks
        if found is not None and found.shape != shape:
            detail = f"'{initializer}' has shape {found.shape}, planned {shape}"
            return Check(name, passed=False, detail=detail)
        if found is None and initializer in kept:
            return Check(name, passed=False, detail=f"'{initializer}' is missing")
    return Check(name, passed=True)


def check_weights(original: Graph, result: Graph, plan: PruningPlan) -> Check:
    """Check the weights themselves.

    After repair or training the plan holds the digest of what was written. Without either, numpy
    alone says what every weight has to be, to the bit.
    """
    name = "weights as written"
    if plan.weights_sha256 is not None:
        same = digest_of(result.initializers) == plan.weights_sha256
        detail = "" if same else "they are not those that the plan was written with"
        return Check(name, same, detail=detail)
    arrays = dict(original.initializers)
    expected = arrays | slice_initializers(arrays, _kept(plan))
    for initializer, array in expected.items():
        found = result.initializers.get(initializer)
        learnable = holds_weights(array.dtype) or original.dequantised_by(initializer)
        if learnable and found is not None and found.tobytes() != array.tobytes():
            return Check(name, passed=False, detail=f"'{initializer}' is not the original's slice")
    return Check(name, passed=True)


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of named arrays, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}:{array.dtype.name}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _kept(plan: PruningPlan) -> dict[str, dict[int, NDArray[np.int64]]]:
    return {
        initializer: {int(axis): np.asarray(p, np.int64) for axis, p in axes.items()}
        for initializer, axes in plan.initializers.items()
    }


def check_structure(expected: Graph, result: Graph) -> Check:
    """Check that the result is the pruned graph: same operators, wiring, attributes and sizes.

    A product may have gained a bias: repair and training put there what a unit or a norm has left.
    """
    name = "graph as planned"
    if len(expected.nodes) != len(result.nodes):
        detail = f"{len(result.nodes)} nodes, planned {len(expected.nodes)}"
        return Check(name, passed=False, detail=detail)
    for planned, found in zip(expected.nodes, result.nodes, strict=True):
        gained = _gained(expected, planned, result, found)
        same = (
            _identity(planned) == _identity(found, gained)
            and set(planned.attributes) == set(found.attributes)
            and all(_same(planned.attributes[k], found.attributes[k]) for k in planned.attributes)
        )
        if not same:
            return Check(name, passed=False, detail=f"{found.label} differs from the planned one")
    for initializer, array in expected.initializers.items():
        found_array = result.initializers.get(initializer)
        if found_array is None or found_array.shape != array.shape:
            return Check(name, passed=False, detail=f"initializer '{initializer}' differs")
        learnable = holds_weights(array.dtype) or expected.dequantised_by(initializer)
        if not learnable and not np.array_equal(found_array, array):
            return Check(name, passed=False, detail=f"numbers in '{initializer}' differ")
    return Check(name, passed=True)


def check_runs(result: Graph, feed: Feed) -> Check:
    """Run the result in ONNX Runtime with all optimisations; float outputs must be finite."""
    name = "ONNX Runtime runs it"
    if {port.name for port in result.inputs} != set(feed):
        return Check(name, passed=False, detail="its inputs are not those of the original")
    try:
        outputs = Session(result).run(feed)
    except ModelError as error:
        return Check(name, passed=False, detail=str(error))
    for output, value in outputs.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            return Check(name, passed=False, detail=f"output '{output}' is not finite")
    return Check(name, passed=True)


def why_no_twin(coupling: Coupling) -> str:
    """Return why torch cannot compute a graph, or nothing where it can."""
    from obc_onnx.twin import build_twin

    try:
        build_twin(coupling.graph, coupling.shapes, coupling.rules)
    except UnsupportedOperatorError as error:
        return str(error)
    return ""


def check_twin(coupling: Coupling, feed: Feed) -> Check:
    """Compare the twin of the analysed graph with ONNX Runtime."""
    from obc_onnx.twin import build_twin, run_module

    graph = coupling.graph
    found = run_module(build_twin(graph, coupling.shapes, coupling.rules), graph, feed)
    expected = Session(graph, optimize=False).run(feed)
    return compare("twin equals ONNX Runtime", found, expected, graph)


def check_budget(cost: int, full: int, target: float, label: str = "MACs") -> Check:
    """Compare a recounted cost with its target.

    Args:
        cost: Of the result.
        full: Of the original.
        target: The share that may be left, in (0, 1], or the number above 1.
        label: What is counted.
    """
    share = cost / full if full else 0.0
    allowed = share_of(target, full)
    detail = "" if share <= allowed else f"{share:.4g} of the {label}, allowed {allowed:.4g}"
    return Check(f"{label} within the target", share <= allowed, share, allowed, detail)


def verification_feed(
    graph: Graph, held: Samples | None, inputs: Mapping[str, tuple[int, ...]], seed: int
) -> Feed:
    """Return held-out samples to verify on, or random ones where there is no data."""
    if held is None:
        return random_feed(graph, inputs, seed)
    return held.feed(slice(0, graph.batch or min(_VERIFIED_SAMPLES, len(held))))


def _identity(node: Node, without: str = "") -> tuple[Any, ...]:
    inputs = tuple(name for name in node.inputs if not without or name != without)
    return node.domain, node.op_type, node.opset, inputs, node.outputs


def _gained(expected: Graph, planned: Node, result: Graph, found: Node) -> str:
    """Return the name of a bias that only the result has."""
    if planned.op_type not in _BIASED or planned.has_input(BIAS) or not found.has_input(BIAS):
        return ""
    name = found.inputs[BIAS]
    fresh = name in result.initializers and name not in expected.initializers
    return name if fresh and len(result.consumers[name]) == 1 else ""


def _same(planned: Any, found: Any) -> bool:
    if isinstance(planned, (np.ndarray, list, tuple)):
        return bool(np.array_equal(np.asarray(planned), np.asarray(found)))
    if isinstance(planned, (int, float, str, bytes)):
        return bool(planned == found)
    return type(planned) is type(found)  # subgraphs are never changed
