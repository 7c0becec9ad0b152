"""What elementwise operators make of the numbers that describe shapes.

Sums, differences, products and quotients of sizes keep following the sizes. Any other function
takes numbers as they are, which keeps them what they are.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from obc_onnx.axes.sizes import AxisSize, Sized, divide, value_of
from obc_onnx.ops.base.value import apply, followed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from obc_onnx.ops.base.context import CoupleContext

    Numbers = NDArray[Any]

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Abs": np.abs, "Add": np.add, "And": np.logical_and, "Ceil": np.ceil, "Div": np.divide,
    "Equal": np.equal, "Floor": np.floor, "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal, "Less": np.less, "LessOrEqual": np.less_equal,
    "Max": np.maximum, "Min": np.minimum, "Mod": np.mod, "Mul": np.multiply, "Neg": np.negative,
    "Not": np.logical_not, "Or": np.logical_or, "Pow": np.power, "Reciprocal": np.reciprocal,
    "Round": np.round, "Sqrt": np.sqrt, "Sub": np.subtract, "Xor": np.logical_xor,
}  # fmt: skip
_WHOLE: frozenset[int] = frozenset({TensorProto.INT32, TensorProto.INT64})
_OTHER: dict[int, type[np.generic]] = {TensorProto.FLOAT: np.float32, TensorProto.BOOL: np.bool_}


def follow(context: CoupleContext) -> Numbers | None:
    """Compute what an elementwise node makes of the numbers in its inputs.

    Returns:
        Numbers in the shape of the output; None where they are not followed further.
    """
    op_type = context.node.op_type
    operands = [value.numbers for value in context.inputs if value is not None]
    if any(numbers is None for numbers in operands):
        return None
    if op_type in _ON_SIZES:
        return _ON_SIZES[op_type](context, [n for n in operands if n is not None])
    return _as_they_are(context)


def _as_they_are(context: CoupleContext) -> Numbers | None:
    function = _FUNCTIONS.get(context.node.op_type)
    if function is None:
        return None
    known = [context.numbers(slot) for slot in range(len(context.inputs))]
    if any(numbers is None for numbers in known):
        return _as_it_runs(context, function)
    return _fold(function, known)


def _fold(function: Callable[..., Any], operands: Sequence[Numbers | None]) -> Numbers | None:
    if len(operands) > 2:  # noqa: PLR2004 - more than a pair
        return apply(lambda *arrays: reduce(function, arrays), *operands)
    return apply(function, *operands)


def _as_it_runs(context: CoupleContext, function: Callable[..., Any]) -> Numbers | None:
    """Make sizes of their own of whole numbers that are only known when the model runs.

    So what stands beside them, as in a Reshape's target, can still be followed.
    """
    numbers = [value.numbers for value in context.inputs if value is not None]
    found = _fold(function, [None if n is None else _values(n) for n in numbers])
    if found is None or found.dtype.kind not in "iu" or (found < 1).any():
        return None
    result = np.empty(found.shape, object)
    for place, number in np.ndenumerate(found):
        result[place] = AxisSize(context.varying(int(number)))
    return result


def _values(numbers: Numbers) -> Numbers:
    """Return numbers as they are for the sizes that the model is analysed with."""
    return np.asarray([value_of(n) for n in numbers.flat]).reshape(numbers.shape)


def _identity(_context: CoupleContext, operands: list[Numbers]) -> Numbers | None:
    return operands[0]


def _cast(context: CoupleContext, operands: list[Numbers]) -> Numbers | None:
    kind = context.node.integer("to", TensorProto.INT64)
    if kind in _WHOLE and _is_whole(operands[0]):
        return operands[0]
    found = context.numbers(0)
    if kind in _WHOLE:
        return None if found is None else followed(found.astype(np.int64))
    return None if found is None or kind not in _OTHER else followed(found.astype(_OTHER[kind]))


def _where(context: CoupleContext, operands: list[Numbers]) -> Numbers | None:
    return apply(np.where, context.numbers(0), *operands[1:])


def _combine(context: CoupleContext, operands: list[Numbers]) -> Numbers | None:
    if not all(map(_is_whole, operands)):
        return _as_they_are(context)
    function = _divide if context.node.op_type == "Div" else _FUNCTIONS[context.node.op_type]
    return apply(function, *operands)


def _equal(context: CoupleContext, operands: list[Numbers]) -> Numbers | None:
    """Compare; a size is never a negative number, as in the search for a -1 in a target shape."""
    pairs = np.broadcast(*operands)
    if not all(_differ(x, y) or not (_is_sized(x) or _is_sized(y)) for x, y in pairs):
        return _as_they_are(context)
    equal = [not _differ(x, y) and bool(x == y) for x, y in np.broadcast(*operands)]
    return np.asarray(equal, np.bool_).reshape(pairs.shape)


def _divide(a: Numbers, b: Numbers) -> Numbers:
    pairs = np.broadcast(a, b)
    results = [x // y if _is_sized(x) or _is_sized(y) else divide(int(x), int(y)) for x, y in pairs]
    result = np.empty(pairs.shape, object)
    result.reshape(-1)[:] = results
    return result


def _differ(x: Any, y: Any) -> bool:
    return (_is_sized(x) and not _is_sized(y) and y < 0) or (
        _is_sized(y) and not _is_sized(x) and x < 0
    )


def _is_sized(number: Any) -> bool:
    return isinstance(number, Sized)


def _is_whole(numbers: Numbers) -> bool:
    return numbers.dtype.kind in "iuO"


_ON_SIZES: dict[str, Callable[[CoupleContext, list[Numbers]], Numbers | None]] = {
    "Add": _combine, "Cast": _cast, "Div": _combine, "Equal": _equal, "Identity": _identity,
    "Mul": _combine, "Sub": _combine, "Where": _where,
}  # fmt: skip
"""What keeps following sizes."""
