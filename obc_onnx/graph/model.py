"""Load, view, edit and save an ONNX model.

`Graph` is a value: edits return a new one. Its nodes are in topological order. Subgraphs stay where
they are; what they use of the outer graph is listed in `Node.captures`.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from obc_onnx.errors import InvariantError, ModelError
from obc_onnx.files import destination, replacing_all
from obc_onnx.graph.canonical import canonical, settle
from obc_onnx.graph.content import Content
from obc_onnx.graph.dense import make_sparse_again, sparse_constants, without_sparse
from obc_onnx.graph.export import (
    described,
    export,
    restore_notes,
    used_inside,
)
from obc_onnx.graph.external import (
    bytes_of,
    data_file,
    layout,
    sha256_of,
    sweep_data,
    write_arrays,
)
from obc_onnx.graph.malformed import faults_told
from obc_onnx.graph.opaque import set_apart
from obc_onnx.graph.outline import (
    MAX_PROTOBUF_BYTES,
    Outline,
    inlined,
    is_left_out,
    outlined,
    serialised,
)
from obc_onnx.graph.reading import read_model
from obc_onnx.graph.runtime import why_refused
from obc_onnx.graph.structure import Structure
from obc_onnx.graph.widening import in_brain_floats

if TYPE_CHECKING:
    import os
    from collections.abc import Container, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.files import Replacement
    from obc_onnx.graph.batch_axes import BatchAxes
    from obc_onnx.graph.node_lists import NewNode

_PROTOBUF_SLACK = 2**24


class Graph(Content):
    """An ONNX model in canonical form (see `canonical`), seen as plain values.

    Attributes:
        nodes: In topological order.
        initializers: Every constant by name; never write into the arrays.
        inputs: Graph inputs that a caller has to feed; initializers are not among them.
        outputs: Graph outputs.
        copies: For each copy of an initializer that canonical form made, the one in the file.
        opaque: Nodes of the file that the graph is without, since ONNX Runtime does not know them.
        file_bytes: Size of that file with its external data, or None.
        batch_axes: Where the samples are; what the model declares until `with_batch` knows better.
    """

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Graph:
        """Read a model file, with its external data.

        Raises:
            ModelError: The file is missing, not an ONNX model, or fails the checker.
        """
        model, files = read_model(Path(path))
        with faults_told(lambda: why_refused(outlined(set_apart(inlined(model))[0]))):
            graph = cls.from_model(model, sha256_of(files))
        graph.file_bytes = bytes_of(files)
        return graph

    @classmethod
    def from_model(cls, model: onnx.ModelProto, sha256: str | None = None) -> Graph:
        """Bring a model into canonical form; `model` itself is left as it is.

        Raises:
            ModelError: The model holds no nodes, or none that ONNX Runtime knows.
        """
        if not model.graph.node:
            raise ModelError("the model holds no nodes: it is not an ONNX model, or an empty one")
        whole, opaque = set_apart(inlined(model))
        surgeon, copies = canonical(without_sparse(whole))
        listed = {port.name for port in whole.graph.input}
        inside = used_inside(whole.graph)  # which surgery may leave as their only use
        original = described(whole, surgeon.tensors().keys() - listed - inside)
        surgeon.import_domains = original.opset_import  # the old ones would keep `whole` alive
        return cls(*Structure.taken_from(surgeon, original, opaque), sha256, copies)

    @property
    def sha256(self) -> str:
        """Of the files that the model was read from; of all that it holds where there are none."""
        if self._sha256 is None:
            outline = self.outline()
            digest = hashlib.sha256(serialised(self.opaque.rejoined(outline.model)))
            for name, array in outline.weights.items():
                digest.update(f"{name}:{array.dtype.name}:{array.shape}".encode())
                digest.update(array.tobytes())
            self._sha256 = digest.hexdigest()
        return self._sha256

    @cached_property
    def in_brain_floats(self) -> bool:
        """Whether bfloat16 occurs, which ONNX Runtime computes little in, see `widening`."""
        return in_brain_floats(self.outline())

    @property
    def batch(self) -> int | None:
        """How many samples a run takes, None where any number will do."""
        return self.batch_axes.size

    def with_batch(self, batch_axes: BatchAxes) -> Graph:
        """Return this graph with what was found out of its batch."""
        graph = Graph(self._structure, self.initializers, self._sha256, self.copies, batch_axes)
        graph.file_bytes = self.file_bytes
        return graph

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
        arrays = dict(self.initializers)
        for name, array in (initializers or {}).items():
            if name in self._structure.names and name not in self.initializers:
                raise InvariantError(f"'{name}' is not an initializer: it cannot be given a value")
            arrays[name] = np.asarray(array, order="C")
        structure = self._structure.edited(
            arrays, attributes or {}, rewired or {}, copied or {}, dispensable
        )
        return Graph(structure, arrays, None, self.copies, self.batch_axes)

    def bypass(self, stand_ins: Mapping[str, str]) -> Graph:
        """Return a copy in which values stand in for others, and what only those needed is gone.

        Where subgraphs or outputs of the graph read a value that goes, its node stays as an
        identity, which keeps the name.

        Args:
            stand_ins: For each value that goes (`Node.key`), one that it is computed from.
        """
        structure, arrays = self._structure.bypassed(stand_ins), self.initializers
        left = {name: origin for name, origin in self.copies.items() if name in structure.constants}
        return Graph(structure, arrays, None, left, self.batch_axes)

    def settled(self) -> Graph:
        """Return this graph as it is read back: more of it may have turned out constant."""
        surgeon = self._structure.filled(self.initializers)
        copies = {**self.copies, **settle(surgeon, self._original)}
        taken = Structure.taken_from(surgeon, self._original, self.opaque)
        return Graph(*taken, None, copies, self.batch_axes)

    def known_as(self, other: Graph) -> Graph:
        """Return this graph under the hash and file size of another, which a plan is to be for.

        Args:
            other: The same network with other weights.
        """
        graph = Graph(
            self._structure, self.initializers, other.sha256, self.copies, self.batch_axes
        )
        graph.file_bytes = other.file_bytes
        return graph

    def insert_before(
        self, op_type: str, operands: Mapping[tuple[str, int], NDArray[Any]]
    ) -> Graph:
        """Return a copy in which a binary operator with a constant feeds some input slots.

        Args:
            op_type: Of the operator.
            operands: The constant, for each slot (`Node.key`, slot).
        """
        taken, inserted, arrays = set[str](), {}, dict(self.initializers)
        for (key, slot), array in operands.items():
            read = self.producers[key].inputs[slot]
            name = self.fresh_name(f"{read}.{op_type}.{key}.{slot}", taken)
            taken.add(name)
            operand = self.fresh_name(f"{name}.operand", taken)
            taken.add(operand)
            inserted[key, slot] = (name, operand, array.dtype)
            arrays[operand] = array
        structure = self._structure.with_operators(op_type, inserted)
        return Graph(structure, arrays, None, self.copies, self.batch_axes)

    def redefine(
        self,
        values: Mapping[str, tuple[str, Sequence[NewNode]]],
        initializers: Mapping[str, NDArray[Any]],
    ) -> Graph:
        """Return a copy in which new nodes give some values, to all that use those.

        Args:
            values: For each value what its node is to give instead, and the nodes that stand behind
                that one, of which the last one gives the value.
            initializers: New arrays by name.
        """
        structure = self._structure.redefined(values, initializers)
        arrays = {**self.initializers, **initializers}
        return Graph(structure, arrays, None, self.copies, self.batch_axes)

    def insert(
        self,
        nodes: Sequence[NewNode] = (),
        initializers: Mapping[str, NDArray[Any]] | None = None,
        rewired: Mapping[tuple[str, int], str] | None = None,
        renamed: Mapping[str, str] | None = None,
        sizes: Mapping[tuple[str, int], int] | None = None,
    ) -> Graph:
        """Return a copy with more nodes.

        Args:
            nodes: What to insert.
            initializers: New arrays by name.
            rewired: What input slots (`Node.key`, slot) are to use.
            renamed: New names of values that nodes compute; what they were called is free for what
                new nodes compute, as for an output of the model.
            sizes: Sizes that axes (name, axis) of outputs are declared with, where they have one.
        """
        arrays = {**self.initializers, **(initializers or {})}
        structure = self._structure.with_nodes(
            arrays, nodes, rewired or {}, renamed or {}, sizes or {}
        )
        return Graph(structure, arrays, None, self.copies, self.batch_axes)

    def to_model(self) -> onnx.ModelProto:
        """Export with the names, opsets, metadata and dynamic axes of the original model.

        Nodes that ONNX Runtime does not know are left out, so that it runs.
        """
        return self._export({})

    def written(self) -> onnx.ModelProto:
        """Export as `save` writes it.

        Equal copies are merged, sparse constants are so again, and nodes that were set apart are
        there.
        """
        return self._as_written(self._export(self.merged))

    def _as_written(self, model: onnx.ModelProto) -> onnx.ModelProto:
        make_sparse_again(model, self._original)
        return self.opaque.rejoined(model)

    def _export(self, merged: Mapping[str, str], left_out: Container[str] = ()) -> onnx.ModelProto:
        structure, arrays = self._structure, self.initializers
        return export(structure.skeleton, arrays, self._original, self.copies, merged, left_out)

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

    @cached_property
    def left_out(self) -> set[str]:
        """Large initializers, which an outline does without."""
        sparse = sparse_constants(self._original)
        return {n for n, a in self.initializers.items() if is_left_out(a) and n not in sparse}

    def _outline(self, merged: Mapping[str, str]) -> Outline:
        """Export without large weights, and with some copies written as others."""
        weights = {n: array for n, array in self.initializers.items() if n in self.left_out}
        model = self._export(merged, weights)
        return Outline(model, {n: array for n, array in weights.items() if n not in merged})

    def _beside(self, location: str, *, apart: bool = False) -> tuple[onnx.ModelProto, Outline]:
        """Export for weights that lie in a file of their own, and what that file holds."""
        outline = self._outline({} if apart else self.merged)
        model = outline.pointing(location, layout(outline.weights))
        restore_notes(model.graph.initializer, self._original, self.copies)
        return self._as_written(model), outline

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
            outline = self._outline({} if apart else self.merged)
            if not apart:
                self._as_written(outline.model)
            said = {name: self.notes.get(self.copies.get(name, name)) for name in outline.weights}
            return outline.bytes_with_weights(said)
        location = data_file(Path("model.onnx"), sha256="0" * 64).name
        model, outline = self._beside(location, apart=apart)
        places = layout(outline.weights)
        return int(model.ByteSize()) + max((sum(place) for place in places.values()), default=0)

    def save(self, path: str | os.PathLike[str], *others: tuple[Path, str]) -> None:
        """Write the model: into a temporary file beside the target, then by renaming it.

        Above the limit of a message the weights go to a file beside it that is called by its name
        and their digest; those of a model that was there are removed, unless another one names
        them.

        Args:
            path: Where to; what a link points at is replaced.
            others: Texts that belong to the model and where they go: all is written, or nothing.
        Raises:
            ModelError: The folder is missing or cannot be written to; the target is untouched.
        """
        path = Path(path)
        with replacing_all(path) as replacement:
            temporary = replacement.beside(path)
            if self._is_large():
                self._write_apart(temporary, destination(path), replacement)
            else:
                onnx.save(self.written(), temporary, format="protobuf")
            for target, text in others:
                replacement.beside(target).write_text(text, encoding="utf-8")
        sweep_data(destination(path))

    def _write_apart(self, temporary: Path, target: Path, replacement: Replacement) -> None:
        """Write weights and the model that names them."""
        data = temporary.with_name("weights")
        digest = write_arrays(data, self._outline(self.merged).weights)
        place = data_file(target, digest)
        replacement.before_others(data, place)
        model, _ = self._beside(place.name)
        onnx.save(model, temporary, format="protobuf")
