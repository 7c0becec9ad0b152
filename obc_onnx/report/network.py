"""What a network is made of, in the order of its graph, and what is left of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from obc_onnx.axes.expressions import BEGINNING, Dim, count, is_long, leaves
from obc_onnx.graph.node import holds_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.node import Node


@dataclass(frozen=True)
class Layer:
    """A node that multiplies, or along which weights act.

    Attributes:
        node: Its name, or that of its first output, as patterns of names take it.
        op_type: Its operator.
        macs: Multiply-accumulates of one sample.
        macs_left: The same once only the kept units are there.
        params: Elements of the weights that it is the first to use.
        params_left: The same once only the kept units are there.
        width: Positions of the axis that its weights write or scale; None where they do neither.
        kept: How many of these stay.
        groups: What lies on that axis; of a long one the beginning alone.
        frozen: Why parts of that axis lose nothing.
    """

    node: str
    op_type: str
    macs: int
    macs_left: int
    params: int
    params_left: int
    width: int | None
    kept: int | None
    groups: list[str]
    frozen: list[str]


@dataclass(frozen=True)
class OperatorCount:
    """How often an operator is there, and what that costs.

    Attributes:
        op_type: The operator, behind its domain where that is not the standard one.
        count: Nodes.
        macs: Multiply-accumulates of one sample.
        params: Elements of the weights that these nodes are the first to use.
    """

    op_type: str
    count: int
    macs: int
    params: int


class Share(NamedTuple):
    """What of a network depends on how many units a dim has.

    Attributes:
        macs: Multiply-accumulates of one sample of the nodes that it runs through.
        params: Elements of the weights that it lies on.
    """

    macs: int
    params: int


def list_layers(coupling: Coupling, keep: Keep) -> list[Layer]:
    """Describe every layer, in the order of the graph."""
    acting = _acting(coupling)
    costed = {node.key for node in coupling.costed}
    before, after = _params(coupling, {}), _params(coupling, keep)
    names = {group.dim: group.name for group in coupling.groups}
    layers = []
    for node in coupling.graph.nodes:
        if node.key not in costed and node.key not in acting:
            continue
        axis = acting.get(node.key)
        layers.append(
            Layer(
                node=node.name or node.key,
                op_type=node.op_type,
                macs=coupling.node_macs(node, {}) if node.key in costed else 0,
                macs_left=coupling.node_macs(node, keep) if node.key in costed else 0,
                params=before[node.key],
                params_left=after[node.key],
                width=None if axis is None else axis.size,
                kept=None if axis is None else count(axis, keep),
                groups=[] if axis is None else [names[dim] for dim in _begin(axis, names)],
                frozen=[] if axis is None else _reasons(coupling, axis),
            )
        )
    return layers


def count_operators(coupling: Coupling) -> list[OperatorCount]:
    """Count the nodes of every operator; those that cost most come first."""
    numbers, macs, params = Counter[str](), Counter[str](), Counter[str]()
    owned = _params(coupling, {})
    for node in coupling.graph.nodes:
        name = _operator(node)
        numbers[name] += 1
        params[name] += owned[node.key]
    for node in coupling.costed:
        macs[_operator(node)] += coupling.node_macs(node, {})
    found = [OperatorCount(name, n, macs[name], params[name]) for name, n in numbers.items()]
    return sorted(found, key=lambda one: (-one.macs, -one.count, one.op_type))


def shares_of(coupling: Coupling) -> dict[Dim, Share]:
    """Say for every dim what depends on it; what several dims share counts for each of them."""
    of_node = {node.key: coupling.node_macs(node, {}) for node in coupling.costed}
    macs, params = Counter[Dim](), Counter[Dim]()
    for dim, nodes in coupling.costed_by_dim.items():
        macs[dim] = sum(of_node[node.key] for node in nodes)
    for name, size in _sizes(coupling, {}).items():
        for dim in {dim for axis in coupling.axes.get(name, ()) for dim in leaves(axis)}:
            params[dim] += size
    return {dim: Share(macs[dim], params[dim]) for dim in (macs | params)}


def _operator(node: Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _acting(coupling: Coupling) -> dict[str, Expr | None]:
    """Find the nodes that weights take part in, each with the axis that they write or scale."""
    found: dict[str, Expr | None] = {}
    for kind in ("writes", "scales", "reads"):
        for role in coupling.roles:
            if role.kind == kind and role.node.key not in found:
                axes = coupling.axes[role.node.inputs[role.slot]]
                found[role.node.key] = None if kind == "reads" else axes[role.axis]
    return found


def _begin(axis: Expr, names: Mapping[Dim, str]) -> Iterable[Dim]:
    """Return the groups of an axis: to list all of them for each layer takes the square."""
    groups = dict.fromkeys(dim for dim in leaves(axis) if dim in names)
    return islice(groups, BEGINNING if is_long(axis) else None)


def _reasons(coupling: Coupling, axis: Expr) -> list[str]:
    dims = [dim for dim in dict.fromkeys(leaves(axis)) if dim.size > 1]
    return list(dict.fromkeys(coupling.reasons[dim] for dim in dims if dim in coupling.reasons))


def _params(coupling: Coupling, keep: Keep) -> Counter[str]:
    """Count the elements of weights by the node that uses them first."""
    sizes, found = _sizes(coupling, keep), Counter[str]()
    for name in coupling.merged(keep):
        sizes.pop(name, None)  # it is written under another name
    for node in coupling.graph.nodes:
        for name in node.inputs:
            found[node.key] += sizes.pop(name, 0)
    return found


def _sizes(coupling: Coupling, keep: Keep) -> dict[str, int]:
    """Count the elements of weights, copies of which one may stand for all included."""
    return {
        name: math.prod(count(axis, keep) for axis in coupling.axes[name])
        if name in coupling.axes
        else array.size
        for name, array in coupling.graph.initializers.items()
        if holds_weights(array.dtype)
    }
