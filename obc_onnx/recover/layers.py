"""Layers that are linear in a weight: what it multiplies, and the weight as a matrix.

The bias of a product may be a node behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from obc_onnx.ops.base.effect import Effect
from obc_onnx.twin.codes import count_uses, stored
from obc_onnx.twin.tensors import parameter_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, fx

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import Role, Tap
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.twin.codes import Stored
    from obc_onnx.twin.module import TorchTwin

_MATRIX = 2


@dataclass(frozen=True)
class Layer:
    """A node whose output is linear in a weight.

    Attributes:
        node: In the cut graph.
        output: What it gives, with its bias.
        weight: Its initializer.
        own: Whether no other layer uses the weight, so that it may change.
        bias: The initializer of its bias, of shape [outputs]; None where there is none of its own.
        addend: The slot of a bias that is not its own; None where there is none.
        slot: Where the input enters.
        reads: The axis of the input that is contracted.
        writes: The axis of the output along which the weight's outputs lie.
        first: Whether these are along the first axis of the weight.
        width: How many outputs there are.
        reach: How many numbers make one output, over a kernel too.
        blocks: In how many blocks inputs and outputs are apart, along the first axis.
        patches: What lays out the inputs of a convolution, see `Rule.patches`.
    """

    node: Node
    output: str
    weight: str
    own: bool
    bias: str | None
    addend: int | None
    slot: int
    reads: int
    writes: int
    first: bool
    width: int
    reach: int
    blocks: int
    patches: Callable[..., Tensor] | None

    def matrix(self, weight: Tensor) -> Tensor:
        """Bring a weight into the shape [blocks, outputs, inputs * kernel] of its block."""
        parts = weight.reshape(self.blocks, len(weight) // self.blocks, weight.shape[1], -1)
        parts = parts if self.first else parts.transpose(1, 2)
        return parts.flatten(2)

    def weight_of(self, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Undo `matrix`.

        Args:
            matrix: Shape [blocks, outputs, inputs * kernel].
            shape: Of the weight.
        """
        parts = matrix.reshape(*matrix.shape[:2], -1, math.prod(shape[2:]))
        parts = parts if self.first else parts.transpose(1, 2)
        return parts.reshape(shape)

    def inputs(self, call: fx.Node, arguments: tuple[Any, ...], together: int) -> Iterator[Tensor]:
        """Lay out what the weight multiplies, shape [samples, *positions, inputs, *kernel].

        Args:
            call: Of the twin.
            arguments: What it is given.
            together: Samples of a convolution at a time.
        """
        own = call.meta["slots"].index(self.slot)
        x: Tensor = arguments[own]
        if self.patches is None:
            yield x.movedim(self.reads, -1)
            return
        for start in range(0, len(x), together):
            part = x[start : start + together]
            yield self.patches(part, arguments[1 - own], **call.kwargs)

    def added(self, call: fx.Node, arguments: tuple[Any, ...]) -> Tensor | None:
        """Return what is added to the product and stays; its last axis is that of the outputs."""
        if self.addend is None:
            return None
        value: Tensor = arguments[call.meta["slots"].index(self.addend)]
        return value

    def outputs(self, y: Tensor) -> Tensor:
        """Lay out outputs, shape [samples, *positions, outputs]."""
        return y.movedim(self.writes, -1)


def find_layers(coupling: Coupling, graph: Graph, twin: TorchTwin) -> Iterator[Layer]:
    """Find the layers of a cut graph of which weight or bias may change, in its order.

    Args:
        coupling: Of the original.
        graph: The cut one.
        twin: Of the cut one: its parameters learn.
    """
    for layer in _candidates(coupling, graph, twin, alone=True):
        if layer.own or layer.bias is not None:
            yield layer


def find_shared(coupling: Coupling, graph: Graph, twin: TorchTwin) -> list[list[Layer]]:
    """Find the layers that are applied several times, each as the list of all its uses.

    Weight and bias may change for all of them together, if nothing else uses either.

    Args:
        coupling: Of the original.
        graph: The cut one.
        twin: Of the cut one: its parameters learn.
    """
    uses: dict[str, list[Layer]] = {}
    for layer in _candidates(coupling, graph, twin, alone=False):
        uses.setdefault(layer.weight, []).append(layer)
    found = []
    for name, layers in uses.items():
        n_uses, bias = partial(count_uses, graph, coupling.rules), layers[0].bias
        own = n_uses(name) == len(layers)
        known = bias is None or n_uses(bias) == len(layers)
        alike = len({(u.bias, u.first, u.width, u.reach, u.blocks) for u in layers}) == 1
        if len(layers) > 1 and alike and known and (own or bias is not None):
            found.append([replace(layer, own=own) for layer in layers])
    return found


def _candidates(
    coupling: Coupling, graph: Graph, twin: TorchTwin, *, alone: bool
) -> Iterator[Layer]:
    learned = {name for name, _ in twin.named_parameters()}
    roles: dict[tuple[str, int], list[Role]] = {}
    for role in coupling.roles:
        roles.setdefault((role.node.key, role.slot), []).append(role)
    for node in graph.nodes:
        for slot, name in enumerate(node.inputs):
            own = roles.get((node.key, slot), [])
            weight = stored(graph, coupling.rules, name) if own else None
            if weight is not None and parameter_name(weight.name) in learned:
                layer = _layer(coupling, graph, node, weight, own, alone=alone)
                if layer is not None:
                    yield layer


def _layer(
    coupling: Coupling,
    graph: Graph,
    node: Node,
    weight: Stored,
    roles: list[Role],
    *,
    alone: bool,
) -> Layer | None:
    """Make a layer of what a weight does, None where it does something else too.

    Args:
        coupling: Of the original.
        graph: The cut one.
        node: Of that.
        weight: Where it is stored.
        roles: What it does there.
        alone: Whether its bias may be that of no other node.
    """
    reads = [role for role in roles if role.kind == "reads"]
    writes = [role for role in roles if role.kind == "writes"]
    if len(roles) != _MATRIX or len(reads) != 1 or len(writes) != 1:
        return None
    read, written = reads[0], writes[0]
    rule, shape = coupling.rules.find(node), graph.initializers[weight.name].shape
    if rule is None or not rule.is_linear(node):
        return None
    patches = rule.patches()
    flat = len(coupling.shapes[node.key]) < _MATRIX
    placed = _at(read.tap, "input") and _at(written.tap, "output")
    if flat or not placed or (len(shape) != _MATRIX and patches is None):
        return None
    assert read.tap is not None
    assert written.tap is not None
    if patches is None and not _same_rows(coupling, node, read.tap, written.tap):
        return None
    output, addend, bias = node.key, None, None
    width = shape[written.axis]
    if written.bias is not None and node.has_input(written.bias):
        bias = _bias_of(coupling.rules, graph, node.inputs[written.bias], alone=alone)
        addend = written.bias if bias is None else None
    elif written.tap.axis == len(coupling.shapes[output]) - 1:
        bias, output = _bias_behind(coupling.rules, graph, output, width, alone=alone)
    blocks = 1 if patches is None else node.integer("group", 1)
    place = (read.tap.slot, read.tap.axis, written.tap.axis)
    first = written.axis == 0
    width = width if first else width * blocks
    reach = math.prod(shape) // width
    matrix = (addend, *place, first, width, reach, blocks, patches)
    own = count_uses(graph, coupling.rules, weight.name) == 1
    return Layer(node, output, weight.name, own, bias, *matrix)


def _at(tap: Tap | None, where: str) -> bool:
    return tap is not None and tap.at == where


def _same_rows(coupling: Coupling, node: Node, read: Tap, written: Tap) -> bool:
    """Say whether input and output have their other axes in the same order."""
    inputs, outputs = list(coupling.axes[node.inputs[read.slot]]), list(coupling.axes[node.key])
    del inputs[read.axis], outputs[written.axis]
    return inputs == outputs


def _bias_behind(
    rules: RuleSet, graph: Graph, output: str, width: int, *, alone: bool
) -> tuple[str | None, str]:
    """Return a constant along the last axis that is added to a value, and the sum; else the value.

    Exporters write a fully connected layer on tokens as a product and a sum.
    """
    readers = graph.consumers.get(output, ())
    if graph.escapes(output) or len(readers) != 1:
        return None, output
    node, slot = readers[0]
    if Effect.ADDS not in rules.effect(node):
        return None, output
    bias = _bias_of(rules, graph, node.inputs[1 - slot], alone=alone)
    fits = bias is not None and graph.initializers[bias].size == width
    return (bias, node.key) if fits else (None, output)


def _bias_of(rules: RuleSet, graph: Graph, operand: str, *, alone: bool) -> str | None:
    """Return where a bias is stored; None where an operand is none that may change."""
    found = stored(graph, rules, operand)
    if found is None:
        return None
    array = graph.initializers[found.name]
    fits = (
        array.ndim == 1
        and array.size > 1
        and (not alone or count_uses(graph, rules, found.name) == 1)
    )
    return found.name if fits else None
