"""What a model holds, and what that says of it: nothing here changes a graph or writes it."""

from __future__ import annotations

import itertools
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

from obc_onnx.graph.batch_axes import BatchAxes, declared_axes
from obc_onnx.graph.copies import merge_copies
from obc_onnx.graph.export import (
    FIRST_IR_WITH_DEFAULTS,
    first_output,
    inner_weights,
    is_weight,
    kept_aside,
)
from obc_onnx.graph.node import Node, domain_of, holds_weights
from obc_onnx.graph.operators import CODING, DEQUANTISING, SCALE

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import onnx
    from numpy.typing import NDArray

    from obc_onnx.graph.structure import Structure


class Content:
    """The plain values that a `Graph` consists of, and what follows from them.

    Args:
        structure: All but the constants.
        initializers: Every constant by name.
        sha256: Of the files; None where there are none.
        copies: For each copy of an initializer that canonical form made, the one in the file.
        batch_axes: Where the samples are; None is what the model declares.
    """

    def __init__(
        self,
        structure: Structure,
        initializers: Mapping[str, NDArray[Any]],
        sha256: str | None = None,
        copies: Mapping[str, str] | None = None,
        batch_axes: BatchAxes | None = None,
    ) -> None:
        self._structure, self._original = structure, structure.original
        self.opaque = structure.opaque
        self._sha256 = sha256
        self.copies = dict(copies or {})
        self.file_bytes: int | None = None
        self.initializers = {name: initializers[name] for name in structure.constants}
        self.nodes, self.inputs, self.outputs = structure.nodes, structure.inputs, structure.outputs
        self.batch_axes = batch_axes or declared_axes(self.inputs, self.outputs, self.opaque.givers)

    @property
    def producers(self) -> dict[str, Node]:
        """The node that computes each value."""
        return self._structure.producers

    @property
    def consumers(self) -> dict[str, list[tuple[Node, int]]]:
        """Every (node, input slot) that uses each value."""
        return self._structure.consumers

    def is_shared(self, name: str) -> bool:
        """Say whether a value has more uses than one: by subgraphs and as an output included."""
        return self.escapes(name) or len(self.consumers.get(name, ())) > 1

    def escapes(self, name: str) -> bool:
        """Say whether a value is used by subgraphs or as an output."""
        return name in self._structure.escaping

    def dequantised_by(self, name: str) -> list[Node]:
        """List the DequantizeLinear nodes that read a value; none where it serves otherwise too."""
        uses = self.consumers.get(name, [])
        if self.escapes(name) or any(n.op_type != DEQUANTISING or slot for n, slot in uses):
            return []
        return [node for node, _ in uses]

    def may_change(self, name: str) -> bool:
        """Say whether an initializer holds weights, or numbers that stand for some."""
        return holds_weights(self.initializers[name].dtype) or bool(self.dequantised_by(name))

    def is_scale(self, name: str) -> bool:
        """Say whether a value is nothing but what numbers are quantised or dequantised by."""
        uses = self.consumers.get(name, [])
        scales = all(node.op_type in CODING and slot == SCALE for node, slot in uses)
        return bool(uses) and scales and not self.escapes(name)

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

    @property
    def opset(self) -> int:
        """The version of the standard operators, 0 where the model uses none."""
        versions = {domain_of(e.domain): e.version for e in self.header.opset_import}
        return int(versions.get("", 0))

    @property
    def overridable(self) -> set[str]:
        """Initializers that a caller may set."""
        if self.header.ir_version < FIRST_IR_WITH_DEFAULTS:
            return set()
        return {port.name for port in self.header.graph.input} & self.held

    @cached_property
    def aside(self) -> dict[str, onnx.TensorProto]:
        """Constants that stay as they are in the file, see `kept_aside`."""
        return {tensor.name: tensor for tensor in kept_aside(self._original, self.initializers)}

    @property
    def held(self) -> set[str]:
        """Names of all constants of the main graph."""
        return self.initializers.keys() | self.aside.keys()

    @property
    def notes(self) -> dict[str, onnx.TensorProto]:
        """What the file says of each constant: its doc string and metadata."""
        return self._structure.notes

    @property
    def header(self) -> onnx.ModelProto:
        """What describes the model, without what it computes."""
        return self._structure.header

    @property
    def messages(self) -> dict[str, onnx.NodeProto]:
        """Every node as it is written, by `Node.key`; copies of initializers are not merged."""
        return self._structure.messages

    @cached_property
    def merged(self) -> dict[str, str]:
        """Under which name each copy is written, where it equals another one or the original."""
        return merge_copies(self.copies, self.initializers)

    @property
    def stored(self) -> dict[str, NDArray[Any]]:
        """The initializers that are written, by name: equal copies of one are merged."""
        return {n: array for n, array in self.initializers.items() if n not in self.merged}

    def fresh_name(self, base: str, taken: Container[str] = ()) -> str:
        """Return a name for a new value: `base`, with a number where that is taken.

        Args:
            base: What to call the value.
            taken: More names that must not be used.
        """
        own = self._structure.names
        numbered = (f"{base}.{number}" for number in itertools.count(1))
        names = itertools.chain([base], numbered)
        return next(name for name in names if name not in own and name not in taken)
