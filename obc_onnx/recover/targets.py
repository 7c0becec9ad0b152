"""What the output of a layer should be: the original's, or what makes a sum right again.

Where an activation follows that is flat beyond some bound, such as Relu below 0, outputs need not
be the original's there: they need only be beyond it as well. Source: Zhang et al., Accelerating
Very Deep Convolutional Networks, arXiv 1505.06798.

Where a layer's output is added to a value that is there already, such as a shortcut, or one of the
two is subtracted from the other, the sum is the target: so the layer repairs what earlier ones have
broken on the other way, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from obc_onnx.axes.expressions import leaves, mask
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.rule import EVERYWHERE
from obc_onnx.ops.norms.batch import affine_of
from obc_onnx.twin.tensors import wide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.recover.layers import Layer
    from obc_onnx.surgery.cut import Cut
    from obc_onnx.twin.lockstep import Lockstep

    Numbers = NDArray[np.float64]

_SUMS = Effect.ADDS | Effect.SUBTRACTS
_SAME = Effect.MOVES | Effect.IN_ORDER
"""Where axes stay, too, what does this does nothing."""
_DEAD = 1e-6
"""Of the largest factor: below it an output goes nowhere, and has no target."""


@dataclass(frozen=True)
class Target:
    """Where the wanted outputs of a layer come from.

    Attributes:
        value: The original's value.
        kept: For each of its axes that shrinks, which positions stay.
        other: The value of the cut network that is added on the way, None where none is.
        factor: What outputs are multiplied by on the way, shape [outputs].
        shift: What is added to them after that.
        sign: 1 where the other value is added, -1 where it is subtracted.
        changing: Between which numbers the value matters to the only node that reads it; beyond
            them what that gives stays what it is there.
    """

    value: str
    kept: Mapping[int, NDArray[np.int64]]
    other: str | None
    factor: Numbers
    shift: Numbers
    sign: int = 1
    changing: tuple[float, float] = EVERYWHERE

    @property
    def saturates(self) -> bool:
        """Whether outputs may differ from those that are wanted, and nothing behind differs."""
        return self.changing != EVERYWHERE

    def outputs(
        self, layer: Layer, wanted: Tensor, other: Tensor | None, some: tuple[Any, ...] = ()
    ) -> Tensor:
        """Return what the layer should give, shape [samples, *positions, outputs].

        Args:
            layer: Whose target it is.
            wanted: The original's value.
            other: What the cut network adds.
            some: Picks rows, as an index of samples and positions; all by default.
        """
        rest = self._rows(layer, wanted, some)
        if other is not None:
            rest = rest - self.sign * self._rows_of_other(layer, wanted, other, some)
        return self._before(rest)

    def limits(
        self, layer: Layer, wanted: Tensor, other: Tensor | None, some: tuple[Any, ...] = ()
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the outputs that make the value what `changing` says, lower and higher ones.

        Args:
            layer: Whose target it is.
            wanted: The original's value.
            other: What the cut network adds.
            some: Picks rows, as an index of samples and positions; all by default.
        Returns:
            What broadcasts to the shape of outputs; None where nothing is beyond.
        """
        added = torch.zeros((), device=wanted.device)
        if other is not None:
            added = self.sign * self._rows_of_other(layer, wanted, other, some)
        low, high = (
            None if math.isinf(bound) else self._before(bound - added) for bound in self.changing
        )
        dead = torch.from_numpy(~self._alive).to(wanted.device)
        if (self.factor < 0).any():
            falls = torch.from_numpy(self.factor < 0).to(wanted.device)
            low, high = _chosen(falls, high, low, -math.inf), _chosen(falls, low, high, math.inf)
        return (
            None if low is None else low.masked_fill(dead, -math.inf),
            None if high is None else high.masked_fill(dead, math.inf),
        )

    def shape(self, layer: Layer, wanted: Tensor) -> list[int]:
        """Return samples and positions of the outputs, without computing any."""
        shape = self._kept_shape(wanted)
        del shape[layer.writes]
        return shape

    def _kept_shape(self, wanted: Tensor) -> list[int]:
        return [
            len(self.kept[axis]) if axis in self.kept else size
            for axis, size in enumerate(wanted.shape)
        ]

    def _rows(self, layer: Layer, wanted: Tensor, some: tuple[Any, ...]) -> Tensor:
        """Pick rows of the original's value, and only then its outputs: those are many copies."""
        aside = {axis: own for axis, own in self.kept.items() if axis != layer.writes}
        rows = layer.outputs(select_kept(wanted, aside))[some]
        if layer.writes in self.kept:
            rows = select_kept(rows, {rows.ndim - 1: self.kept[layer.writes]})
        return wide(rows)

    def _rows_of_other(
        self, layer: Layer, wanted: Tensor, other: Tensor, some: tuple[Any, ...]
    ) -> Tensor:
        return wide(layer.outputs(other.expand(self._kept_shape(wanted)))[some])

    @property
    def _alive(self) -> NDArray[np.bool_]:
        size = np.abs(self.factor)
        alive: NDArray[np.bool_] = size > _DEAD * size.max()
        return alive

    def _before(self, value: Tensor) -> Tensor:
        """Return the outputs that become a value; the last axis is theirs."""
        inverse = np.divide(1.0, self.factor, out=np.zeros_like(self.factor), where=self._alive)
        factor, shift = (torch.from_numpy(v).to(value) for v in (inverse, self.shift))
        return (value - shift) * factor


def _chosen(
    where: Tensor, first: Tensor | None, second: Tensor | None, none: float
) -> Tensor | None:
    """Choose between limits that may be missing."""
    if first is None and second is None:
        return None
    some = torch.full(where.shape, none, device=where.device)
    return torch.where(where, some if first is None else first, some if second is None else second)


def target_of(layer: Layer, cut: Cut, run: Lockstep) -> Target:
    """Follow the output of a layer to a sum or a difference.

    Args:
        layer: Of the cut graph.
        cut: The graph, with what stays at the batch of the run.
        run: Of the cut graph: it knows in which order values are computed.
    """
    coupling, keep, graph = cut.coupling, cut.keep, cut.pruned
    factor, shift = np.ones(layer.width), np.zeros(layer.width)
    name, axes = layer.output, coupling.axes[layer.output]
    while not graph.escapes(name) and len(graph.consumers.get(name, ())) == 1:
        node, slot = graph.consumers[name][0]
        if coupling.axes.get(node.key) != axes:  # else the layer is broadcast
            break
        effect = coupling.rules.effect(node)
        other = node.inputs[1 - slot] if effect & _SUMS else ""
        if other and other not in graph.initializers:
            if run.places[other] > run.calls[layer.node.key]:
                break
            own, sign = _signs(effect, slot)
            kept = kept_along(coupling, keep, node.key)
            changing = _changing(cut, node.key)
            return Target(node.key, kept, other, own * factor, own * shift, sign, changing)
        last = Effect.ADDS in effect and layer.writes == len(axes) - 1
        affine = _affine(node, slot, coupling.rules, graph, layer, other if last else "")
        if affine is None:
            break
        factor, shift = factor * affine[0], shift * affine[0] + affine[1]
        name = node.key
    changing = _changing(cut, name)
    if changing == EVERYWHERE:
        name, factor, shift = layer.output, np.ones(layer.width), np.zeros(layer.width)
    kept = kept_along(coupling, keep, name)
    return Target(name, kept, None, factor, shift, changing=changing)


def _changing(cut: Cut, name: str) -> tuple[float, float]:
    """Say between which numbers a value of the cut graph matters to the only node that reads it."""
    graph, rules = cut.pruned, cut.coupling.rules
    readers = graph.consumers.get(name, ())
    if graph.escapes(name) or len(readers) != 1 or readers[0][1] != 0:
        return EVERYWHERE
    return rules.changing(readers[0][0], graph.initializers)


def _signs(effect: Effect, slot: int) -> tuple[int, int]:
    """Return the sign of what enters a sum or a difference in a slot, and that of the other."""
    signs = (1, -1) if Effect.SUBTRACTS in effect else (1, 1)
    return signs[slot], signs[1 - slot]


def _affine(
    node: Node, slot: int, rules: RuleSet, graph: Graph, layer: Layer, constant: str
) -> tuple[Numbers | float, Numbers | float] | None:
    """Return factor and shift of a node that changes each channel alone, else None.

    Args:
        node: What reads the output of the layer, or what became of it.
        slot: Where.
        rules: What is known of operators.
        graph: The cut one.
        layer: The layer.
        constant: What the node adds along the last axis, where the outputs lie.
    """
    if slot == 0 and _SAME in rules.effect(node):
        return 1.0, 0.0
    if slot == 0 and rules.recodes(node):
        return _rounding(node, rules, graph)
    norm = rules.channel_norm(node)
    if norm is not None and norm.stored and layer.writes == 1:
        slots = (norm.scale, norm.bias, norm.mean, norm.variance)
        names = [node.inputs[slot] for slot in slots]
        held = [graph.initializers[name] for name in names if name in graph.initializers]
        if len(held) == len(names) and all(array.ndim == 1 for array in held):
            scale, bias, mean, var = (array.astype(np.float64) for array in held)
            return affine_of(scale, bias, mean, var, norm.epsilon)
    if constant and graph.initializers[constant].ndim == 1:
        return 1.0, graph.initializers[constant].astype(np.float64)
    return None


def _rounding(node: Node, rules: RuleSet, graph: Graph) -> tuple[float, float] | None:
    """Return factor and shift of a node that quantises or dequantises by one scale, else None.

    None as well where it cuts off what lies on one side of 0, as an activation does.
    """
    line = rules.line(node, graph.initializers)
    low, high = rules.changing(node, graph.initializers)
    return line if low < 0 < high else None


def at_batch(coupling: Coupling, keep: Keep, size: int) -> tuple[Keep, int]:
    """Return what stays at a batch, and the batch: another where only the analysis' is known."""
    found = coupling.at_batch(keep, size)
    if found is not None or coupling.batch is None:
        return found or keep, size
    return keep, coupling.batch.size


def kept_along(coupling: Coupling, keep: Keep, name: str) -> dict[int, NDArray[np.int64]]:
    """Return for each axis of a value that shrinks which positions stay."""
    cut = {dim for dim, own in keep.items() if not own.all()}
    axes = enumerate(coupling.axes[name])
    shrinking: dict[int, Any] = {i: expr for i, expr in axes if not cut.isdisjoint(leaves(expr))}
    masks = {i: mask(expr, keep) for i, expr in shrinking.items()}
    return {i: np.flatnonzero(own) for i, own in masks.items() if not own.all()}


def select_kept(value: Tensor, kept: Mapping[int, NDArray[np.int64]]) -> Tensor:
    """Return the positions of a value that stay, along each axis."""
    for axis, positions in kept.items():
        value = value.index_select(axis, torch.from_numpy(positions).to(value.device))
    return value
