"""Load, view, edit and save an ONNX model.

`Graph` is a value: edits return a new one. Its nodes are in topological order. Subgraphs stay where
they are; what they use of the outer graph is listed in `Node.captures`.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from obc_onnx.errors import InvariantError, ModelError
from obc_onnx.files import replacing
from obc_onnx.graph.batch_axes import BatchAxes, declared_axes
from obc_onnx.graph.canonical import canonical, settle
from obc_onnx.graph.copies import merge_copies
from obc_onnx.graph.dense import make_sparse_again, sparse_constants, without_sparse
from obc_onnx.graph.export import (
    FIRST_IR_WITH_DEFAULTS,
    described,
    export,
    export_nodes,
    first_output,
    header_of,
    inner_weights,
    is_weight,
    kept_aside,
    restore_notes,
    tensor_notes,
    used_inside,
)
from obc_onnx.graph.external import bytes_of, data_file, layout, sha256_of, write_arrays
from obc_onnx.graph.node import Node, domain_of, holds_weights, port_of, view_of
from obc_onnx.graph.node_lists import (
    by_key,
    detach,
    drop_detached,
    insert_copies,
    insert_in_front,
)
from obc_onnx.graph.operators import DEQUANTISING
from obc_onnx.graph.outline import (
    MAX_PROTOBUF_BYTES,
    Outline,
    inlined,
    is_left_out,
    serialised,
    without_weights,
)
from obc_onnx.graph.reading import read_model
from obc_onnx.memory import make_room

if TYPE_CHECKING:
    import os
    from collections.abc import Container, Mapping

    from numpy.typing import NDArray

_PROTOBUF_SLACK = 2**24


class Graph:
    """An ONNX model in canonical form (see `canonical`), seen as plain values.

    Attributes:
        nodes: In topological order.
        initializers: Every constant by name; never write into the arrays.
        inputs: Graph inputs that a caller has to feed; initializers are not among them.
        outputs: Graph outputs.
        copies: For each copy of an initializer that canonical form made, the one in the file.
        file_bytes: Size of that file with its external data, or None.
        batch_axes: Where the samples are; what the model declares until `with_batch` knows better.
    """

    def __init__(
        self,
        surgeon: gs.Graph,
        original: onnx.ModelProto,
        sha256: str | None = None,
        copies: Mapping[str, str] | None = None,
        batch_axes: BatchAxes | None = None,
    ) -> None:
        self._surgeon = surgeon
        self._original = original
        self._sha256 = sha256
        self.copies = dict(copies or {})
        self.file_bytes: int | None = None
        tensors = surgeon.tensors()
        self.initializers: dict[str, NDArray[Any]] = {
            name: tensor.values
            for name, tensor in tensors.items()
            if isinstance(tensor, gs.Constant)
        }
        versions = {domain_of(entry.domain): entry.version for entry in original.opset_import}
        self.nodes = tuple(view_of(node, versions) for node in surgeon.nodes)
        fed = {tensor.name for tensor in surgeon.inputs} - set(self.initializers)
        self.inputs = tuple(port_of(value) for value in original.graph.input if value.name in fed)
        self.outputs = tuple(port_of(value) for value in original.graph.output)
        self.batch_axes = batch_axes or declared_axes(self.inputs, self.outputs)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Read a model file, with its external data.

        Raises:
            ModelError: The file is missing, not an ONNX model, or fails the checker.
        """
        path = Path(path)
        graph = cls.from_model(read_model(path), sha256_of(path))
        graph.file_bytes = bytes_of(path)
        return graph

    @classmethod
    def from_model(cls, model: onnx.ModelProto, sha256: str | None = None) -> Graph:
        """Bring a model into canonical form; `model` itself is left as it is.

        Raises:
            ModelError: The model holds no nodes.
        """
        if not model.graph.node:
            raise ModelError("the model holds no nodes: it is not an ONNX model, or an empty one")
        whole = inlined(model)
        surgeon, copies = canonical(without_sparse(whole))
        listed = {port.name for port in whole.graph.input}
        inside = used_inside(whole.graph)  # which surgery may leave as their only use
        original = described(whole, surgeon.tensors().keys() - listed - inside)
        surgeon.import_domains = original.opset_import  # the old ones would keep `whole` alive
        return cls(surgeon, original, sha256, copies)

    @property
    def sha256(self) -> str:
        """Of the files that the model was read from; of all that it holds where there are none."""
        if self._sha256 is None:
            outline = self.outline()
            digest = hashlib.sha256(serialised(outline.model))
            for name, array in outline.weights.items():
                digest.update(f"{name}:{array.dtype.name}:{array.shape}".encode())
                digest.update(array.tobytes())
            self._sha256 = digest.hexdigest()
        return self._sha256

    @property
    def batch(self) -> int | None:
        """How many samples a run takes, None where any number will do."""
        return self.batch_axes.size

    def with_batch(self, batch_axes: BatchAxes) -> Graph:
        """Return this graph with what was found out of its batch."""
        graph = Graph(self._surgeon, self._original, self._sha256, self.copies, batch_axes)
        graph.file_bytes = self.file_bytes
        return graph

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

    def is_shared(self, name: str) -> bool:
        """Say whether a value has more uses than one: by subgraphs and as an output included."""
        return self.escapes(name) or len(self.consumers.get(name, ())) > 1

    def escapes(self, name: str) -> bool:
        """Say whether a value is used by subgraphs or as an output."""
        return name in self._escaping

    @cached_property
    def _escaping(self) -> set[str]:
        captured = {name for node in self.nodes for name in node.captures}
        return captured | {port.name for port in self.outputs}

    def dequantised_by(self, name: str) -> list[Node]:
        """List the DequantizeLinear nodes that read a value; none where it serves otherwise too."""
        uses = self.consumers.get(name, [])
        if self.escapes(name) or any(n.op_type != DEQUANTISING or slot for n, slot in uses):
            return []
        return [node for node, _ in uses]

    @property
    def params(self) -> int:
        """Elements of the initializers that hold weights."""
        stored = sum(array.size for array in self.stored.values() if holds_weights(array.dtype))
        return stored + self.params_aside

    @property
    def params_aside(self) -> int:
        """Those of the weights that no node of the graph uses, such as those of subgraphs alone."""
        return sum(math.prod(t.dims) for t in self.aside.values() if is_weight(t))

    @cached_property
    def enclosed(self) -> dict[str, int]:
        """How many elements of weights subgraphs alone use, by the labels of their nodes."""
        messages = {first_output(message): message for message in self._original.graph.node}
        found = {}
        for node in self.nodes:
            inner = inner_weights(messages[node.key]) if node.key in messages else 0
            outer = [self.aside[name] for name in self.aside.keys() & set(node.captures)]
            found[node.label] = inner + sum(math.prod(t.dims) for t in outer if is_weight(t))
        return {label: count for label, count in found.items() if count}

    @cached_property
    def aside(self) -> dict[str, onnx.TensorProto]:
        """Constants that stay as they are in the file, see `kept_aside`."""
        return {tensor.name: tensor for tensor in kept_aside(self._original, self.initializers)}

    @property
    def held(self) -> set[str]:
        """Names of all constants of the main graph."""
        return self.initializers.keys() | self.aside.keys()

    @cached_property
    def notes(self) -> dict[str, onnx.TensorProto]:
        """What the file says of each constant: its doc string and metadata."""
        return dict(tensor_notes(self._original.graph))

    @cached_property
    def header(self) -> onnx.ModelProto:
        """What describes the model, without what it computes."""
        return header_of(self._original)

    @cached_property
    def messages(self) -> dict[str, onnx.NodeProto]:
        """Every node as it is written, by `Node.key`; copies of initializers are not merged."""
        written = export_nodes(self._surgeon, self._original)
        return {node.key: message for node, message in zip(self.nodes, written, strict=True)}

    @cached_property
    def merged(self) -> dict[str, str]:
        """Under which name each copy is written, where it equals another one or the original."""
        return merge_copies(self.copies, self.initializers)

    @property
    def stored(self) -> dict[str, NDArray[Any]]:
        """The initializers that are written, by name: equal copies of one are merged."""
        return {n: array for n, array in self.initializers.items() if n not in self.merged}

    @cached_property
    def _names(self) -> set[str]:
        """Every name that is taken, in subgraphs too, and by what an export lists beside them."""
        names = {port.name for port in self._original.graph.input}
        for scope in (self._surgeon, *self._surgeon.subgraphs(recursive=True)):
            names.update(scope.tensors())
        return names

    def fresh_name(self, base: str, taken: Container[str] = ()) -> str:
        """Return a name for a new value: `base`, with a number where that is taken.

        Args:
            base: What to call the value.
            taken: More names that must not be used.
        """
        numbered = (f"{base}.{number}" for number in itertools.count(1))
        names = itertools.chain([base], numbered)
        return next(name for name in names if name not in self._names and name not in taken)

    def edit(
        self,
        initializers: Mapping[str, NDArray[Any]] | None = None,
        attributes: Mapping[str, Mapping[str, Any]] | None = None,
        rewired: Mapping[tuple[str, int], str] | None = None,
        copied: Mapping[str, tuple[str, Mapping[int, str]]] | None = None,
        dispensable: Container[str] = (),
    ) -> Graph:
        """Return a changed copy.

        Args:
            initializers: New arrays by name; a name that is not there yet is added.
            attributes: New attribute values by `Node.key`; None takes an attribute away.
            rewired: The initializer, or the value of a copied node, that input slot (`Node.key`,
                slot) is to use; the slot may be one that the node leaves out.
            copied: For the value that the copy of a node with one output is to compute, the
                original (`Node.key`) and what its input slots use instead.
            dispensable: Values whose nodes go when that leaves them without a use.
        Raises:
            InvariantError: A new name is that of a value which is no initializer.
        """
        make_room(sum(array.nbytes for array in (initializers or {}).values()))
        copy = self._surgeon.copy()
        tensors = copy.tensors()
        for name, array in (initializers or {}).items():
            if name in self._names and name not in self.initializers:
                raise InvariantError(f"'{name}' is not an initializer: it cannot be given a value")
            if name in tensors:
                tensors[name].values = np.asarray(array, order="C")
            else:
                tensors[name] = gs.Constant(name, np.asarray(array, order="C"))
        nodes = by_key(copy)
        tensors |= insert_copies(copy, {name: key for name, (key, _) in (copied or {}).items()})
        for key, changes in (attributes or {}).items():
            merged = {**nodes[key].attrs, **changes}
            nodes[key].attrs = {name: value for name, value in merged.items() if value is not None}
        for name, (_, inputs) in (copied or {}).items():
            for slot, used in inputs.items():
                tensors[name].inputs[0].inputs[slot] = tensors[used]
        released = []
        for (key, slot), name in (rewired or {}).items():
            inputs = nodes[key].inputs
            while len(inputs) <= slot:
                inputs.append(gs.Variable.empty())
            released.append(inputs[slot])
            inputs[slot] = tensors[name]
        self._drop_unused(copy, released, dispensable)
        return Graph(copy, self._original, None, self.copies, self.batch_axes)

    def settled(self) -> Graph:
        """Return this graph as it is read back: more of it may have turned out constant."""
        copy = self._surgeon.copy()
        copies = settle(copy, self._original)
        return Graph(copy, self._original, None, {**self.copies, **copies}, self.batch_axes)

    def known_as(self, other: Graph) -> Graph:
        """Return this graph under the hash and file size of another, which a plan is to be for.

        Args:
            other: The same network with other weights.
        """
        graph = Graph(self._surgeon, self._original, other.sha256, self.copies, self.batch_axes)
        graph.file_bytes = other.file_bytes
        return graph

    def _drop_unused(
        self, copy: gs.Graph, released: list[gs.Tensor], dispensable: Container[str]
    ) -> None:
        while released:
            tensor = released.pop()
            for node in list(tensor.inputs):
                outputs = [output for output in node.outputs if output.name]
                if all(
                    o.name in dispensable and not o.outputs and not self.escapes(o.name)
                    for o in outputs
                ):
                    released.extend(node.inputs)
                    detach(node)
        drop_detached(copy)

    def insert_before(
        self, op_type: str, operands: Mapping[tuple[str, int], NDArray[Any]]
    ) -> Graph:
        """Return a copy in which a binary operator with a constant feeds some input slots.

        Args:
            op_type: Of the operator.
            operands: The constant, for each slot (`Node.key`, slot).
        """
        copy = self._surgeon.copy()
        nodes, taken = by_key(copy), set[str]()
        added: dict[str, list[gs.Node]] = {}
        for (key, slot), operand in operands.items():
            node = nodes[key]
            name = self.fresh_name(f"{node.inputs[slot].name}.{op_type}.{key}.{slot}", taken)
            taken.add(name)
            constant = gs.Constant(self.fresh_name(f"{name}.operand", taken), operand)
            taken.add(constant.name)
            result = gs.Variable(name, dtype=operand.dtype)
            inputs = [node.inputs[slot], constant]
            added.setdefault(key, []).append(
                gs.Node(op_type, name, inputs=inputs, outputs=[result])
            )
            node.inputs[slot] = result
        insert_in_front(copy, added)
        return Graph(copy, self._original, None, self.copies, self.batch_axes)

    def to_model(self) -> onnx.ModelProto:
        """Export with the names, opsets, metadata and dynamic axes of the original model."""
        return export(self._surgeon, self._original, self.copies, {})

    def written(self) -> onnx.ModelProto:
        """Export as `save` writes it: equal copies are merged, sparse constants are so again."""
        model = export(self._surgeon, self._original, self.copies, self.merged)
        make_sparse_again(model, self._original)
        return model

    def outline(self) -> Outline:
        """Export without large weights: a message of kilobytes, whatever the size of the model."""
        model, weights = self._bare
        own = onnx.ModelProto()
        own.CopyFrom(model)  # those who take one change it
        return Outline(own, weights)

    @cached_property
    def _bare(self) -> Outline:
        """The outline, which is asked for by all that runs or infers: exporting is slow."""
        return self._outline({})

    def _outline(self, merged: Mapping[str, str]) -> Outline:
        """Export without large weights, and with some copies written as others."""
        sparse = sparse_constants(self._original)
        weights = {
            name: array
            for name, array in self.initializers.items()
            if is_left_out(array) and name not in sparse
        }
        copy = self._surgeon.copy()
        scopes = (copy, *copy.subgraphs(recursive=True))  # those hold what they capture themselves
        for tensor in itertools.chain.from_iterable(s.tensors().values() for s in scopes):
            if isinstance(tensor, gs.Constant) and tensor.values is weights.get(tensor.name):
                tensor.to_variable()
                tensor.dtype = tensor.shape = None
        model = without_weights(export(copy, self._original, self.copies, merged), weights)
        for port in model.graph.input:
            if port.name in weights:  # surgery may have resized one that callers may set
                shape = weights[port.name].shape
                kind = onnx.helper.make_tensor_type_proto(port.type.tensor_type.elem_type, shape)
                port.type.CopyFrom(kind)
        stored = {name: array for name, array in weights.items() if name not in merged}
        outline = Outline(model, stored)
        if model.ir_version < FIRST_IR_WITH_DEFAULTS:
            outline.declared()
        return outline

    def _beside(self, location: str, *, apart: bool = False) -> tuple[onnx.ModelProto, Outline]:
        """Export for weights that lie in a file of their own, and what that file holds."""
        outline = self._outline({} if apart else self.merged)
        model = outline.pointing(location, layout(outline.weights))
        restore_notes(model.graph.initializer, self._original, self.copies)
        make_sparse_again(model, self._original)
        return model, outline

    def _is_large(self, *, apart: bool = False) -> bool:
        """Whether the weights do not fit into one message with the rest."""
        arrays = self.initializers if apart else self.stored
        weights = sum(array.nbytes for array in arrays.values())
        return weights + _PROTOBUF_SLACK > MAX_PROTOBUF_BYTES

    def size_bytes(self, *, apart: bool = False) -> int:
        """Size of the file that `save` would write.

        Above the limit of a message, that of both files under the name `model.onnx`.

        Args:
            apart: Whether to count every copy, which repair and training may make differ.
        """
        if not self._is_large(apart=apart):
            return int((self.to_model() if apart else self.written()).ByteSize())
        model, outline = self._beside(data_file(Path("model.onnx")).name, apart=apart)
        places = layout(outline.weights)
        return int(model.ByteSize()) + max((sum(place) for place in places.values()), default=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model: into a temporary file beside the target, then by renaming it.

        Above the limit of a message the weights go to `<name>.data` beside it.

        Raises:
            ModelError: The folder is missing or cannot be written to; the target is untouched.
        """
        path = Path(path)
        if not self._is_large():
            with replacing(path) as temporary:
                onnx.save(self.written(), temporary)
            return
        data = data_file(path)
        model, outline = self._beside(data.name)
        with replacing(path, data) as temporary:
            write_arrays(data_file(temporary), outline.weights)
            onnx.save(model, temporary)
