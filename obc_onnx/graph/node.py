"""Nodes, inputs and outputs of a model as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_QUANTISED = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "float8", "float4")


@dataclass(frozen=True, eq=False)
class Node:
    """One operator call. `inputs` and `outputs` are value names, "" where left out."""

    name: str
    op_type: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(repr=False)
    captures: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The first output's name: unique, where `name` may be empty."""
        return next(output for output in self.outputs if output)

    @property
    def label(self) -> str:
        """How messages call the node."""
        return f"{self.op_type} '{self.name or self.key}'"

    def integer(self, name: str, default: int) -> int:
        """Read an int attribute."""
        return int(self.attributes.get(name, default))

    def flag(self, name: str, *, default: bool) -> bool:
        """Read a flag: ONNX Runtime takes 1 for true, and any other number for false."""
        return self.integer(name, int(default)) == 1

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Read an ints attribute, None where it is left out."""
        values = self.attributes.get(name)
        return None if values is None else tuple(int(value) for value in values)

    def number(self, name: str, default: float) -> float:
        """Read a float attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        """Read a string attribute."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def has_input(self, slot: int) -> bool:
        """Say whether an optional input is given."""
        return slot < len(self.inputs) and self.inputs[slot] != ""

    def read_at(self, slot: int) -> str:
        """Return the value that an input slot reads, "" where none is given."""
        return self.inputs[slot] if self.has_input(slot) else ""


CLASSES_RANK = 2
"""Class scores have shape [batch, classes]."""


@dataclass(frozen=True)
class Port:
    """A graph input or output; a dynamic size is its symbolic name, or "" where it has none.

    Some exporters write -1 for a dynamic size.

    The type is `object` where the value holds strings or is no tensor (a sequence, an optional).
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...] | None


def domain_of(name: str | None) -> str:
    """Return the one name of an operator domain: the standard one has three spellings."""
    return "" if name in {None, "ai.onnx"} else str(name)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Say whether weights of this type can be trained; bfloat16 is an extension type."""
    return bool(np.issubdtype(dtype, np.floating)) or dtype.name == "bfloat16"


@cache
def holds_weights(dtype: np.dtype[Any]) -> bool:
    """Say whether a type is one of weights: floats, and what quantised weights are stored as."""
    return is_float(dtype) or dtype.name.startswith(_QUANTISED)


def view_of(node: gs.Node, versions: Mapping[str, int]) -> Node:
    """Describe a node of an imported graph; `versions` gives the opset of each domain."""
    domain = domain_of(node.domain)
    own = {tensor.name for tensor in (*node.inputs, *node.outputs)}
    return Node(
        name=node.name,
        op_type=node.op,
        domain=domain,
        opset=versions.get(domain, 1),
        inputs=tuple(tensor.name for tensor in node.inputs),
        outputs=tuple(tensor.name for tensor in node.outputs),
        attributes={
            key: value.values if isinstance(value, gs.Constant) else value
            for key, value in node.attrs.items()
        },
        captures=tuple(sorted(name for name in _captured(node) if name not in own)),
    )


def _captured(node: gs.Node) -> Iterator[str]:
    """Yield the outer values that a node's subgraphs use, however deep."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            inner = {tensor.name for tensor in value.inputs}
            inner |= {tensor.name for child in value.nodes for tensor in child.outputs}
            for child in value.nodes:
                for name in (*(tensor.name for tensor in child.inputs), *_captured(child)):
                    if name not in inner:
                        yield name
            yield from (tensor.name for tensor in value.outputs if tensor.name not in inner)


def port_of(value: onnx.ValueInfoProto) -> Port:
    """Describe an input or output of a model."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not kind.elem_type:
        return Port(value.name, np.dtype(object), None)
    shape = None
    if kind.HasField("shape"):
        shape = tuple(
            size.dim_value if size.HasField("dim_value") and size.dim_value >= 0 else size.dim_param
            for size in kind.shape.dim
        )
    return Port(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type), shape)
