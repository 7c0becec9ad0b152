"""Follow one axis of a tensor to everything that it is tied to, node by node."""

from __future__ import annotations

import difflib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from obc_onnx.axes.expressions import describe, leaves
from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.node import Node

    Place = tuple[str, int]

_CLOSE_NAMES = 3


@dataclass(frozen=True)
class Step:
    """One tie: a node that makes two axes lose the same units.

    Attributes:
        node: Its label.
        source: The axis that was reached before, as `weight axis 0`.
        target: The axis that the node ties to it.
    """

    node: str
    source: str
    target: str


@dataclass(frozen=True)
class DimExplanation:
    """One dim of an axis.

    Attributes:
        name: The group's name, or the size where it is none.
        size: Units.
        state: "free", or why it is frozen, or why it is inexact.
        steps: Every axis that holds the dim, nearest first, with the node that ties it.
    """

    name: str
    size: int
    state: str
    steps: list[Step]


@dataclass(frozen=True)
class AxisExplanation:
    """One axis of a tensor.

    Attributes:
        place: As `weight axis 0`.
        expression: What the axis is made of.
        dims: Each of its dims once; those of a single position are left out.
    """

    place: str
    expression: str
    dims: list[DimExplanation]


def explain(coupling: Coupling, name: str) -> list[AxisExplanation]:
    """Explain every axis of a tensor, or one.

    Args:
        coupling: Of the model.
        name: A tensor, or one of its axes as `tensor:1`.
    Raises:
        RequestError: The model has no such tensor or axis.
    """
    tensor, axes = _find(coupling, name)
    names = {group.dim: group.name for group in coupling.groups}
    ties = _ties(coupling)
    return [
        AxisExplanation(
            place=_written((tensor, axis)),
            expression=describe(coupling.axes[tensor][axis], names),
            dims=[
                DimExplanation(
                    name=names.get(dim, str(dim.size)),
                    size=dim.size,
                    state=_state(coupling, dim),
                    steps=list(_steps(ties, dim, (tensor, axis))),
                )
                for dim in dict.fromkeys(leaves(coupling.axes[tensor][axis]))
                if dim.size > 1
            ],
        )
        for axis in axes
    ]


def _find(coupling: Coupling, name: str) -> tuple[str, list[int]]:
    """Split a request into a tensor and its axes; a tensor's name may hold colons."""
    if name in coupling.axes:
        return name, list(range(len(coupling.axes[name])))
    tensor, _, axis = name.rpartition(":")
    if tensor not in coupling.axes or not axis.isdecimal():
        close = difflib.get_close_matches(tensor or name, coupling.axes, _CLOSE_NAMES)
        hint = f": did you mean {' or '.join(close)}?" if close else ""
        raise RequestError(f"the model has no tensor '{name}' whose axes are known{hint}")
    rank = len(coupling.axes[tensor])
    if int(axis) >= rank:
        raise RequestError(f"tensor '{tensor}' has {rank} axes, so none with number {axis}")
    return tensor, [int(axis)]


def _ties(coupling: Coupling) -> dict[Dim, list[tuple[Node, list[Place]]]]:
    """List, for each dim, the nodes that meet it and the axes that hold it there."""
    found: dict[Dim, list[tuple[Node, list[Place]]]] = {}
    for node in coupling.graph.nodes:
        own: dict[Dim, dict[Place, None]] = {}
        for name in (*node.inputs, *node.outputs):
            for axis, expr in enumerate(coupling.axes.get(name, ())):
                for dim in leaves(expr):
                    own.setdefault(dim, {})[name, axis] = None
        for dim, places in own.items():
            found.setdefault(dim, []).append((node, list(places)))
    return found


def _steps(
    ties: dict[Dim, list[tuple[Node, list[Place]]]], dim: Dim, start: Place
) -> Iterator[Step]:
    """Walk from an axis to all others that hold a dim, breadth first."""
    by_place: dict[Place, list[tuple[Node, list[Place]]]] = {}
    for node, places in ties.get(dim, ()):
        for place in places:
            by_place.setdefault(place, []).append((node, places))
    seen, queue = {start}, deque([start])
    while queue:
        current = queue.popleft()
        for node, places in by_place.get(current, ()):
            for place in places:
                if place not in seen:
                    seen.add(place)
                    queue.append(place)
                    yield Step(node.label, _written(current), _written(place))


def _state(coupling: Coupling, dim: Dim) -> str:
    for group in coupling.groups:
        if group.dim is dim:
            return f"inexact: {group.inexact}" if group.inexact else "free"
    reason = coupling.reasons.get(dim)
    return f"frozen: {reason}" if reason else "free, but no weight meets it"


def _written(place: Place) -> str:
    return f"{place[0]} axis {place[1]}"
