"""Which outputs of a layer a value is made of, position by position.

A run of the twin carries, beside the values, the number of the output that each position came
from, through every node that only moves positions. Whatever else reads an output uses it.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from obc_onnx.recover.lockstep import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from obc_onnx.graph import Graph
    from obc_onnx.module import TorchTwin
    from obc_onnx.recover.layers import Layer

_MOVES = frozenset({"Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}) | {
    "Transpose",
    "Unsqueeze",
}
_SCALES = frozenset({"Div", "Mul"})
"""By one number, these leave an output what it is, but for a factor."""
_SIZES = frozenset({"Shape", "Size"})
"""These look at no values."""


class Origin(NamedTuple):
    """What a value is made of: outputs of a layer, each times one number for the whole value."""

    layer: Layer
    outputs: Tensor
    """Their numbers, of the shape of the value."""

    def shares(self, other: Origin) -> bool:
        """Say whether both are made of some same output."""
        if self.layer is not other.layer:
            return False
        many = max(int(origin.outputs.max()) for origin in (self, other)) + 1
        own, there = (origin.outputs.flatten().bincount(minlength=many) for origin in (self, other))
        return bool(((own > 0) & (there > 0)).any())


class Origins(fx.Interpreter):
    """A run that follows the outputs of layers.

    Args:
        twin: In evaluation mode.
        graph: That it was made from.
        layers: To follow.

    Attributes:
        of: By node of the twin, what its value is made of.
        uses: What every computation but moves and sizes was given of what was followed.
    """

    def __init__(self, twin: TorchTwin, graph: Graph, layers: Iterable[Layer]) -> None:
        super().__init__(twin)
        self._graph = graph
        self._starts = {layer.output: layer for layer in layers}
        self._moved: dict[fx.Node, tuple[Layer, Any]] = {}
        self.of: dict[fx.Node, Origin] = {}
        self.uses: list[Origin] = []

    @torch.no_grad()
    def follow(self, inputs: list[Tensor]) -> None:
        """Run once; shapes, and so where outputs go, are those of these inputs."""
        self.run(*inputs)

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and move the numbers of outputs as it moves what they number."""
        value = super().run_node(n)
        sources = [node for node in n.all_input_nodes if node in self._moved]
        layer = self._starts.get(name_of(n))
        if layer is not None and isinstance(value, Tensor):
            size = value.shape[layer.writes]
            shape = [size if i == layer.writes else 1 for i in range(value.ndim)]
            self._note(n, layer, torch.arange(size).reshape(shape).expand(value.shape))
        elif len(sources) == 1 and self._moves(n, sources[0]):
            own, numbers = self._moved[sources[0]]
            self._note(n, own, self._move(n, sources[0], numbers))
        elif self._op_type(n) not in _SIZES:
            self.uses += [self.of[node] for node in sources if node in self.of]
        return value

    def _note(self, n: fx.Node, layer: Layer, numbers: Any) -> None:
        self._moved[n] = layer, numbers
        if isinstance(numbers, Tensor):
            self.of[n] = Origin(layer, numbers)

    def _moves(self, n: fx.Node, source: fx.Node) -> bool:
        """Say whether a node does nothing to the values of `source` but move and scale them."""
        if n.target is operator.getitem:
            return True
        op_type = self._op_type(n)
        if op_type in _SCALES:
            others = [self.env[other] for other in n.all_input_nodes if other is not source]
            divides = op_type == "Div" and n.args[0] is not source
            return not divides and all(torch.as_tensor(other).numel() == 1 for other in others)
        return op_type in _MOVES and n.args[0] is source

    def _move(self, n: fx.Node, source: fx.Node, numbers: Any) -> Any:
        if self._op_type(n) in _SCALES:
            return numbers
        arguments = fx.node.map_arg(
            n.args, lambda node: numbers if node is source else self.env[node]
        )
        assert callable(n.target)
        return n.target(*arguments, **n.kwargs)

    def _op_type(self, n: fx.Node) -> str:
        """Return the ONNX operator of a node, empty where it has none of the standard."""
        node = self._graph.producers.get(n.meta.get("onnx", ("",))[0])
        return "" if node is None or node.domain else node.op_type
