"""How the twin holds initializers: which of them learn, in what type, and how they go back.

A float with more than one element is a parameter, but for statistics and bounds; everything else is
a buffer. Two kinds of weights are held as what the graph makes of them, so that they learn too:

- floats that are only ever cast to a wider type, picked or moved before, are held in that type;
- whole numbers that are only ever dequantised are held as the floats that they stand for, and
  quantised on each pass, with a straight-through gradient.

Both go back to the very bytes that they came from when nothing was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto, helper

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.graph.node import is_float
from obc_onnx.graph.session import compute_constants
from obc_onnx.ops.base.dtypes import integer_limits, torch_dtype
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.quantised.linear import dequantize, quantize
from obc_onnx.twin.tensors import parameter_name, to_array, to_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import RuleSet

_SINGLE_BITS = np.finfo(np.float32).nmant + 1
"""Whole numbers of more bits than this are held in double, which has room for them."""


@dataclass(frozen=True)
class Encoding:
    """How DequantizeLinear nodes read an initializer.

    Attributes:
        scale: The initializer with the scales.
        zero: That with the zero points, "" where there are none.
        data_type: Of the quantised numbers, as in a TensorProto.
    """

    scale: str
    zero: str
    data_type: int
    axis: int
    block_size: int

    @property
    def constants(self) -> dict[str, Any]:
        """What `quantize` takes beside tensors."""
        return {
            "axis": self.axis,
            "block_size": self.block_size,
            "data_type": self.data_type,
            "saturate": True,
        }

    def encode(self, value: Tensor, read: Callable[[str], Tensor]) -> Tensor:
        """Quantise; `read` returns scales and zero points by initializer."""
        zero = read(self.zero) if self.zero else None
        return quantize(value, read(self.scale), zero, **self.constants)

    def decode(self, stored: Tensor, read: Callable[[str], Tensor]) -> Tensor:
        """Return the floats that whole numbers stand for."""
        limits = integer_limits(self.data_type)
        wide = limits is not None and limits[1] >= 1 << _SINGLE_BITS
        kind = torch.float64 if wide else torch.float32
        zero = read(self.zero) if self.zero else None
        return dequantize(
            stored.to(kind),
            read(self.scale).to(kind),
            zero,
            axis=self.axis,
            block_size=self.block_size,
            data_type=TensorProto.DOUBLE if wide else TensorProto.FLOAT,
        )


@dataclass(frozen=True)
class Held:
    """An initializer in the twin.

    Attributes:
        tensor: Its numbers.
        learns: Whether it is a parameter, and not a buffer.
        encoding: How the twin gets the stored numbers from `tensor`, None where it holds them.
    """

    tensor: Tensor
    learns: bool
    encoding: Encoding | None = None


class Holdings:
    """How the twin of a graph holds its initializers.

    Args:
        graph: The graph.
        rules: Say what is never learned.
        frozen: Whether nothing is: then tensors lie in the memory of the graph's arrays.

    Attributes:
        fixed: Initializers and values in slots that are never learned.
        mixed: Those that serve otherwise too: an update in place may reach no other use.
    """

    def __init__(self, graph: Graph, rules: RuleSet, *, frozen: bool = False) -> None:
        self._graph, self._rules, self._frozen = graph, rules, frozen
        uses: dict[str, set[tuple[str, int | None]]] = {}
        self.fixed: set[str] = set()
        for node in graph.nodes:
            rule = rules.find(node)
            for slot, name in enumerate(node.inputs):
                uses.setdefault(name, set()).add((node.op_type, slot))
                if rule is not None and slot in rule.held:
                    self.fixed.update(_made_of(graph, name))
        for port in graph.outputs:
            uses.setdefault(port.name, set()).add(("", None))
        self.mixed = {name for name in self.fixed if len(uses[name]) > 1}

    def held(self, name: str) -> Held:
        """Return how an initializer is held."""
        array = self._graph.initializers[name]
        encoding = encoding_of(self._graph, name)
        if encoding is not None and name not in self.fixed:
            decoded = encoding.decode(to_tensor(array), partial(_constant, self._graph))
            return Held(decoded, learns=True, encoding=encoding)
        learns = is_float(array.dtype) and array.size > 1 and name not in self.fixed
        return Held(to_tensor(self._widened(name), shared=self._frozen), learns)

    def _widened(self, name: str) -> NDArray[Any]:
        """Return an initializer in the type that every use casts it to, if that loses nothing."""
        array, targets = self._graph.initializers[name], self._cast_to(name)
        if len(targets) != 1 or 0 in targets or not is_float(array.dtype):
            return array
        kind = helper.tensor_dtype_to_np_dtype(targets.pop())
        wider = is_float(kind) and kind.itemsize > array.dtype.itemsize
        return array.astype(kind) if wider else array

    def _cast_to(self, name: str) -> set[int]:
        """Collect the types that uses of a value cast it to, also behind a move; 0 for others."""
        if self._graph.escapes(name):
            return {0}
        found: set[int] = set()
        for node, slot in self._graph.consumers.get(name, []):
            if slot == 0 and Effect.MOVES in self._rules.effect(node):
                found.update(*(self._cast_to(output) for output in node.outputs if output))
            else:
                rule = self._rules.find(node)
                found.add(0 if rule is None else rule.converts_to(node))
        return found


def weights_of(twin: torch.nn.Module, graph: Graph) -> dict[str, NDArray[Any]]:
    """Read the twin's weights as initializers of `graph`, in their types."""
    state: dict[str, Tensor] = dict(twin.state_dict())
    weights: dict[str, NDArray[Any]] = {}

    def read(name: str) -> Tensor:
        held = state.get(parameter_name(name))
        return _constant(graph, name) if held is None else held.cpu()

    for name, array in graph.initializers.items():
        tensor = state.get(parameter_name(name))
        if tensor is None:
            continue
        if is_float(array.dtype):
            weights[name] = to_array(tensor, array.dtype)
        elif tensor.is_floating_point() and (encoding := encoding_of(graph, name)) is not None:
            weights[name] = to_array(encoding.encode(tensor.cpu(), read), array.dtype)
    return weights


def encoding_of(graph: Graph, name: str) -> Encoding | None:
    """Return how an initializer is dequantised; None where it is not, or serves otherwise too.

    None too where quantising what was dequantised would not give the same numbers, as with a scale
    of 0.
    """
    array, nodes = graph.initializers[name], graph.dequantised_by(name)
    if array.size == 1 or is_float(array.dtype) or not nodes:
        return None
    found = {encoding_by(node, graph) for node in nodes}
    encoding = found.pop()
    beside = [key for key in (encoding.scale, encoding.zero) if key]
    if found or not all(graph.initializers.keys() & _made_of(graph, key) for key in beside):
        return None
    return encoding if _comes_back(graph, array, encoding) else None


def encoding_by(node: Node, graph: Graph) -> Encoding:
    """Return how a node quantises or dequantises its first input, an initializer."""
    zero = node.read_at(2)
    kind = (
        graph.initializers[node.inputs[0]].dtype if node.inputs[0] in graph.initializers else None
    )
    if kind is not None and not is_float(kind):
        data_type = int(helper.np_dtype_to_tensor_dtype(kind))
    elif zero:
        data_type = int(helper.np_dtype_to_tensor_dtype(graph.initializers[zero].dtype))
    else:
        data_type = node.integer("output_dtype", 0) or TensorProto.UINT8
    return Encoding(
        scale=node.inputs[1],
        zero=zero,
        data_type=data_type,
        axis=node.integer("axis", 1),
        block_size=node.integer("block_size", 0),
    )


def _comes_back(graph: Graph, array: NDArray[Any], encoding: Encoding) -> bool:
    try:
        torch_dtype(encoding.data_type)
    except UnsupportedOperatorError:
        return False
    read = partial(_constant, graph)
    again = encoding.encode(encoding.decode(to_tensor(array), read), read)
    return bool(torch.isfinite(again).all()) and np.array_equal(to_array(again, array.dtype), array)


def _constant(graph: Graph, name: str) -> Tensor:
    """Return an initializer, or what is computed from some."""
    array = graph.initializers.get(name)
    return to_tensor(compute_constants(graph, [name])[name] if array is None else array)


def _made_of(graph: Graph, name: str) -> list[str]:
    """List a value, and what it is made of where that is constants alone."""
    names = [name]
    for current in names:
        if current in graph.producers:
            names += [n for n in graph.producers[current].inputs if n and n not in names]
        elif current not in graph.initializers:
            return [name]
    return names
