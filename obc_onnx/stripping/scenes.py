"""Runs of a graph that tell what its constants are.

Which values are constant follows from the graph alone, see `facts`. What number such a value is
can be read off any run, since it is the same in all. Where sizes of inputs are open a second run,
at other sizes, shows which constants depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from obc_onnx.axes.expressions import leaves
from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.errors import ModelError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import ElementTypes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.rule import RuleSet

    Shape = tuple[int, ...]
    Arrays = Mapping[str, NDArray[Any]]

_NUMBERS, _BUILT_IN = "fiub", 1
"""What numpy says of its own types of numbers; values of others are not looked at."""
_GROWTH = 2
"""How much larger open sizes are in the second run; whole factors fit strides and patches."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A graph at concrete sizes, and one run of it.

    Attributes:
        coupling: Of the graph at these sizes.
        feed: What the run was given.
        numbers: What values are in it that units lie on, and every initializer.
    """

    coupling: Coupling
    feed: Arrays
    numbers: Arrays

    def dim(self, group: str) -> Dim:
        """Return the dim of a group, which is another one in every coupling."""
        return self.coupling.by_name[group].dim


@dataclass(frozen=True)
class Scenes:
    """Runs of one graph.

    Attributes:
        runs: One, or two where sizes are open.
        settled: Whether they tell of all sizes: False where the model runs at one set alone.
    """

    runs: tuple[Scene, ...]
    settled: bool

    @property
    def coupling(self) -> Coupling:
        """Of the first run."""
        return self.runs[0].coupling


def make_scenes(
    graph: Graph, shapes: Mapping[str, Shape] | None, rules: RuleSet, seed: int
) -> Scenes:
    """Analyse and run a graph at the sizes that are given, and at larger ones where some are open.

    Raises:
        ModelError: ONNX Runtime does not run it at the sizes that are given.
    """
    coupling, inputs = analyse(graph, shapes, rules, Clock())
    graph, first = coupling.graph, _scene(coupling, inputs, seed)
    larger = larger_sizes(graph, inputs)
    if larger == dict(inputs):
        return Scenes((first,), settled=True)
    try:
        coupling, inputs = analyse(graph, larger, rules, Clock())
        second = _scene(coupling, inputs, seed)
    except ModelError:  # it does not take such sizes
        return Scenes((first,), settled=False)
    return Scenes((first, second), settled=True)


def larger_sizes(graph: Graph, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Return larger sizes for the open axes of inputs, the batch apart."""
    larger: dict[str, Shape] = {}
    for port in graph.inputs:
        shape, batch = inputs[port.name], graph.batch_axes.inputs.get(port.name)
        declared = port.shape or ("",) * len(shape)
        larger[port.name] = tuple(
            size * _GROWTH if isinstance(wanted, str) and axis != batch else size
            for axis, (size, wanted) in enumerate(zip(shape, declared, strict=True))
        )
    return larger


def _scene(coupling: Coupling, inputs: Mapping[str, Shape], seed: int) -> Scene:
    graph = coupling.graph
    free = {group.dim for group in coupling.groups if group.inexact is None}
    types = ElementTypes(graph)
    names = [
        name
        for name, axes in coupling.axes.items()
        if name in graph.producers
        and any(dim in free for expr in axes for dim in leaves(expr))
        and types[name].kind in _NUMBERS
        and types[name].isbuiltin == _BUILT_IN
    ]
    feed = random_feed(graph, inputs, seed)
    computed = Session(graph, optimize=False, outputs=names).run(feed) if names else {}
    return Scene(coupling, feed, {**computed, **graph.initializers})
