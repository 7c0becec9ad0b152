"""Which uses of a vector are one parameter, and copies for those that are not.

Exporters merge equal vectors, such as biases of zeros, which would tie layers together that have
nothing else in common. So nodes get copies, but not those that are one layer applied again, as in a
siamese network: what is one parameter has to be cut, repaired and trained as one.

Two nodes are one layer where they do the same with the same constants, and share a matrix, or
stand at the same place beside two nodes that do: a norm behind a shared convolution, a sum behind a
shared product.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from obc_onnx.graph.constants import escaping
from obc_onnx.graph.node import domain_of, holds_weights
from obc_onnx.graph.node_lists import detach, drop_detached

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    Pair = tuple[gs.Node, gs.Node]

_SEVERAL = 2


def give_copies(surgeon: gs.Graph, listed: Collection[str]) -> dict[str, str]:
    """Let every layer have its own copy of a vector of weights.

    Args:
        surgeon: The graph; it is changed in place. The first layer keeps the vector itself.
        listed: Initializers that callers may set, which are not copied.
    Returns:
        For each copy the initializer that it is a copy of.
    """
    stays = escaping(surgeon)
    _lift_identities(surgeon, stays.union(listed))
    taken = stays.union(surgeon.tensors())
    layers = _Layers(surgeon)
    copies: dict[str, str] = {}
    for name, tensor in surgeon.tensors().items():
        if name in listed or not _is_vector(tensor):
            continue
        users = list({id(node): node for node in tensor.outputs if id(node) in layers}.values())
        for first, *others in _parts(users, layers)[1:]:
            key = next(output.name for output in first.outputs if output.name)
            copy = gs.Constant(_fresh(f"{name}.{key}", taken), tensor.values)
            copies[copy.name] = name
            for node in (first, *others):
                _rewire(node, tensor, copy)
    return copies


def merge_copies(copies: Mapping[str, str], arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Find equal copies: for each that is not written, the name of the one that stands for it.

    Args:
        copies: For each copy, what it is a copy of, as `Graph.copies`.
        arrays: What both hold by name.
    """
    found: dict[str, str] = {}
    first: dict[tuple[str, str, tuple[int, ...], bytes], str] = {}
    for name in (*dict.fromkeys(copies.values()), *copies):
        array = arrays.get(name)
        if array is not None:
            content = (copies.get(name, name), array.dtype.name, array.shape, array.tobytes())
            found[name] = first.setdefault(content, name)
    return {name: written for name, written in found.items() if name != written}


def _parts(users: list[gs.Node], layers: _Layers) -> list[list[gs.Node]]:
    """Part the users of a vector into layers, in their order."""
    parts: list[list[gs.Node]] = []
    alike: dict[Hashable, list[list[gs.Node]]] = {}
    for node in users:
        candidates = alike.setdefault(layers.kind(node), [])
        own = next((part for part in candidates if layers.are_one(part[0], node)), None)
        if own is None:
            own = []
            parts.append(own)
            candidates.append(own)
        own.append(node)
    return parts


class _Layers:
    """The nodes of a graph in topological order, and which of them are one layer."""

    def __init__(self, surgeon: gs.Graph) -> None:
        self._ids = {id(node) for node in surgeon.nodes}
        self._sources: dict[int, gs.Tensor] = {}
        for node in filter(_is_identity, surgeon.nodes):
            self._sources[id(node.outputs[0])] = self._source(node.inputs[0])
        read = (self._source(t) for node in surgeon.nodes for t in node.inputs)
        uses = Counter(id(tensor) for tensor in read if _is_matrix(tensor))
        self._any = max(uses.values(), default=0) >= _SEVERAL

    def __contains__(self, node_id: int) -> bool:
        return node_id in self._ids

    def kind(self, node: gs.Node) -> Hashable:
        """Return what is equal for nodes that are one layer, so that few have to be compared."""
        if not self._any:
            return id(node)
        held = (self._source(t) for t in node.inputs)
        return node.op, tuple(id(t) if _is_weight(t) else None for t in held)

    def are_one(self, one: gs.Node, other: gs.Node) -> bool:
        """Say whether two nodes apply one layer: look for a matrix that both sides share."""
        queue: list[Pair] = [(one, other)] if self._any else []
        seen = {(id(one), id(other))}
        for pair in queue:
            if not self._do_the_same(*pair):
                continue
            if any(a is b and _is_matrix(a) for a, b in self._operands(pair)):
                return True
            for found in (*self._producers(pair), *_readers(pair)):
                key = (id(found[0]), id(found[1]))
                inside = key[0] in self and key[1] in self
                if inside and key[0] != key[1] and key not in seen:
                    seen.add(key)
                    queue.append(found)
        return False

    def _do_the_same(self, one: gs.Node, other: gs.Node) -> bool:
        """Say whether two nodes are equal but for what is computed before them."""
        return (
            one.op == other.op
            and domain_of(one.domain) == domain_of(other.domain)
            and len(one.inputs) == len(other.inputs)
            and one.attrs.keys() == other.attrs.keys()
            and all(_equal(value, other.attrs[name]) for name, value in one.attrs.items())
            and all(_fits(a, b) for a, b in self._operands((one, other)))
        )

    def _operands(self, pair: Pair) -> Iterator[tuple[gs.Tensor, gs.Tensor]]:
        """Yield the inputs of two nodes side by side; an Identity is what it copies."""
        one, other = pair
        sides = zip(one.inputs, other.inputs, strict=True)
        return ((self._source(a), self._source(b)) for a, b in sides)

    def _source(self, tensor: gs.Tensor) -> gs.Tensor:
        """Return what a value is a copy of; a long chain of Identity nodes is followed once."""
        return self._sources.get(id(tensor), tensor)

    def _producers(self, pair: Pair) -> Iterator[Pair]:
        """Yield the nodes that compute the same input of two nodes, as the same output."""
        for a, b in self._operands(pair):
            if len(a.inputs) == len(b.inputs) == 1:
                one, other = a.inputs[0], b.inputs[0]
                if _places(one.outputs, a) == _places(other.outputs, b):
                    yield one, other


def _fits(one: gs.Tensor, other: gs.Tensor) -> bool:
    """Say whether two inputs may be those of one layer: the same constant, or both computed."""
    if isinstance(one, gs.Constant) != isinstance(other, gs.Constant):
        return False
    if isinstance(one, gs.Constant):
        return one is other or (not _is_weight(one) and _equal(one, other))
    return bool(one.name) == bool(other.name)


def _equal(one: Any, other: Any) -> bool:
    """Compare attributes or constants; subgraphs are never taken to be equal."""
    if isinstance(one, gs.Constant) and isinstance(other, gs.Constant):
        one, other = one.values, other.values
    if isinstance(one, gs.Graph) or type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


def _readers(pair: Pair) -> Iterator[Pair]:
    """Yield the nodes that read the same output of two nodes at the same slot."""
    for a, b in zip(pair[0].outputs, pair[1].outputs, strict=False):
        for one, other in itertools.product(a.outputs, b.outputs):
            if _places(one.inputs, a) == _places(other.inputs, b):
                yield one, other


def _places(tensors: list[gs.Tensor], wanted: gs.Tensor) -> list[int]:
    return [place for place, tensor in enumerate(tensors) if tensor is wanted]


def _lift_identities(surgeon: gs.Graph, stays: AbstractSet[str]) -> None:
    """Let those who read the Identity of a vector of weights read the vector."""
    for node in list(surgeon.nodes):
        if not _is_identity(node):
            continue
        source, target = node.inputs[0], node.outputs[0]
        if stays.isdisjoint((source.name, target.name)) and _is_vector(source):
            for user in list(target.outputs):
                _rewire(user, target, source)
            detach(node)
    drop_detached(surgeon)


def _rewire(node: gs.Node, old: gs.Tensor, new: gs.Tensor) -> None:
    for slot, used in enumerate(node.inputs):
        if used is old:
            node.inputs[slot] = new


def _is_identity(node: gs.Node) -> bool:
    return node.op == "Identity" and not domain_of(node.domain)


def _is_weight(tensor: gs.Tensor) -> bool:
    if not isinstance(tensor, gs.Constant) or isinstance(tensor.dtype, int):
        return False
    return holds_weights(np.dtype(tensor.dtype))


def _lengths(tensor: gs.Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _is_vector(tensor: gs.Tensor) -> bool:
    """Say whether a constant holds numbers of weights along one axis."""
    return _is_weight(tensor) and len(_lengths(tensor)) == 1


def _is_matrix(tensor: gs.Tensor) -> bool:
    """Say whether a constant holds numbers of weights along several axes."""
    return _is_weight(tensor) and len(_lengths(tensor)) >= _SEVERAL


def _fresh(base: str, taken: set[str]) -> str:
    """Return a name that is not taken, and take it."""
    numbered = (f"{base}.{number}" for number in itertools.count(1))
    name = next(name for name in itertools.chain([base], numbered) if name not in taken)
    taken.add(name)
    return name
