"""Whether a graph computes what another one does, to the rounding of its own sums.

This is stricter than a comparison with a twin: both run in ONNX Runtime, and nothing between them
may differ but the order of sums.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from obc_onnx.graph.precision import precision_of
from obc_onnx.graph.session import Session
from obc_onnx.measuring.noise import MARGIN, Reference
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.verification.checks import Check, compare, count_caught
from obc_onnx.verification.oracle import one_less

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph

    Feed = Mapping[str, NDArray[Any]]
    View = Callable[[Feed], dict[str, NDArray[Any]]]
    Views = tuple[View, View]


def check_same(
    name: str,
    original: Graph,
    result: Graph,
    feeds: Sequence[Feed],
    coupling: Coupling,
    views: Views = (dict, dict),
) -> Check:
    """Compare outputs in ONNX Runtime without optimisations.

    What is allowed is a few roundings of the root mean square, or what moving the original's
    weights by their last bit makes of an output. Mistakes of one unit are planted into the result.

    Args:
        name: Of the check.
        original: What the outputs should be those of.
        result: What is checked.
        feeds: Inputs by name, of equal sizes; noise and mistakes are those of the first.
        coupling: Of the result, for mistakes.
        views: What of the outputs of the original is compared with what of those of the result.
    """
    (whole, smaller), (feed, *others) = views, feeds
    reference = _strict(Reference.of_outputs(original, feed), original)
    reference = replace(reference, values=whole(reference.values))
    check = compare(name, smaller(_run(result, feed)), reference)
    for other in others:
        again = replace(reference, values=whole(_run(original, other)))
        found = compare(name, smaller(_run(result, other)), again)
        check = found if found.error > check.error or not found.passed else check
    if not check.passed:
        return check
    wrong = (smaller(_run(mistake, feed)) for mistake in _mistakes(coupling))
    planted, caught = count_caught(wrong, reference)
    doubt = check.doubt
    if 2 * caught < planted:
        doubt = f"of {planted} mistakes of one unit it finds {caught}"
    return replace(check, planted=planted, caught=caught, doubt=doubt)


def _strict(reference: Reference, graph: Graph) -> Reference:
    floor = MARGIN * precision_of(graph).epsilon
    limits = {
        name: replace(limit, floor=min(limit.floor, floor))
        for name, limit in reference.limits.items()
    }
    return replace(reference, limits=limits)


def _mistakes(coupling: Coupling) -> Iterator[Graph]:
    """Mask one unit of one group after the other."""
    groups = (group for group in coupling.groups if group.inexact is None and group.size > 1)
    for keep in one_less({}, [group.dim for group in groups]):
        yield mask_reads(coupling, keep)


def _run(graph: Graph, feed: Feed) -> dict[str, NDArray[Any]]:
    return Session(graph, optimize=False).run(feed)
