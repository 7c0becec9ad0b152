"""Give convolutions back the batch norms that an exporter folded into them, and fold them again.

A network without norms trains poorly. A norm whose scale undoes its own statistics changes nothing,
so it can stand behind any convolution once mean and variance of its channels are measured. What it
puts out keeps the convolution's name: every name of the original still exists.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper, numpy_helper

from obc_onnx.axes.expressions import leaves
from obc_onnx.errors import DataError, InvariantError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.node import is_float
from obc_onnx.graph.precision import is_quantised
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import infer_shapes
from obc_onnx.measuring.outputs import batch_size_of
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.norms.batch import affine_of
from obc_onnx.progress import track

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.samples.samples import Samples

MEASURED = 2048
"""Samples to measure on, at most: statistics hardly change with more."""
EPSILON = float(np.float32(1e-5))
"""Of the norms, as a file holds it; it keeps the scale of a channel that never varies above 0."""
_ROWS = 32
"""Samples per run where the batch is dynamic: all outputs of convolutions are held at once."""
_RUN_BYTES = 2**29
"""What they may take; where they take more, there are several passes."""
_NORM = "BatchNormalization"
_STORED_SINCE = 7
"""Norms of opsets before this take the statistics of the batch unless told otherwise."""


@dataclass(frozen=True)
class Unfolded:
    """A graph with norms behind its convolutions.

    Attributes:
        graph: Computes what `original` computes; it is `original` where nothing was unfolded.
        original: The graph without the norms.
        norms: Keys of the inserted nodes; in `original` each is the key of the convolution.
        rules: What is known of operators.
    """

    graph: Graph
    original: Graph
    norms: tuple[str, ...]
    rules: RuleSet


def unfold_norms(
    graph: Graph, samples: Samples, seed: int, rules: RuleSet = DEFAULT_RULES
) -> Unfolded:
    """Put a batch norm behind every convolution that may have had one.

    Scale and bias undo the mean and biased variance that each channel has at the convolution's own
    output. Left out are convolutions whose output is one of the graph or meets a norm already,
    whose weight or bias is shared or computed, that give one value per channel in a run, or whose
    statistics their type cannot hold; and all of a graph that rounds activations to whole numbers.

    Args:
        graph: The model.
        samples: To measure on, at most `MEASURED` of them; labels are not used.
        seed: Of their choice.
        rules: What is known of operators.
    Returns:
        What computes the same up to rounding.
    Raises:
        DataError: The samples do not fill a batch of a static size.
        ModelError: ONNX Runtime cannot run the model.
    """
    types = _find_folded(graph, rules)
    moments = _measure(graph, types, samples, seed) if types else {}
    found = {key: measured.undone(types[key]) for key, measured in moments.items()}
    norms = {key: parameters for key, parameters in found.items() if parameters}
    return Unfolded(_insert(graph, norms) if norms else graph, graph, tuple(norms), rules)


def _find_folded(graph: Graph, rules: RuleSet) -> dict[str, np.dtype[Any]]:
    """Find the convolutions that can have a norm, by key, and the types of their weights."""
    if is_quantised(graph):
        return {}
    outputs, arrays = {port.name for port in graph.outputs}, graph.initializers
    own = {name for name in arrays if is_float(arrays[name].dtype) and not graph.is_shared(name)}
    return {
        node.key: arrays[node.inputs[1]].dtype
        for node in graph.nodes
        if _filters_of(graph, rules, node) is not None
        if node.opset >= _STORED_SINCE and node.key not in outputs
        if own.issuperset(filter(None, node.inputs[1:]))
        if all(rules.channel_norm(user) is None for user, _ in graph.consumers.get(node.key, ()))
    }


def _filters_of(graph: Graph, rules: RuleSet, node: Node) -> NDArray[np.int64] | None:
    """Return which channel each element of a weight makes, for a convolution and nothing else."""
    rule = rules.find(node)
    weight = graph.initializers.get(node.inputs[1]) if node.has_input(1) else None
    if rule is None or weight is None or not rule.is_linear(node):
        return None
    return rule.filters_of(node, weight.shape)


class _Moments:
    """Mean and sum of squared deviations of every channel, over all that was added."""

    def __init__(self) -> None:
        self._count = self._most = 0
        self._mean = self._square = np.zeros(1)

    def add(self, values: NDArray[Any]) -> None:
        """Add the values of one run, shape [batch, channels, ...]; large sums are never subtracted.

        Source: Chan, Golub and LeVeque, Updating Formulae for Computing Sample Variances, 1979.
        """
        if values.size == 0:
            return
        others, count = (0, *range(2, values.ndim)), values.size // values.shape[1]
        wide = values.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is left out later
            mean = wide.mean(others, keepdims=True)
            wide -= mean
            square = np.square(wide, out=wide).sum(others)
            total, shift = self._count + count, mean.reshape(-1) - self._mean
            self._mean = self._mean + shift * (count / total)
            self._square = self._square + square + shift**2 * (self._count * count / total)
        self._count, self._most = total, max(self._most, count)

    def undone(self, dtype: np.dtype[Any]) -> tuple[NDArray[Any], ...]:
        """Return scale, bias, mean and variance of a norm that changes nothing; () without one."""
        if self._most <= 1:
            return ()
        with np.errstate(invalid="ignore", over="ignore"):
            mean, var = self._mean.astype(dtype), (self._square / self._count).astype(dtype)
            scale = np.sqrt(var.astype(np.float64) + EPSILON).astype(dtype)
        finite = np.isfinite([mean.astype(np.float64), scale.astype(np.float64)]).all()
        return (scale, mean, mean, var) if finite else ()


def _measure(
    graph: Graph, types: Mapping[str, np.dtype[Any]], samples: Samples, seed: int
) -> dict[str, _Moments]:
    """Measure values of these types: in one pass where those of a run fit into memory."""
    size = batch_size_of(graph, _ROWS)
    order = np.random.default_rng(seed).permutation(len(samples))[: max(MEASURED, size)]
    if graph.batch is not None:
        order = order[: len(order) // size * size]
    if len(order) == 0:
        raise DataError(
            f"{len(samples)} samples do not fill the model's batch of {size}, on which norms would "
            f"be measured: give more, or export the model with a dynamic batch"
        )
    feed = samples.feed(slice(0, size))
    shapes = infer_shapes(graph, {name: array.shape for name, array in feed.items()}, feed)
    ends = np.cumsum([math.prod(shapes[key]) * types[key].itemsize for key in types])
    passes: dict[int, list[str]] = {}
    for key, end in zip(types, ends // _RUN_BYTES, strict=True):
        passes.setdefault(int(end), []).append(key)
    moments = {key: _Moments() for key in types}
    for keys in passes.values():
        session = Session(graph, outputs=keys)
        for start in track(range(0, len(order), size), "measuring channels"):
            rows = np.sort(order[start : start + size])
            for key, values in session.run(samples.feed(rows)).items():
                moments[key].add(values)
    return moments


def _insert(graph: Graph, norms: Mapping[str, tuple[NDArray[Any], ...]]) -> Graph:
    """Put norms behind nodes; `norms` holds scale, bias, mean and variance by `Node.key`."""
    model, nodes, taken = graph.to_model(), [], set[str]()
    for node in model.graph.node:
        nodes.append(node)
        key = node.output[0]
        if key in norms:
            endings = ("unnormed", "norm", "norm.scale", "norm.bias", "norm.mean", "norm.var")
            raw, label, *names = (graph.fresh_name(f"{key}.{end}", taken) for end in endings)
            taken.update((raw, label, *names))
            node.output[0] = raw
            nodes.append(helper.make_node(_NORM, [raw, *names], [key], label, epsilon=EPSILON))
            model.graph.initializer.extend(map(numpy_helper.from_array, norms[key], names))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return Graph.from_model(model).with_batch(graph.batch_axes)


def fold_norms(graph: Graph, unfolded: Unfolded) -> Graph:
    """Fold the inserted norms into their convolutions, and give all values their names back.

    W' = W s along the written axis and b' = (b - mean) s + bias, s = scale / sqrt(var + epsilon),
    in float64. A convolution without a bias gets one, or the function would be another, unless all
    of b' is mere rounding. Otherwise the result is what the same cut makes of `unfolded.original`.

    Args:
        graph: `unfolded.graph`, or what surgery and training made of it.
        unfolded: How it was made.
    Raises:
        InvariantError: `graph` was not made from `unfolded.graph`.
    """
    if not unfolded.norms:
        return graph
    arrays, added = dict(graph.initializers), dict[tuple[str, int], str]()
    for key in unfolded.norms:
        norm = graph.producers.get(key)
        if norm is None or unfolded.rules.channel_norm(norm) is None:
            raise InvariantError(f"folding: norm '{key}' was put into the graph, but is not there")
        conv = graph.producers[norm.inputs[0]]
        for slot, array in _folded(graph, unfolded.rules, conv, norm).items():
            if not conv.has_input(slot):
                added[key, slot] = unfolded.original.fresh_name(f"{key}.bias", arrays)
            arrays[added.get((key, slot)) or conv.inputs[slot]] = array
    return _repeat(unfolded, graph, arrays, added)


def _folded(graph: Graph, rules: RuleSet, conv: Node, norm: Node) -> dict[int, NDArray[Any]]:
    """Return W' and b' by input slot, without a new bias that is only rounding."""
    dtype = graph.initializers[conv.inputs[1]].dtype
    weight, scale, shift, mean, var = (
        graph.initializers[name].astype(np.float64) for name in (conv.inputs[1], *norm.inputs[1:])
    )
    factor, offset = affine_of(scale, shift, mean, var, norm.number("epsilon", EPSILON))
    filters = _filters_of(graph, rules, conv)
    if filters is None:
        raise InvariantError(f"folding: {conv.label} is no convolution")
    folded = (weight * factor[filters]).astype(dtype)
    own = graph.initializers[conv.inputs[2]].astype(np.float64) if conv.has_input(2) else 0.0
    bias = own * factor + offset
    rounding = np.spacing(np.maximum(np.abs(mean * factor), np.abs(shift)).astype(dtype))
    if not conv.has_input(2) and (np.abs(bias) <= rounding.astype(np.float64)).all():
        return {1: folded}
    return {1: folded, 2: bias.astype(dtype)}


def _repeat(
    unfolded: Unfolded,
    graph: Graph,
    arrays: Mapping[str, NDArray[Any]],
    added: Mapping[tuple[str, int], str],
) -> Graph:
    """Edit the original as its graph with norms was edited: so nothing else can differ."""
    raw = {unfolded.graph.producers[key].inputs[0]: key for key in unfolded.norms}
    before, after = (
        {raw.get(n.key, n.key): n for n in g.nodes if n.key not in unfolded.norms}
        for g in (unfolded.graph, graph)
    )
    attributes, rewired, copied = {}, dict(added), dict[str, tuple[str, dict[int, str]]]()
    pairs = [(key, key) for key in after if key in before]
    for key, source in pairs:
        new, old = after[key], before[source]
        slots = zip_longest(new.inputs, old.inputs, fillvalue="")
        fresh = {slot: name for slot, (name, was) in enumerate(slots) if name != was}
        if key in before:
            numbers = {n: v for n, v in new.attributes.items() if isinstance(v, (int, float, list))}
            attributes[key] = {**dict.fromkeys(old.attributes.keys() - new.attributes), **numbers}
            rewired |= {(key, slot): name for slot, name in fresh.items()}
        else:
            copied[key] = (source, fresh)
        pairs += [(n, old.inputs[slot]) for slot, n in fresh.items() if n in after.keys() - before]
    in_order = {key: copied[key] for key in reversed(after) if key in copied}  # see `Graph.edit`
    gone = {output for key in before.keys() - after for output in before[key].outputs}
    return unfolded.original.edit(arrays, attributes, rewired, in_order, gone)


def same_units(coupling: Coupling, keep: Keep, unfolded: Coupling) -> Keep:
    """Say what to keep of a graph with norms so that the same units go.

    Args:
        coupling: Of the original graph.
        keep: For each of its dims that loses units, which units stay.
        unfolded: Of the graph with norms.
    Returns:
        The same for the dims of `unfolded`.
    Raises:
        InvariantError: The groups of one are not those of the other.
    """
    found: dict[Dim, Dim] = {}
    for group in coupling.groups:
        for role in group.members if group.dim in keep else ():
            name = role.node.inputs[role.slot]
            there = leaves(unfolded.axes[name][role.axis])
            for old, new in zip(leaves(coupling.axes[name][role.axis]), there, strict=False):
                if old is group.dim and found.setdefault(old, new) is not new:
                    raise InvariantError(f"with norms, group '{group.name}' differs at '{name}'")
    translated = {found[dim]: kept for dim, kept in keep.items() if dim in found}
    if len(translated) < len(keep) or translated.keys() - {g.dim for g in unfolded.groups}:
        raise InvariantError("with norms, groups are joined, frozen or gone")
    plain, normed = (
        {(name, axis, *kept) for name, axes in cut.items() for axis, kept in axes.items()}
        for cut in (coupling.kept_positions(keep), unfolded.kept_positions(translated))
    )
    wrong = {str(name) for name, *_ in plain ^ normed} & coupling.graph.initializers.keys()
    if wrong:
        raise InvariantError(f"with norms, other positions of {sorted(wrong)} would be cut")
    return translated
