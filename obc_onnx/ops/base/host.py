"""Numbers that describe shapes, as Python computes them while the twin runs.

The twin holds them as tuples of ints instead of small tensors: no device has to be waited for, and
`torch.export` and `torch.compile` see sizes for what they are. A tuple holds the elements in order;
of what shape they are is known when the twin is built, since only their values run with the model.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from obc_onnx.ops.base.dtypes import torch_dtype
from obc_onnx.ops.base.rule import Call

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import ForwardContext

    Numbers = tuple[int, ...]
    Places = NDArray[np.int64]

_PAIR = 2
_INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})


def read_sizes(node: Node) -> Call:
    """Say how a Shape or a Size reads such numbers off any tensor."""
    if node.op_type == "Size":
        return Call(count_elements)
    end = node.attributes.get("end")
    span = (node.integer("start", 0), None if end is None else int(end))
    return Call(read_shape, {"span": span})


def host_call(context: ForwardContext, *, fixed: bool) -> Call | None:
    """Say how a node computes such numbers from others, which all its operands are.

    Args:
        context: The node.
        fixed: Whether no operand runs with the model.
    Returns:
        None where that is not known.
    """
    node, slots = context.node, tuple(range(len(context.node.inputs)))
    if node.domain or context.output_shape is None:
        return None
    if node.op_type in _OPERATIONS and len(slots) == _PAIR and not node.integer("fmod", 0):
        index = _broadcast(context)
        return Call(pairwise, {"operation": node.op_type, "index": index}, slots)
    if node.op_type == "Where":
        return Call(choose, {"index": _broadcast(context)}, slots)
    if node.op_type == "ConstantOfShape":
        return _fill(context) if fixed else None
    if node.op_type == "ReduceProd":
        return Call(multiply) if math.prod(context.output_shape) == 1 else None
    moved = _REARRANGE.get(node.op_type, _unknown)(context)
    return None if moved is None else Call(pick, {"index": _flat(moved[1])}, slots[: moved[0]])


def _fill(context: ForwardContext) -> Call | None:
    """Repeat an integer as often as the output has elements."""
    value = context.node.attributes.get("value")
    n_elements = math.prod(context.output_shape or ())
    if value is None or value.dtype.kind != "i":
        return None
    return Call(repeat, {"element": int(value.reshape(-1)[0]), "n": n_elements})


def _places(context: ForwardContext, slot: int = 0, first: int = 0) -> Places:
    """Number the elements of an operand, in its shape."""
    shape = context.input_shapes[slot] or ()
    return first + np.arange(math.prod(shape)).reshape(shape)


def _broadcast(context: ForwardContext) -> tuple[Numbers, ...]:
    """Say which element of each operand takes part in each element of the output."""
    places = [_places(context, slot) for slot in range(len(context.node.inputs))]
    spread = (np.broadcast_to(own, context.output_shape or ()) for own in places)
    return tuple(map(_flat, spread))


def _flat(places: Places) -> Numbers:
    return tuple(places.reshape(-1).tolist())


def _unknown(_context: ForwardContext) -> None:
    return None


def _join(context: ForwardContext) -> tuple[int, Places]:
    first, parts = 0, []
    for slot in range(len(context.node.inputs)):
        parts.append(_places(context, slot, first))
        first += parts[-1].size
    return len(parts), np.concatenate(parts, context.node.integer("axis", 0))


def _gather(context: ForwardContext) -> tuple[int, Places] | None:
    index = context.arrays[1]
    if index is None:
        return None
    return 1, np.take(_places(context), index, context.node.integer("axis", 0))


def _slice(context: ForwardContext) -> tuple[int, Places] | None:
    node = context.node
    if "starts" in node.attributes:
        starts, ends = node.integers("starts"), node.integers("ends")
        axes, steps = node.integers("axes"), None
    else:
        starts, ends, axes, steps = (context.integers(slot) for slot in range(1, 5))
    if starts is None or ends is None or (node.has_input(3) and axes is None):
        return None
    places = _places(context)
    spans = [slice(None)] * places.ndim
    for i, axis in enumerate(axes or range(len(starts))):
        spans[axis] = slice(starts[i], ends[i], 1 if steps is None else steps[i])
    return 1, places[tuple(spans)]


def _transpose(context: ForwardContext) -> tuple[int, Places]:
    return 1, _places(context).transpose(context.node.integers("perm"))


def _in_order(context: ForwardContext) -> tuple[int, Places]:
    return 1, _places(context)


def _cast(context: ForwardContext) -> tuple[int, Places] | None:
    return _in_order(context) if context.node.integer("to", 0) in _INTEGERS else None


_REARRANGE: dict[str, Callable[[ForwardContext], tuple[int, Places] | None]] = {
    "Cast": _cast, "Concat": _join, "Gather": _gather, "Identity": _in_order,
    "Reshape": _in_order, "Slice": _slice, "Squeeze": _in_order, "Transpose": _transpose,
    "Unsqueeze": _in_order,
}  # fmt: skip
"""For what only moves numbers: how many operands hold them, and where each of the output is."""


def as_ints(values: Tensor | Numbers) -> list[int]:
    """Read whole numbers that a function takes as a tensor or as the twin's own."""
    found: list[int] = list(values) if isinstance(values, tuple) else values.reshape(-1).tolist()
    return found


def as_tensor(
    numbers: Numbers, beside: Tensor | None = None, *, shape: tuple[int, ...], data_type: int
) -> Tensor:
    """Put numbers into a tensor, on the device of another one."""
    import torch

    kind = torch_dtype(data_type)
    return torch.tensor(numbers, dtype=kind, device=device_of(beside)).reshape(shape)


def device_of(tensor: Tensor | None) -> torch.device:
    """Return where a tensor is; without one, the host."""
    import torch

    return torch.device("cpu") if tensor is None else tensor.device


def read_shape(x: Tensor | NDArray[Any], *, span: tuple[int, int | None]) -> Numbers:
    """Return sizes start..end of a tensor."""
    return tuple(x.shape)[slice(*span)]


def count_elements(x: Tensor | NDArray[Any]) -> Numbers:
    """Return the number of elements."""
    return (math.prod(x.shape),)


def pick(*parts: Numbers, index: Numbers) -> Numbers:
    """Take elements of all parts, which are counted through."""
    numbers = [number for part in parts for number in part]
    return tuple(numbers[i] for i in index)


def pairwise(a: Numbers, b: Numbers, *, operation: str, index: tuple[Numbers, Numbers]) -> Numbers:
    """Compute a function of pairs; `index` says which element of each makes one."""
    function = _OPERATIONS[operation]
    return tuple(function(a[i], b[j]) for i, j in zip(*index, strict=True))


def choose(
    condition: Numbers, a: Numbers, b: Numbers, *, index: tuple[Numbers, Numbers, Numbers]
) -> Numbers:
    """Compute Where; `index` is as in `pairwise`."""
    return tuple(a[j] if condition[i] else b[k] for i, j, k in zip(*index, strict=True))


def repeat(_sizes: Numbers, *, element: int, n: int) -> Numbers:
    """Return equal numbers."""
    return (element,) * n


def multiply(numbers: Numbers) -> Numbers:
    """Return the product."""
    return (math.prod(numbers),)


def quotient(a: int, b: int) -> int:
    """Divide, truncating towards zero."""
    floor = a // b
    return floor + 1 if floor < 0 and floor * b != a else floor


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": operator.add, "Div": quotient, "Equal": operator.eq, "Max": max, "Min": min,
    "Mod": operator.mod, "Mul": operator.mul, "Sub": operator.sub,
}  # fmt: skip
