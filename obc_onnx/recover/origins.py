"""Which outputs of a layer a value is made of, position by position.

A run of the twin carries, beside the values, the number of the position in a layer's output that
each came from, through every node that only moves positions. Whatever else reads them uses them.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, fx

from obc_onnx.ops.base.effect import NO_EFFECT, Effect
from obc_onnx.twin.lockstep import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.recover.layers import Layer
    from obc_onnx.twin.module import TorchTwin

_SCALES = Effect.MULTIPLIES | Effect.DIVIDES
"""By one number, these leave an output what it is, but for a factor."""


class Origin(NamedTuple):
    """What a value is made of: positions of what a layer gives, each times one and the same number.

    Attributes:
        layer: It.
        shape: Of what it gives.
        positions: Flat, of the shape of the value.
    """

    layer: Layer
    shape: tuple[int, ...]
    positions: Tensor

    @property
    def outputs(self) -> Tensor:
        """Which output of the layer is at each position, such as a channel."""
        stride = math.prod(self.shape[self.layer.writes + 1 :])
        return self.positions // stride % self.shape[self.layer.writes]

    @property
    def places(self) -> Tensor:
        """Where in a sample it is that the layer gives this output, such as a token."""
        return self.positions - self.outputs * math.prod(self.shape[self.layer.writes + 1 :])

    def shares(self, other: Origin) -> bool:
        """Say whether both are made of some same output."""
        if self.layer is not other.layer:
            return False
        many = self.shape[self.layer.writes]
        own, there = (o.outputs.flatten().bincount(minlength=many) > 0 for o in (self, other))
        return bool((own & there).any())


class Origins(fx.Interpreter):
    """A run that follows the outputs of layers.

    Args:
        twin: In evaluation mode.
        graph: That it was made from.
        layers: To follow.
        rules: What is known of operators.

    Attributes:
        of: By node of the twin, what its value is made of.
        uses: What every computation but moves and sizes was given of what was followed.
    """

    def __init__(
        self, twin: TorchTwin, graph: Graph, layers: Iterable[Layer], rules: RuleSet
    ) -> None:
        super().__init__(twin)
        self._graph, self._rules = graph, rules
        self._starts = {layer.output: layer for layer in layers}
        self._moved: dict[fx.Node, tuple[Layer, tuple[int, ...], Any]] = {}
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
        if layer is None and len(sources) == 1 and self._moves(n, sources[0], value):
            own, shape, positions = self._moved[sources[0]]
            self._note(n, own, shape, self._move(n, sources[0], positions))
            return value
        if Effect.MEASURES not in self._effect(n):  # which looks at no values
            self.uses += [self.of[node] for node in sources if node in self.of]
        if layer is not None and isinstance(value, Tensor):
            positions = torch.arange(value.numel(), device=value.device).reshape(value.shape)
            self._note(n, layer, tuple(value.shape), positions)
        return value

    def _note(self, n: fx.Node, layer: Layer, shape: tuple[int, ...], positions: Any) -> None:
        self._moved[n] = layer, shape, positions
        if isinstance(positions, Tensor):
            self.of[n] = Origin(layer, shape, positions)

    def _moves(self, n: fx.Node, source: fx.Node, value: Any) -> bool:
        """Say whether a node does nothing to the values of `source` but move and scale them."""
        if n.target is operator.getitem:
            return True
        effect = self._effect(n)
        others = [node for node in n.all_input_nodes if node is not source]
        if effect & _SCALES:
            numbers = [torch.as_tensor(self.env[node]).numel() for node in others]
            same = isinstance(value, Tensor) and value.ndim == self._moved[source][2].ndim
            return same and numbers == [1] and (Effect.MULTIPLIES in effect or n.args[0] is source)
        # by constants and sizes, so that all samples move alike
        fixed = all(
            node.op == "get_attr" or not isinstance(self.env[node], Tensor) for node in others
        )
        return Effect.MOVES in effect and n.args[0] is source and fixed

    def _move(self, n: fx.Node, source: fx.Node, positions: Any) -> Any:
        if self._effect(n) & _SCALES:
            return positions
        arguments = fx.node.map_arg(
            n.args, lambda node: positions if node is source else self.env[node]
        )
        assert callable(n.target)
        return n.target(*arguments, **n.kwargs)

    def _effect(self, n: fx.Node) -> Effect:
        node = self._graph.producers.get(n.meta.get("onnx", ("",))[0])
        return NO_EFFECT if node is None else self._rules.effect(node)
