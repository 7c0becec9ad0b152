"""Take units out that do nothing, until none is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from obc_onnx.coupling.analysis import Clock, analyse
from obc_onnx.graph.node import is_float
from obc_onnx.stripping.find import Finding, find
from obc_onnx.stripping.scenes import Scenes, make_scenes
from obc_onnx.surgery.cut import remove_units

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.rule import RuleSet

    Shape = tuple[int, ...]
    Kept = dict[str, dict[int, NDArray[np.int64]]]


@dataclass(frozen=True)
class Stripped:
    """A graph without units that did nothing.

    Attributes:
        graph: Without them.
        looked_at: What they were found in: the original, with zeros in place of small weights where
            that was asked for.
        rounds: What went each time that the graph was looked at; units are those of that time.
        kept: For each initializer that shrank, for each axis, which of its first positions stay.
        scenes: Runs of the original.
        coupling: Of what is left, at the sizes of the first run.
    """

    graph: Graph
    looked_at: Graph
    rounds: tuple[tuple[Finding, ...], ...]
    kept: Kept
    scenes: Scenes
    coupling: Coupling


def strip_graph(
    graph: Graph,
    shapes: Mapping[str, Shape] | None,
    rules: RuleSet,
    seed: int,
    below: float = 0.0,
) -> Stripped:
    """Remove units that do nothing; what is left computes the same, at any sizes.

    A unit that goes may leave others that then do nothing. So the graph is looked at again, until
    nothing is found.

    Args:
        graph: What to look at.
        shapes: Sizes of dynamic inputs, by input name.
        rules: What is known of operators.
        seed: Of the inputs of runs.
        below: Weights of products, their biases and scales of norms that are not larger count as
            zeros, and are written as such; with 0 the result is exact.
    Raises:
        ModelError: ONNX Runtime does not run the graph.
    """
    first = scenes = make_scenes(graph, shapes, rules, seed)
    if below > 0:
        flushed = scenes.coupling.graph.edit(dict(_flushed(scenes.coupling, below)))
        scenes = make_scenes(flushed, shapes, rules, seed)
    looked_at = scenes.coupling.graph
    rounds: list[tuple[Finding, ...]] = []
    kept: Kept = {}
    found = find(scenes)
    while found.findings:
        rounds.append(found.findings)
        edited = found.edits.apply(scenes.coupling.graph)
        smaller = _cut(scenes, edited, found.kept, kept)
        scenes = make_scenes(smaller, shapes, rules, seed)
        found = find(scenes)
    kept = {name: axes for name, axes in kept.items() if name in graph.initializers}
    return Stripped(scenes.coupling.graph, looked_at, tuple(rounds), kept, first, scenes.coupling)


def composed(first: Kept, then: Kept) -> Kept:
    """Say which positions stay after two cuts; the second numbers what the first has left."""
    found = {name: dict(axes) for name, axes in first.items()}
    for name, axes in then.items():
        own = found.setdefault(name, {})
        for axis, positions in axes.items():
            own[axis] = own[axis][positions] if axis in own else positions
    return found


def _cut(
    scenes: Scenes, edited: Graph, kept: Mapping[str, NDArray[np.bool_]], so_far: Kept
) -> Graph:
    """Remove units from an edited graph, and note what stays of each initializer."""
    first = scenes.runs[0]
    shapes = {name: array.shape for name, array in first.feed.items()}
    coupling, _ = analyse(edited, shapes, scenes.coupling.rules, Clock())
    keep = {coupling.by_name[name].dim: flags for name, flags in kept.items()}
    so_far |= composed(so_far, coupling.kept_positions(keep))
    return remove_units(coupling, keep)


def _flushed(coupling: Coupling, below: float) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield weights with zeros in place of small numbers, where that changes any."""
    graph = coupling.graph
    names: dict[str, None] = {}
    for role in coupling.roles:
        slots = [role.slot] if role.bias is None else [role.slot, role.bias]
        if role.kind != "scales":
            names |= dict.fromkeys(role.node.inputs[s] for s in slots if role.node.has_input(s))
    for node in graph.nodes:
        norm = coupling.rules.channel_norm(node)
        if norm is not None:
            names[node.inputs[norm.scale]] = None
    for name in names:
        array = graph.initializers.get(name)
        if array is not None and is_float(array.dtype):
            small = (np.abs(array) <= below) & (array != 0)
            if small.any():
                yield name, np.where(small, np.zeros_like(array), array)
