"""Checks that can fail. Nothing is written before they hold."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from obc_onnx.errors import ModelError, UnsupportedOperatorError, VerificationError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.foreign import inferable
from obc_onnx.graph.precision import relative_error
from obc_onnx.graph.session import Session, run_file
from obc_onnx.graph.shapes import infer_strictly
from obc_onnx.installation import why_no_torch
from obc_onnx.measuring.noise import Reference
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.costs import share_of
from obc_onnx.surgery.cut import Cut, slice_initializers
from obc_onnx.verification.contents import other_description, other_structure
from obc_onnx.verification.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.branches.find import StandIns
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.planning.plan import PruningPlan
    from obc_onnx.samples.samples import Samples
    from obc_onnx.twin.module import TorchTwin

    Feed = Mapping[str, NDArray[Any]]

_VERIFIED_SAMPLES = 4
_TWIN = "twin equals ONNX Runtime"
_MISTAKES = 3
"""How many mistakes a check is tried with."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: What was checked.
        passed: Whether it held.
        error: The measured error; 0 where a fact was checked.
        tolerance: The largest accepted error.
        detail: What was found, where it did not hold.
        noise: How far rounding alone moves what was compared, in the unit of the error.
        planted: How many mistakes of one unit were planted, to see whether they would be found.
        caught: How many were.
        doubt: Why it proves little though it held, and what to do.
    """

    name: str
    passed: bool
    error: float = 0.0
    tolerance: float = 0.0
    detail: str = ""
    noise: float = 0.0
    planted: int = 0
    caught: int = 0
    doubt: str = ""


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


def doubts(checks: Sequence[Check]) -> list[str]:
    """List what makes checks that held prove little."""
    return [f"{check.name}: {check.doubt}" for check in checks if check.doubt]


def compare(name: str, found: Feed, reference: Reference) -> Check:
    """Compare values; the check reports the worst of them against what it is allowed.

    Args:
        name: Of the check.
        found: Values by name.
        reference: What they should be, and how close they have to be.
    """
    worst, worst_share = Check(name, passed=True), -1.0
    for value, expected in reference.values.items():
        limit = reference.limits[value]
        error, allowed = relative_error(found[value], expected), limit.allowed
        share = error / allowed if allowed else (float("inf") if error else 0.0)
        if share <= worst_share:
            continue
        detail, worst_share = "", share
        if error > allowed:
            detail = f"value '{value}': error {error:.3g} above {allowed:.3g}"
            if not np.isfinite(error):
                detail += "; it is not finite, or of another shape"
            elif limit.noise > limit.floor:
                detail += f"; rounding alone makes {limit.noise:.3g}: give calmer samples"
        worst = Check(name, error <= allowed, error, allowed, detail, limit.noise)
    if worst.passed and reference.is_vacuous:
        doubt = "nothing that was compared depends on the samples beyond rounding: give other ones"
        return replace(worst, doubt=doubt)
    return worst


def check_masked(
    coupling: Coupling, keep: Keep, feed: Feed, stand_ins: StandIns | None = None
) -> Check:
    """Compare the pruned graph with the original in which removed units and branches are zero.

    Both run in ONNX Runtime without optimisations, on the same input. They are compared at every
    product that was cut, outputs included. Mistakes are planted, to see whether they are found.
    Groups under a statistic lose nothing in either, since a mask does not stand for their removal.
    """
    name, exact = "pruned equals masked original", coupling.exact(keep)
    oracle = Oracle(coupling, exact, feed, stand_ins or {})
    reference = Reference.measured(oracle.masked(exact), oracle.run_masked)
    pruned = Cut.of(coupling, exact, stand_ins).pruned
    check = compare(name, oracle.run_pruned(pruned), reference)
    if check.passed and (exact or stand_ins):
        check = _with_mistakes(check, oracle, reference)
    n_left_out = len(keep) - len(exact)
    if n_left_out and not check.detail:
        return replace(check, detail=f"{n_left_out} inexact groups are left out")
    return check


def _with_mistakes(check: Check, oracle: Oracle, reference: Reference) -> Check:
    """Say how many mistakes a check finds, of those that change anything at all."""
    planted, caught = count_caught(map(oracle.run_masked, oracle.mistakes()), reference)
    doubt = ""
    outputs = (port.name for port in oracle.coupling.graph.outputs)
    noisy = next((name for name in outputs if reference.limits[name].is_mostly_noise), None)
    if noisy is not None:
        doubt = (
            f"output '{noisy}' is mostly rounding, so that what follows the last product is not "
            f"proven: give calmer samples"
        )
    if 2 * caught < planted:
        doubt = f"of {planted} mistakes of one unit it finds {caught}: give calmer samples"
    elif not planted:
        doubt = "no unit that was tried changes anything: give samples that it responds to"
    return replace(check, planted=planted, caught=caught, doubt=doubt)


def count_caught(wrong: Iterable[Feed], reference: Reference) -> tuple[int, int]:
    """Compare what mistakes give, until enough of them change anything.

    Args:
        wrong: Values by name, for one mistake after the other.
        reference: What values should be, and how close they have to be.
    Returns:
        How many mistakes change anything, and how many of those are found.
    """
    planted = caught = 0
    for values in wrong:
        found = compare("a mistake", values, reference)
        planted += found.error > 0
        caught += not found.passed
        if planted == _MISTAKES:
            break
    return planted, caught


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
    checker = partial(_run_checker, shapes=shapes)
    return [_compare_faults("ONNX checker", checker, original, result), inference]


def _run_checker(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Run the checker, which wants a shape of every port: of what stands for values, those used."""
    model = inferable(graph.outline().declared())
    for port in model.graph.input:
        if port.name in graph.opaque.givers and not port.type.tensor_type.HasField("shape"):
            sizes = [onnx.TensorShapeProto.Dimension(dim_value=n) for n in shapes[port.name]]
            port.type.tensor_type.shape.dim.extend(sizes)
    own = [port for port in model.graph.output if port.name not in graph.opaque.readers]
    del model.graph.output[:]
    model.graph.output.extend(own)
    onnx.checker.check_model(model, full_check=True)


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
    """Check with numpy alone that every initializer has the size and type that the plan says."""
    name = "initializers as planned"
    expected = _planned(original, plan)
    for initializer, found in result.stored.items():
        wanted = expected.get(initializer)
        if wanted is None or not _is_weight(original, initializer, plan):
            continue  # numbers that surgery writes again, such as positions that a node picks
        for what in ("shape", "dtype"):
            has, planned = getattr(found, what), getattr(wanted, what)
            if has != planned:
                detail = f"'{initializer}' has {what} {has}, planned {planned}"
                return Check(name, passed=False, detail=detail)
    missing = [k for k in (*plan.initializers, *plan.copies) if k not in result.stored]
    if missing:
        return Check(name, passed=False, detail=f"'{missing[0]}' is missing")
    return Check(name, passed=True)


def check_weights(original: Graph, result: Graph, plan: PruningPlan) -> Check:
    """Check the weights themselves.

    After repair or training the plan holds the digest of what was written. Without either, numpy
    alone says what every weight has to be, to the bit.
    """
    name = "weights as written"
    if plan.weights_sha256 is not None:
        same = digest_of(result.stored) == plan.weights_sha256
        detail = "" if same else "they are not those that the plan was written with"
        return Check(name, same, detail=detail)
    for initializer, array in _planned(original, plan).items():
        found = result.stored.get(initializer)
        learnable = _is_weight(original, initializer, plan)
        if learnable and found is not None and found.tobytes() != array.tobytes():
            return Check(name, passed=False, detail=f"'{initializer}' is not the original's slice")
    return Check(name, passed=True)


def _planned(original: Graph, plan: PruningPlan) -> dict[str, NDArray[Any]]:
    """Return what the file should hold before repair and training."""
    arrays = dict(original.stored)
    arrays |= {name: arrays[origin] for name, origin in plan.copies.items() if origin in arrays}
    kept = {
        initializer: {int(axis): np.asarray(p, np.int64) for axis, p in axes.items()}
        for initializer, axes in plan.initializers.items()
        if initializer in arrays
    }
    return arrays | slice_initializers(arrays, kept)


def _is_weight(original: Graph, initializer: str, plan: PruningPlan) -> bool:
    """Say whether the numbers of an initializer are weights, or follow from the plan."""
    source = plan.copies.get(initializer, initializer)
    return initializer in plan.initializers or original.may_change(source)


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 of named arrays, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}:{array.dtype.name}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def check_structure(
    expected: Graph,
    result: Graph,
    merged: Mapping[str, str] | None = None,
    rules: RuleSet = DEFAULT_RULES,
    *,
    repaired: bool = False,
) -> Check:
    """Check that the result is the pruned graph: same operators, wiring, attributes and sizes.

    Only after repair or training may a product have gained a bias, see `other_structure`.
    """
    detail = other_structure(expected, result, merged or {}, rules, repaired=repaired)
    return Check("graph as planned", not detail, detail=detail)


def check_description(original: Graph, result: Graph, copies: Mapping[str, str]) -> Check:
    """Check that all that describes the model is still there, such as versions and metadata."""
    detail = other_description(original, result, copies)
    return Check("same description", not detail, detail=detail)


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


def check_file(path: Path, result: Graph, feed: Feed) -> Check:
    """Run a file as it lies there: what a graph does not hold, such as types, may fail it.

    Args:
        path: The file.
        result: What was read from it, and checked.
        feed: An input.
    """
    name = "file computes what was checked"
    if result.opaque.labels:
        detail = f"not run: ONNX Runtime does not know {result.opaque.labels[0]}"
        return Check(name, passed=True, detail=detail)
    try:
        found = run_file(path, feed)
    except ModelError as error:
        return Check(name, passed=False, detail=str(error))
    return compare(name, found, Reference.of_outputs(result, feed))


def why_no_twin(coupling: Coupling) -> str:
    """Return why torch cannot compute a graph, or nothing where it can."""
    reason = why_no_torch()
    if reason:
        return reason
    from obc_onnx.twin.build import derived_twin

    try:
        _release(derived_twin(coupling.graph, coupling, frozen=True, rounds=True))
    except UnsupportedOperatorError as error:
        return str(error)
    return ""


def check_twin(coupling: Coupling, feed: Feed, missing: str = "") -> Check:
    """Compare the twin of the analysed graph with ONNX Runtime.

    Args:
        coupling: Of the graph.
        feed: An input.
        missing: Why there is no twin; then nothing is compared, and the check says so.
    """
    if missing:
        return Check(_TWIN, passed=True, detail=f"not compared: {missing}")
    from obc_onnx.twin.build import derived_twin

    twin = derived_twin(coupling.graph, coupling, frozen=True, rounds=True)
    check = compare_twin(twin, coupling.graph, feed)
    _release(twin)
    return check


def _release(twin: TorchTwin) -> None:
    """Let the weights of a twin go at once: a module of torch.fx is a cycle of references."""
    twin.to_empty(device="meta")


def compare_twin(twin: TorchTwin, graph: Graph, feed: Feed) -> Check:
    """Compare a twin with ONNX Runtime: its outputs, and inside where those tell nothing.

    An output that is mostly rounding, or the same for all samples, would agree with another
    network's. So what it is computed from is compared too, as far as that tells more.
    """
    from obc_onnx.twin.build import run_inside, run_module

    reference = Reference.of_outputs(graph, feed)
    try:
        found = run_module(twin, graph, feed)
    except RuntimeError as error:  # torch refuses what ONNX Runtime takes
        return Check(_TWIN, passed=False, detail=f"the twin does not run: {error}")
    untold = reference.untold()
    noisy = [output for output in untold if reference.limits[output].is_mostly_noise]
    behind: list[str] = []
    if untold:
        inside = Reference.behind(graph, feed, untold)
        own = run_inside(twin, graph, feed, inside.values)
        behind, found = list(own), {**found, **own}
        reference = reference.joined(inside, behind, tolerated=noisy if behind else ())
    check = compare(_TWIN, found, reference)
    if not noisy or not check.passed:
        return check
    values = ", ".join(f"'{name}'" for name in behind)
    doubt = (
        f"output '{noisy[0]}' is mostly rounding, so that what follows {values} is not proven: "
        f"give calmer samples"
    )
    return replace(check, doubt=doubt)


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


def latency_feed(
    graph: Graph, held: Samples | None, inputs: Mapping[str, tuple[int, ...]], seed: int
) -> Feed:
    """Return what models are timed on: the smallest batch, of held-out samples where there are."""
    size = graph.batch or 1
    if held is None:
        return random_feed(graph, graph.batch_axes.resized(inputs, size), seed)
    return held.feed(slice(0, size))
