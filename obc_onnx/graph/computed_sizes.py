"""Sizes that follow from sizes by way of numbers, node by node.

Exporters that trace write by how much an image has to be padded as arithmetic on its sizes:
`Shape`, `Gather`, `Mod`, `Reshape`, and then a `Pad`. onnx's inference follows numbers through some
operators alone, and leaves open what lies behind the others. Here such numbers are computed, where
they are whole and few, and the nodes behind them are inferred one by one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import defs
from onnx.shape_inference import infer_node_outputs

from obc_onnx.graph.folding import computed
from obc_onnx.graph.nested import names_read
from obc_onnx.graph.node import domain_of
from obc_onnx.graph.operators import COUNTING, OF_NUMBERS, SIZE
from obc_onnx.graph.outline import KEPT_ELEMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    Shape = tuple[int, ...]
    Numbers = NDArray[Any]


def completed(
    model: onnx.ModelProto, kinds: Iterable[onnx.ValueInfoProto], known: Mapping[str, Shape]
) -> dict[str, Shape]:
    """Add sizes that follow from numbers to those that are known, up to a size below 0.

    onnx ends the process in some nodes behind such a size.

    Args:
        model: With concrete inputs, its nodes in order.
        kinds: What is known of the types of values that nodes compute, some of them or none.
        known: Concrete shapes by value name.
    Raises:
        InferenceError: onnx finds a node inconsistent.
    """
    sizes = _Sizes(model, kinds, known)
    for node in model.graph.node:
        if any(name and name not in sizes.known for name in node.output):
            sizes.infer(node)
        if any(min(sizes.known.get(name, ()), default=0) < 0 for name in node.output):
            break
    return sizes.known


def detail(kind: onnx.TypeProto) -> int:
    """Count what is known of a shape: nothing, or its rank and so many sizes."""
    known = sum(size.HasField("dim_value") for size in kind.tensor_type.shape.dim)
    return 1 + known if kind.tensor_type.HasField("shape") else 0


class _Sizes:
    """What is known of a model by now."""

    def __init__(
        self,
        model: onnx.ModelProto,
        kinds: Iterable[onnx.ValueInfoProto],
        known: Mapping[str, Shape],
    ) -> None:
        self.known = dict(known)
        self._opsets = list(model.opset_import)
        self._versions = {domain_of(entry.domain): entry.version for entry in self._opsets}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        held = model.graph.initializer
        self._types = {port.name: port.type for port in (*model.graph.input, *kinds)} | {
            t.name: onnx.helper.make_tensor_type_proto(t.data_type, t.dims) for t in held
        }
        self._numbers: dict[str, Numbers | None] = {
            t.name: onnx.numpy_helper.to_array(t) if self._are_few(t.name) else None for t in held
        }

    def infer(self, node: onnx.NodeProto) -> None:
        """Infer the outputs of a node, where it says enough of them."""
        domain, names = domain_of(node.domain), list(dict.fromkeys(names_read(node)))
        if not defs.has(node.op_type, domain) or any(name not in self._types for name in names):
            return
        for name, kind in self._inferred(node, domain, names).items():
            if name not in self._types or detail(kind) > detail(self._types[name]):
                self._types[name] = kind
            sizes = kind.tensor_type.shape.dim
            if kind.tensor_type.HasField("shape") and all(s.HasField("dim_value") for s in sizes):
                self.known[name] = tuple(size.dim_value for size in sizes)

    def _inferred(
        self, node: onnx.NodeProto, domain: str, names: Iterable[str]
    ) -> Mapping[str, onnx.TypeProto]:
        """Ask onnx, which refuses a node that lacks an input as well as one of wrong shapes."""
        numbers = {name: self._number(name) for name in names}
        try:
            found: Mapping[str, onnx.TypeProto] = infer_node_outputs(
                defs.get_schema(node.op_type, self._versions.get(domain, 1), domain),
                node,
                {name: self._types[name] for name in names},
                {
                    n: onnx.numpy_helper.from_array(a, n)
                    for n, a in numbers.items()
                    if a is not None
                },
                opset_imports=self._opsets,
            )
        except onnx.checker.ValidationError as error:
            raise onnx.shape_inference.InferenceError(str(error)) from error
        return found

    def _are_few(self, name: str) -> bool:
        """Say whether a value holds whole numbers, and no more than a shape may be described by."""
        shape, kind = self.known.get(name), self._types[name].tensor_type.elem_type
        if shape is None or math.prod(shape) > KEPT_ELEMENTS or not kind:
            return False
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        return bool(np.issubdtype(dtype, np.integer) or dtype == np.bool_)

    def _number(self, name: str) -> Numbers | None:
        """Compute what a value holds, and first what it is made of; None where that is not known.

        A size may have been added to a thousand times: nothing here recurses.
        """
        waiting = [name]
        while waiting:
            top = waiting[-1]
            if top not in self._numbers:
                node = self._followed(top)
                unknown = [n for n in _operands(node) if n not in self._numbers]
                if unknown:
                    waiting += unknown
                    continue
                self._numbers[top] = None if node is None else self._computed(node, top)
            waiting.pop()
        return self._numbers[name]

    def _followed(self, name: str) -> onnx.NodeProto | None:
        """Return the node whose arithmetic gives a value, None where that is not followed."""
        node = self._makers.get(name)
        if node is None or domain_of(node.domain) or name not in self._types:
            return None
        return node if node.op_type in OF_NUMBERS and self._are_few(name) else None

    def _computed(self, node: onnx.NodeProto, name: str) -> Numbers | None:
        """Compute an output of a node, where all that it reads is known."""
        if node.op_type in COUNTING:
            shape = self.known.get(node.input[0])
            return None if shape is None else _counted(node, shape)
        inputs = {source: self._numbers[source] for source in _operands(node)}
        given = {source: array for source, array in inputs.items() if array is not None}
        if len(given) < len(inputs):
            return None
        found = computed(node, given, self._versions.get("", 1))
        return None if found is None else found[name]


def _operands(node: onnx.NodeProto | None) -> list[str]:
    """List the values whose numbers a node computes with."""
    if node is None or node.op_type in COUNTING:
        return []
    return [name for name in node.input if name]


def _counted(node: onnx.NodeProto, shape: Shape) -> Numbers:
    """Return what a Shape or a Size gives."""
    if node.op_type == SIZE:
        return np.array(math.prod(shape), np.int64)
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(shape[bounds.get("start", 0) : bounds.get("end")], np.int64)
