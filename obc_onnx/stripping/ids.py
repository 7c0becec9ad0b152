"""Which ids a value may hold: those that inputs of the model are given, and those of constants.

Ids stay ids where a node moves them, joins them, chooses among them, or writes them as another type
of integers that holds them all. Everything else computes other numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from obc_onnx.ops.base.effect import Effect

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import RuleSet


@dataclass(frozen=True)
class Ids:
    """What the numbers of a value are.

    Attributes:
        inputs: Inputs of the model that they come from.
        constants: Numbers that the graph itself puts beside those.
        most: The largest number that every integer type on the way holds.
        computed: Labels of nodes on the way that may make other numbers of them.
    """

    inputs: frozenset[str] = frozenset()
    constants: frozenset[int] = frozenset()
    most: int = np.iinfo(np.int64).max
    computed: tuple[str, ...] = ()


_UNKNOWN = Ids(computed=("a constant that callers may set, or numbers that are no integers",))


def find_ids(graph: Graph, rules: RuleSet) -> dict[str, Ids]:
    """Follow ids from the integer inputs of a model through its nodes, subgraphs apart.

    Returns:
        For every value that an integer input reaches, and every integer constant, what it holds.
    """
    found = {
        port.name: Ids(frozenset([port.name]), most=_largest(port.dtype))
        for port in graph.inputs
        if np.issubdtype(port.dtype, np.integer)
    }
    for name in graph.initializers.keys() - graph.overridable:
        array = graph.initializers[name]
        if np.issubdtype(array.dtype, np.integer):
            found[name] = Ids(constants=frozenset(np.unique(array).tolist()))
    for node in graph.nodes:
        ids = _behind(node, rules, found)
        if ids is not None:
            found |= dict.fromkeys(filter(None, node.outputs), ids)
    return found


def _behind(node: Node, rules: RuleSet, known: Mapping[str, Ids]) -> Ids | None:
    """Say what a node gives; None where that has nothing to do with ids."""
    passed = _passed(node, rules)
    read = [known.get(name, _UNKNOWN) for name in passed]
    if any(ids.inputs for ids in read):
        joined = _joined(read)
        return replace(joined, most=min(joined.most, _converted(node, rules)))
    if Effect.MEASURES in rules.effect(node):
        return None
    others = (known[name].inputs for name in (*node.inputs, *node.captures) if name in known)
    inputs = frozenset[str]().union(*others)
    if read and not inputs:
        return _joined(read)  # numbers of constants, however often
    return Ids(inputs, computed=(node.label,)) if inputs else None


def _passed(node: Node, rules: RuleSet) -> Sequence[str]:
    """Name the values of which the outputs of a node hold numbers, and no others; else none."""
    effect, rule = rules.effect(node), rules.find(node)
    if Effect.JOINS in effect:
        return node.inputs
    if Effect.CHOOSES in effect:
        return node.inputs[1:]
    if Effect.MOVES in effect or (rule is not None and _integer(rule.converts_to(node))):
        return node.inputs[:1]
    return ()


def _converted(node: Node, rules: RuleSet) -> int:
    rule = rules.find(node)
    kind = _integer(0 if rule is None else rule.converts_to(node))
    return np.iinfo(np.int64).max if kind is None else _largest(kind)


def _integer(data_type: int) -> np.dtype[np.integer] | None:
    """Return an ONNX type of integers; None for any other."""
    kind: Any = helper.tensor_dtype_to_np_dtype(data_type) if data_type else np.dtype(object)
    return kind if np.issubdtype(kind, np.integer) else None


def _largest(kind: np.dtype[np.integer]) -> int:
    return int(np.iinfo(kind).max)


def _joined(parts: Iterable[Ids]) -> Ids:
    whole = Ids()
    for ids in parts:
        whole = Ids(
            whole.inputs | ids.inputs,
            whole.constants | ids.constants,
            min(whole.most, ids.most),
            (*whole.computed, *ids.computed),
        )
    return whole
