"""Weights that reach a layer as other numbers than those that are stored, and their scales.

A weight may be stored as whole numbers that a node dequantises, as floats that are quantised and
dequantised, or as floats that are cast. Either way the twin holds the floats, see `weights`, and
rounds them on each pass. Where they move, the scales that they are rounded by have to follow, and
with those the scales of biases, which are products of two others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from onnx import helper

from obc_onnx.graph.node import is_float
from obc_onnx.ops.quantised.linear import spread
from obc_onnx.twin.tensors import parameter_name, to_tensor, wide
from obc_onnx.twin.weights import encoding_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.twin.module import TorchTwin
    from obc_onnx.twin.weights import Encoding

SCALE, ZERO = 1, 2
"""Slots of a node that quantises or dequantises."""
_FACTORS = 2
"""Of a product: an input and a weight."""
_SAME = 1e-4
"""Share of a scale by which it may miss the product that it is, as float16 rounds it."""


@dataclass(frozen=True)
class Stored:
    """Where the numbers of an operand are stored.

    Attributes:
        name: The initializer.
        through: The nodes that it passes on its way, in order: they round, and do nothing else.
    """

    name: str
    through: tuple[Node, ...]


def stored(graph: Graph, rules: RuleSet, operand: str) -> Stored | None:
    """Follow an operand back to the initializer that it is, but for rounding; None for others."""
    through: list[Node] = []
    while operand not in graph.initializers:
        node = graph.producers.get(operand)
        if node is None or not _rounds(rules, node):
            return None
        through.append(node)
        operand = node.inputs[0]
    return Stored(operand, tuple(reversed(through)))


def count_uses(graph: Graph, rules: RuleSet, name: str) -> int:
    """Count what uses a weight, behind the nodes that round it; 0 where more than nodes does."""
    while not graph.escapes(name):
        readers = graph.consumers.get(name, [])
        node, slot = readers[0]
        if len(readers) > 1 or slot or not _rounds(rules, node):
            return len(readers)
        name = node.key
    return 0


def _rounds(rules: RuleSet, node: Node) -> bool:
    """Say whether a node gives its first input as it is, but for rounding."""
    rule = rules.find(node)
    kind = 0 if rule is None else rule.converts_to(node)
    return rules.recodes(node) or (kind > 0 and is_float(helper.tensor_dtype_to_np_dtype(kind)))


class Scale(NamedTuple):
    """What an operand is rounded by.

    Attributes:
        names: The initializers with the scale: a node that quantises and one that dequantises may
            have their own.
        encoding: How the numbers are rounded.
    """

    names: tuple[str, ...]
    encoding: Encoding


def scale_of(graph: Graph, rules: RuleSet, found: Stored) -> Scale | None:
    """Return what an operand is rounded by; None where it is not, or where others share it."""
    nodes = [node for node in found.through if rules.recodes(node)]
    names = tuple(dict.fromkeys(node.inputs[SCALE] for node in nodes))
    keys = {node.key for node in nodes}
    for name in names:
        if name not in graph.initializers or graph.escapes(name):
            return None
        if any(node.key not in keys for node, _ in graph.consumers[name]):
            return None
    if not nodes or any(node.read_at(ZERO) not in {"", *graph.initializers} for node in nodes):
        return None
    return Scale(names, encoding_by(nodes[0], graph))


class Tie(NamedTuple):
    """A bias whose scale is the product of those of what it is added to.

    Kernels of whole numbers take that for granted.

    Attributes:
        bias: The bias.
        scale: What it is rounded by; None where that is not its own, and so cannot change.
        factors: The initializers whose product the scale is.
    """

    bias: Stored
    scale: Scale | None
    factors: tuple[str, ...]


def find_ties(graph: Graph, rules: RuleSet) -> Iterator[Tie]:
    """Find the biases whose scales are products of others'."""
    for node in graph.nodes:
        slot = rules.bias_slot(node)
        if slot is None or not node.has_input(slot):
            continue
        bias = stored(graph, rules, node.inputs[slot])
        factors = [
            graph.producers[name].inputs[SCALE]
            for i, name in enumerate(node.inputs)
            if i != slot and name in graph.producers and rules.recodes(graph.producers[name])
        ]
        known = len(factors) == _FACTORS and graph.initializers.keys() >= set(factors)
        if bias is None or not bias.through or not known:
            continue
        own = bias.through[-1].read_at(SCALE)
        if own in graph.initializers and _is_product(graph, own, factors):
            alone = count_uses(graph, rules, bias.name) == 1
            yield Tie(bias, scale_of(graph, rules, bias) if alone else None, tuple(factors))


def _is_product(graph: Graph, own: str, factors: list[str]) -> bool:
    left, right, found = (
        graph.initializers[name].reshape(-1).astype(np.float64) for name in (*factors, own)
    )
    if {left.size, right.size} - {1, found.size}:
        return False
    return bool(np.allclose(found, left * right, rtol=_SAME, atol=0))


class Codes:
    """How the weights of a twin are rounded, and what has to follow where they move.

    A scale becomes the least one with which a weight takes no larger numbers than the original's
    took: so it stays symmetric, or within 7 bits, wherever a quantiser has made it so. Zeros stay.

    Args:
        coupling: Of the original.
        graph: The cut one.
        twin: Of the cut one; its weights and scales are written to.

    Attributes:
        twin: That one.
    """

    def __init__(self, coupling: Coupling, graph: Graph, twin: TorchTwin) -> None:
        self._original, self.twin = coupling.graph, twin
        rules = coupling.rules
        self._scales: dict[str, Scale | None] = {}
        for node in graph.nodes:
            for operand in node.inputs if not rules.recodes(node) else ():
                found = stored(graph, rules, operand)
                if found is not None and found.through:
                    self._scales[found.name] = scale_of(graph, rules, found)
        self._ties = list(find_ties(graph, rules))

    def write(self, name: str, value: Tensor) -> None:
        """Give a weight another value, and fit what it is rounded by.

        Args:
            name: Its initializer.
            value: Of its shape.
        """
        weight = self.twin.get_parameter(parameter_name(name))
        weight.data.copy_(value)
        scale = self._scales.get(name)
        if scale is None or any(tie.bias.name == name for tie in self._ties):
            return
        ties = [tie for tie in self._ties if set(tie.factors) & set(scale.names)]
        if any(tie.scale is None for tie in ties):
            return
        fitted = self._least(name, scale, weight.detach())
        for own in scale.names:
            self._buffer(own).copy_(fitted)
        for tie in ties:
            assert tie.scale is not None
            left, right = (self._buffer(factor).reshape(-1) for factor in tie.factors)
            for own in tie.scale.names:
                held = self._buffer(own)
                held.copy_((left * right).expand(held.numel()).reshape(held.shape))

    def _buffer(self, name: str) -> Tensor:
        return self.twin.get_buffer(parameter_name(name))

    def _least(self, name: str, scale: Scale, weight: Tensor) -> Tensor:
        """Return the least scale with which a weight is within the numbers of the original's."""
        lowest, highest = _levels(self._original, name, scale.encoding)
        old = self._buffer(scale.names[0])
        encoding = scale.encoding
        numbers = torch.arange(old.numel(), device=old.device).reshape(old.shape)
        owners = spread(numbers, weight, encoding.axis, encoding.block_size)
        owners = owners.expand(weight.shape).flatten()
        needed = torch.zeros(old.numel(), dtype=torch.float64, device=old.device)
        for level in (lowest, highest):
            if level:
                sizes = weight.double().flatten() / level
                needed.scatter_reduce_(0, owners, sizes, "amax")
        needed = needed.to(old.dtype).reshape(old.shape)
        return torch.where(needed > 0, needed, old)


def _levels(graph: Graph, name: str, encoding: Encoding) -> tuple[float, float]:
    """Return the least and the greatest number that a weight takes, from the one that is 0."""
    arrays = graph.initializers
    whole = to_tensor(arrays[name])
    if is_float(arrays[name].dtype):
        whole = encoding.encode(whole, lambda key: to_tensor(arrays[key]))
    whole = wide(whole)
    if encoding.zero:
        zero = to_tensor(arrays[encoding.zero])
        whole = whole - spread(zero, whole, encoding.axis, encoding.block_size)
    return min(float(whole.min()), 0.0), max(float(whole.max()), 0.0)
