"""What a graph computes, apart from the numbers that its initializers hold.

Most edits change numbers alone: weights are cut, masked, disturbed, repaired. So the graph of
onnx-graphsurgeon holds none, and all graphs of one structure share it, its nodes, and how they are
written. What holds numbers is then free of the cycles of that graph: it goes when nothing uses it.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues

from obc_onnx.errors import InvariantError
from obc_onnx.graph.export import export_nodes, header_of, tensor_notes
from obc_onnx.graph.node import Node, domain_of, port_of, view_of
from obc_onnx.graph.node_lists import (
    by_key,
    detach,
    drop_detached,
    insert_behind,
    insert_copies,
    insert_in_front,
    insert_new,
    rename_value,
)
from obc_onnx.graph.operators import IDENTITY

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.graph.node_lists import NewNode
    from obc_onnx.graph.opaque import Opaque

    Arrays = Mapping[str, NDArray[Any]]
    Place = tuple[str, int]


class _Elsewhere(LazyValues):  # type: ignore[misc]
    """Stands for the numbers of an initializer."""

    def load(self) -> NoReturn:
        """Refuse: whoever asks has the wrong graph."""
        raise InvariantError("a structure holds no numbers: ask the graph for its initializers")


_ELSEWHERE = _Elsewhere(onnx.numpy_helper.from_array(np.zeros((), np.float32)))


class Structure:
    """Nodes and how they are wired; edits return another one.

    Attributes:
        nodes: In topological order.
        constants: Names of the initializers that nodes use, in the order in which they are written.
        inputs: Graph inputs that a caller has to feed; initializers are not among them.
        outputs: Graph outputs.
        original: The model that it was imported from, without the data of weights.
        opaque: What was set apart from that model.
    """

    def __init__(self, surgeon: gs.Graph, original: onnx.ModelProto, opaque: Opaque) -> None:
        self._surgeon = surgeon
        self.original, self.opaque = original, opaque
        versions = {domain_of(entry.domain): entry.version for entry in original.opset_import}
        self.nodes = tuple(view_of(node, versions) for node in surgeon.nodes)
        self.constants = tuple(
            name for name, t in surgeon.tensors().items() if isinstance(t, gs.Constant)
        )
        fed = {tensor.name for tensor in surgeon.inputs} - set(self.constants)
        self.inputs = tuple(port_of(value) for value in original.graph.input if value.name in fed)
        self.outputs = tuple(port_of(value) for value in original.graph.output)

    @classmethod
    def taken_from(
        cls, surgeon: gs.Graph, original: onnx.ModelProto, opaque: Opaque
    ) -> tuple[Structure, dict[str, NDArray[Any]]]:
        """Part an imported graph into its structure and what its initializers hold.

        Args:
            surgeon: It is left without numbers.
            original: What it was imported from, see `described`.
            opaque: What was set apart from it.
        """
        arrays = {}
        for name, tensor in surgeon.tensors().items():
            if isinstance(tensor, gs.Constant):
                arrays[name], tensor.values = tensor.values, _ELSEWHERE
        return cls(surgeon, original, opaque), arrays

    def filled(self, arrays: Arrays) -> gs.Graph:
        """Return a graph that holds the numbers too, to be changed freely."""
        copy = self._surgeon.copy()
        tensors = copy.tensors()
        for name in self.constants:
            tensors[name].values = arrays[name]
        return copy

    @cached_property
    def skeleton(self) -> onnx.ModelProto:
        """The model as it is written, but for its initializers; not to be changed."""
        model = header_of(self.original)
        model.graph.node.extend(export_nodes(self._surgeon, self.original))
        return model

    @cached_property
    def messages(self) -> dict[str, onnx.NodeProto]:
        """Every node as it is written, by `Node.key`; copies of initializers are not merged."""
        written = self.skeleton.graph.node
        return {node.key: message for node, message in zip(self.nodes, written, strict=True)}

    @cached_property
    def header(self) -> onnx.ModelProto:
        """What describes the model, without what it computes."""
        return header_of(self.original)

    @cached_property
    def notes(self) -> dict[str, onnx.TensorProto]:
        """What the file says of each constant: its doc string and metadata."""
        return dict(tensor_notes(self.original.graph))

    @cached_property
    def producers(self) -> dict[str, Node]:
        """The node that computes each value."""
        return {output: node for node in self.nodes for output in node.outputs if output}

    @cached_property
    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """Every (node, input slot) that uses each value."""
        uses: dict[str, list[tuple[Node, int]]] = {}
        for node in self.nodes:
            for slot, name in enumerate(node.inputs):
                if name:
                    uses.setdefault(name, []).append((node, slot))
        return uses

    @cached_property
    def escaping(self) -> set[str]:
        """Values that are used by subgraphs or as an output."""
        captured = {name for node in self.nodes for name in node.captures}
        return captured | {port.name for port in self.outputs}

    @cached_property
    def names(self) -> set[str]:
        """Every name that is taken, in subgraphs too, and by what an export lists beside them."""
        names = {port.name for port in self.original.graph.input} | self.opaque.names
        for scope in (self._surgeon, *self._surgeon.subgraphs(recursive=True)):
            names.update(scope.tensors())
        return names

    def edited(
        self,
        constants: Iterable[str],
        attributes: Mapping[str, Mapping[str, Any]],
        rewired: Mapping[Place, str],
        copied: Mapping[str, tuple[str, Mapping[int, str]]],
        dispensable: Container[str],
    ) -> Structure:
        """Return a changed copy, see `Graph.edit`; this one where only numbers change.

        Args:
            constants: Initializers that are given numbers, new ones among them.
            attributes: As in `Graph.edit`, and so are the others.
            rewired: What input slots are to use.
            copied: Nodes to copy.
            dispensable: Values whose nodes may go.
        """
        if not attributes and not rewired and not copied:
            return self
        copy = self._surgeon.copy()
        tensors = copy.tensors()
        for name in constants:
            if name not in tensors:
                tensors[name] = gs.Constant(name, _ELSEWHERE)
        nodes = by_key(copy)
        tensors |= insert_copies(copy, {name: key for name, (key, _) in copied.items()})
        for key, changes in attributes.items():
            merged = {**nodes[key].attrs, **changes}
            nodes[key].attrs = {name: value for name, value in merged.items() if value is not None}
        for name, (_, inputs) in copied.items():
            for slot, used in inputs.items():
                tensors[name].inputs[0].inputs[slot] = tensors[used]
        released = []
        for (key, slot), name in rewired.items():
            slots = nodes[key].inputs
            while len(slots) <= slot:
                slots.append(gs.Variable.empty())
            released.append(slots[slot])
            slots[slot] = tensors[name]
        self._drop_unused(copy, released, dispensable)
        return Structure(copy, self.original, self.opaque)

    def bypassed(self, stand_ins: Mapping[str, str]) -> Structure:
        """Return a copy in which values stand in for others, see `Graph.bypass`."""
        copy = self._surgeon.copy()
        tensors, nodes, released = copy.tensors(), by_key(copy), []
        for node in self.nodes:
            if node.key not in stand_ins:
                continue
            name = stand_ins[node.key]
            while name in stand_ins:
                name = stand_ins[name]
            own, taken = nodes[node.key], tensors[name]
            given = own.outputs[0]
            released += own.inputs
            if node.key in self.escaping:
                own.op, own.domain, own.attrs, own.inputs = IDENTITY, "", {}, [taken]
                continue
            for reader in list(given.outputs):
                reader.inputs = [taken if slot is given else slot for slot in reader.inputs]
            released.append(given)
        self._drop_unused(copy, released, self.producers)
        return Structure(copy, self.original, self.opaque)

    def _drop_unused(
        self, copy: gs.Graph, released: list[gs.Tensor], dispensable: Container[str]
    ) -> None:
        while released:
            tensor = released.pop()
            for node in list(tensor.inputs):
                outputs = [output for output in node.outputs if output.name]
                if all(
                    o.name in dispensable and not o.outputs and o.name not in self.escaping
                    for o in outputs
                ):
                    released.extend(node.inputs)
                    detach(node)
        drop_detached(copy)

    def redefined(
        self, values: Mapping[str, tuple[str, Sequence[NewNode]]], constants: Iterable[str]
    ) -> Structure:
        """Return a copy in which new nodes give some values, see `Graph.redefine`."""
        copy = self._surgeon.copy()
        tensors = copy.tensors() | {name: gs.Constant(name, _ELSEWHERE) for name in constants}
        insert_behind(copy, values, tensors)
        return Structure(copy, self.original, self.opaque)

    def with_nodes(
        self,
        constants: Iterable[str],
        nodes: Sequence[NewNode],
        rewired: Mapping[Place, str],
        renamed: Mapping[str, str],
        sizes: Mapping[Place, int],
    ) -> Structure:
        """Return a copy with more nodes, see `Graph.insert`."""
        copy = self._surgeon.copy()
        tensors, own = copy.tensors(), by_key(copy)
        for name in constants:
            if name not in tensors:
                tensors[name] = gs.Constant(name, _ELSEWHERE)
        insert_new(copy, [new for new in nodes if new.before], tensors)
        for (key, slot), name in rewired.items():
            own[key].inputs[slot] = tensors[name]
        for old, name in renamed.items():
            tensors[name] = rename_value(copy, old, name)
        insert_new(copy, [new for new in nodes if not new.before], tensors)
        return Structure(copy, _redescribed(self.original, renamed, sizes), self.opaque)

    def with_operators(
        self, op_type: str, inserted: Mapping[Place, tuple[str, str, np.dtype[Any]]]
    ) -> Structure:
        """Return a copy in which a binary operator with a constant feeds some input slots.

        Args:
            op_type: Of the operator.
            inserted: For each slot what the operator computes, its constant, and the type of both.
        """
        copy = self._surgeon.copy()
        nodes, added = by_key(copy), dict[str, list[gs.Node]]()
        for (key, slot), (name, operand, dtype) in inserted.items():
            node = nodes[key]
            operands = [node.inputs[slot], gs.Constant(operand, _ELSEWHERE)]
            result = gs.Variable(name, dtype=dtype)
            added.setdefault(key, []).append(
                gs.Node(op_type, name, inputs=operands, outputs=[result])
            )
            node.inputs[slot] = result
        insert_in_front(copy, added)
        return Structure(copy, self.original, self.opaque)


def _redescribed(
    original: onnx.ModelProto, renamed: Mapping[str, str], sizes: Mapping[Place, int]
) -> onnx.ModelProto:
    """Return a description in which values have other names, and outputs of the model other sizes.

    What is said of a node is found by the name of what it computes.
    """
    model = onnx.ModelProto()
    model.CopyFrom(original)
    for node in model.graph.node if renamed else ():
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    ports = {port.name: port for port in model.graph.output}
    for (name, axis), size in sizes.items():
        dims = ports[name].type.tensor_type.shape.dim
        if axis < len(dims) and dims[axis].HasField("dim_value"):
            dims[axis].dim_value = size
    return model
