"""Activations are rounded by scales again that fit what flows through the cut network.

A scale and a zero point were chosen for a range, by some rule that the file does not tell. Where
units are gone, values reach less far, or farther. So both ends of the range move by as much as the
ends of the values have moved from the original to the cut network, on the same samples: whatever
the rule was, such as a percentile, it is kept. Scales that are equal stay equal, since kernels ask
for that on both sides of a pool or a join; biases whose scales are products of them follow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import helper

from obc_onnx.graph.node import holds_weights, is_float
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.measuring.outputs import batch_size_of
from obc_onnx.ops.base.dtypes import integer_limits
from obc_onnx.progress import track
from obc_onnx.twin.codes import SCALE, ZERO, find_ties, stored
from obc_onnx.twin.tensors import to_array, to_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut
    from obc_onnx.twin.codes import Tie

    Arrays = dict[str, NDArray[Any]]

_SAMPLES = 512
"""Whose values tell how far they reach."""


class Reach(NamedTuple):
    """Between which numbers values lie; 0 is always one of them."""

    low: float
    high: float

    def joined(self, other: Reach) -> Reach:
        """Return what holds both."""
        return Reach(min(self.low, other.low), max(self.high, other.high))


@dataclass
class Family:
    """Nodes that round activations by one scale and one zero point.

    Attributes:
        scale: Of all of them.
        zero: As a number; 0 where there is none.
        limits: The least and the greatest whole number.
        scales: Initializers that hold the scale.
        zeros: Those with the zero point.
        values: What is quantised.
    """

    scale: float
    zero: int
    limits: tuple[int, int]
    scales: set[str] = field(default_factory=set)
    zeros: set[str] = field(default_factory=set)
    values: set[str] = field(default_factory=set)

    @property
    def is_symmetric(self) -> bool:
        """Say whether 0 is in the middle, as some kernels want it."""
        return abs(sum(self.limits) - 2 * self.zero) <= 1

    def fitted(self, before: Reach, after: Reach, *, moves_zero: bool) -> tuple[float, int]:
        """Return scale and zero point that hold what flows now as well as they held what did.

        Args:
            before: Where the original's values lie.
            after: Where those of the cut network do.
            moves_zero: Whether the zero point may be another one.
        """
        if self.is_symmetric:
            whole = max(-before.low, before.high), max(-after.low, after.high)
            return self.scale * _growth(*whole), self.zero
        least, most = self.limits
        low, high = ((limit - self.zero) * self.scale for limit in self.limits)
        down, up = _growth(before.low, after.low), _growth(before.high, after.high)
        if not (low and high and moves_zero):
            return self.scale * max(own for own, end in ((down, low), (up, high)) if end), self.zero
        scale = (high * up - low * down) / (most - least)
        return scale, int(np.clip(round(least - low * down / scale), least, most))


def _growth(before: float, after: float) -> float:
    """Return how many times as far values reach; 1 where they did not reach there at all."""
    return after / before if before and after else 1.0


def rescale(cut: Cut, samples: Samples) -> Graph:
    """Fit the scales of activations.

    Args:
        cut: The cut graph, with weights repaired.
        samples: To run both networks on; labels are not used.
    Returns:
        The cut graph with other scales and zero points, and with biases in the new scales; all
        are of their types and places.
    """
    graph, rules = cut.pruned, cut.coupling.rules
    ties = list(find_ties(graph, rules))
    fixed = {name for tie in ties if tie.scale is None for name in tie.factors}
    families = [own for own in find_families(graph, rules) if not own.scales & fixed]
    values = sorted({value for own in families for value in own.values})
    if not values:
        return graph
    some = samples.part(slice(0, _whole(_SAMPLES, graph.batch)))
    before, after = (_reaches(g, some, values) for g in (cut.coupling.graph, graph))
    arrays: Arrays = {}
    for own in families:
        moves_zero = all(holds_weights(graph.initializers[name].dtype) for name in own.zeros)
        reaches = [_together(known[value] for value in own.values) for known in (before, after)]
        scale, zero = own.fitted(*reaches, moves_zero=moves_zero)
        arrays |= {name: np.full_like(graph.initializers[name], scale) for name in own.scales}
        arrays |= {name: np.full_like(graph.initializers[name], zero) for name in own.zeros}
    for tie in ties:
        arrays |= _follow(graph, tie, arrays)
    return graph.edit(arrays)


def find_families(graph: Graph, rules: RuleSet) -> list[Family]:
    """Find the nodes that round activations, by what they are rounded by.

    Left out is what is no constant, differs along an axis, or serves otherwise too.
    """
    types, found = ElementTypes(graph), dict[Any, Family]()
    nodes = [n for n in graph.nodes if rules.recodes(n) and stored(graph, rules, n.key) is None]
    own = {node.key for node in nodes}
    shared = set()
    for node in nodes:
        quantises = is_float(types[node.inputs[0]])
        kind = int(
            helper.np_dtype_to_tensor_dtype(types[node.key if quantises else node.inputs[0]])
        )
        limits, names = integer_limits(kind), [node.inputs[SCALE], node.read_at(ZERO)]
        arrays = [graph.initializers.get(name) for name in names if name]
        if limits is None or any(array is None or array.size > 1 for array in arrays):
            continue
        numbers = [array.item() for array in arrays if array is not None]
        key = (*numbers, kind)
        scale, zero = numbers[0], int(numbers[1]) if numbers[1:] else 0
        family = found.setdefault(key, Family(scale, zero, limits))
        family.scales.add(names[0])
        family.zeros.update(names[1:] if names[1] else ())
        family.values.update([node.inputs[0]] if quantises else ())
        if any(not _serves(graph, name, own) for name in names if name):
            shared.add(key)
    return [family for key, family in found.items() if family.values and key not in shared]


def _serves(graph: Graph, name: str, nodes: set[str]) -> bool:
    """Say whether an initializer serves some nodes alone."""
    return not graph.escapes(name) and all(n.key in nodes for n, _ in graph.consumers[name])


def _whole(count: int, batch: int | None) -> int:
    return max(count // batch, 1) * batch if batch else count


def _reaches(graph: Graph, samples: Samples, names: list[str]) -> Mapping[str, Reach]:
    """Run a graph, and return between which numbers values lie."""
    session = Session(graph, optimize=False, outputs=names)
    found = dict.fromkeys(names, Reach(0.0, 0.0))
    for part in track(list(samples.batches(batch_size_of(graph))), "measuring ranges"):
        for name, value in session.run(samples.feed(part)).items():
            found[name] = found[name].joined(Reach(float(value.min()), float(value.max())))
    return found


def _together(reaches: Iterable[Reach]) -> Reach:
    whole = Reach(0.0, 0.0)
    for reach in reaches:
        whole = whole.joined(reach)
    return whole


def _follow(graph: Graph, tie: Tie, arrays: Arrays) -> Arrays:
    """Return scale and numbers of a bias whose scale is a product of others that have moved."""
    if tie.scale is None or not arrays.keys() & set(tie.factors):
        return {}
    left, right = (arrays.get(n, graph.initializers[n]).reshape(-1) for n in tie.factors)
    held = {name: graph.initializers[name] for name in tie.scale.names}
    fitted = {
        name: np.broadcast_to(left * right, array.size).reshape(array.shape).astype(array.dtype)
        for name, array in held.items()
    }
    numbers, encoding = graph.initializers[tie.bias.name], tie.scale.encoding
    if is_float(numbers.dtype):
        return fitted
    floats = encoding.decode(to_tensor(numbers), lambda key: to_tensor(graph.initializers[key]))
    again = encoding.encode(floats, lambda key: to_tensor((graph.initializers | fitted)[key]))
    return {**fitted, tie.bias.name: to_array(again, numbers.dtype)}
