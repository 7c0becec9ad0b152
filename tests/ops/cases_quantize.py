"""Rows for QuantizeLinear and DynamicQuantizeLinear, and what stands between two directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from ops.cases import Case

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray

    Constants = Mapping[str, object]

RUNTIME = "com.microsoft"
FLAT = {"X": (8,)}
TOKENS = {"X": (5, 8)}
FLOAT8 = 17
"""TensorProto.FLOAT8E4M3FN."""
INT16 = 5
FLOAT16 = 10


def drawn(shape: tuple[int, ...], dtype: DTypeLike = np.int8, seed: int = 0) -> NDArray:
    """Draw whole numbers over the range of a type of few bits, or over that of int8."""
    low, high = (-127, 128)
    if np.dtype(dtype).itemsize == 1:
        info = ml_dtypes.iinfo(dtype)
        low, high = int(info.min), int(info.max) + 1
    numbers = np.random.default_rng(seed).integers(low, high, shape)
    return np.asarray(numbers).astype(dtype)


def scales(*shape: int, least: float = 0.01, seed: int = 1) -> NDArray:
    """Draw scales that no sum of whole numbers brings to a tie."""
    drawn = np.random.default_rng(seed).uniform(least, 2 * least, shape)
    return drawn.astype(np.float32)


def there_and_back(attributes: str, options: str = "") -> str:
    """Write a quantisation of X and its reverse; `options` are for the first alone."""
    first = ", ".join(filter(None, (attributes, options)))
    wrap = "<{}>".format
    return (
        f"Q = QuantizeLinear{wrap(first) if first else ''}(X, s, z) "
        f"Y = DequantizeLinear{wrap(attributes) if attributes else ''}(Q, s, z)"
    )


def around(name: str, constants: Constants, attributes: str = "", **options: object) -> Case:
    """Make a row of both directions around nothing."""
    return Case(name, "QuantizeLinear", there_and_back(attributes), constants=constants, **options)


PER_TENSOR = tuple(
    around(
        f"opset{opset}_{np.dtype(dtype).name}",
        {"s": np.float32(scale), "z": np.asarray(zero, dtype)},
        opset=opset,
    )
    for opset, dtype, scale, zero in (
        (10, np.uint8, 0.0213, 128),
        (10, np.int8, 0.0213, -3),
        (13, np.uint8, 0.0213, 100),
        (13, np.int8, 0.0213, 0),
        (19, np.int8, 0.0213, 5),
        (21, np.uint8, 0.0213, 120),
        (21, np.int16, 0.000113, 11),
        (21, np.uint16, 0.000113, 32000),
        (21, ml_dtypes.int4, 0.213, 1),
        (21, ml_dtypes.uint4, 0.213, 7),
        (23, np.int8, 0.0213, 2),
        (24, np.uint8, 0.0213, 90),
        (25, np.int8, 0.0213, -9),
        (25, ml_dtypes.int2, 0.713, 0),
        (25, ml_dtypes.uint2, 0.713, 1),
        (19, ml_dtypes.float8_e4m3fn, 0.0213, 0),
        (19, ml_dtypes.float8_e5m2, 0.0213, 0),
        (23, ml_dtypes.float8_e4m3fnuz, 0.0213, 0),
        (25, ml_dtypes.float8_e5m2fnuz, 0.0213, 0),
    )
)
QUANTIZE = (
    around("no_zero_point", {"s": 0.0213, "z": np.array(0, np.uint8)}, opset=13),
    Case(
        "left_out_zero_point",
        "QuantizeLinear",
        "Q = QuantizeLinear(X, s) Y = DequantizeLinear(Q, s)",
        constants={"s": 0.0213},
    ),
    Case(
        "output_dtype",
        "QuantizeLinear",
        f"Q = QuantizeLinear<output_dtype={INT16}>(X, s) Y = DequantizeLinear(Q, s)",
        constants={"s": 0.000313},
        opset=21,
    ),
    Case(
        "saturates_not",
        "QuantizeLinear",
        "Q = QuantizeLinear<saturate=0>(X, s, z) Y = DequantizeLinear(Q, s, z)",
        constants={"s": 0.0713, "z": np.zeros((), ml_dtypes.float8_e4m3fn)},
        opset=19,
    ),
    Case(
        "precision",
        "QuantizeLinear",
        f"Q = QuantizeLinear<precision={FLOAT16}>(X, s) Y = DequantizeLinear(Q, s)",
        constants={"s": 0.0213},
        opset=23,
    ),
    Case(
        "half",
        "QuantizeLinear",
        f"H = Cast<to={FLOAT16}>(X) Q = QuantizeLinear(H, s) D = DequantizeLinear(Q, s) "
        "Y = Cast<to=1>(D)",
        constants={"s": np.array(0.0313, np.float16)},
        opset=19,
    ),
    Case(
        "constant_that_is_quantised",
        "QuantizeLinear",
        "Q = QuantizeLinear<axis=0>(W, s) D = DequantizeLinear<axis=0>(Q, s) Y = Conv(X, D)",
        weights={"W": (6, 4, 3, 3)},
        constants={"s": scales(6)},
    ),
    Case(
        "computed_scale",
        "QuantizeLinear",
        "Q = QuantizeLinear(X, s, z) Y = DequantizeLinear(Q, s, z)",
        constants={"z": np.array(120, np.uint8)},
        given={"s": np.array([0.0213], np.float32)},
    ),
    Case(
        "one_of_one",
        "QuantizeLinear",
        there_and_back("axis=1"),
        constants={"s": scales(1), "z": np.array([100], np.uint8)},
    ),
    around("default_axis", {"s": scales(4), "z": drawn((4,), np.uint8)}, opset=13),
    around("channels", {"s": scales(4), "z": drawn((4,), np.int8)}, "axis=-3", opset=13),
    around("channels_int4", {"s": scales(4), "z": drawn((4,), ml_dtypes.int4)}, opset=21),
    around("features", {"s": scales(8), "z": drawn((8,))}, "axis=-1", inputs=TOKENS, last=True),
    around("rows", {"s": scales(6), "z": drawn((6,))}, "axis=2"),
    around("batch", {"s": scales(2), "z": drawn((2,))}, "axis=0", batch=2),
    around(
        "blocks",
        {"s": scales(2, 4, 3, 3), "z": drawn((2, 4, 3, 3), np.uint8)},
        "axis=1, block_size=2",
        inputs={"X": (8, 3, 3)},
        batch=2,
        opset=21,
    ),
    around(
        "blocks_of_features",
        {"s": scales(2, 5, 2), "z": drawn((2, 5, 2))},
        "axis=-1, block_size=4",
        inputs=TOKENS,
        batch=2,
        last=True,
        opset=25,
    ),
    around(
        "one_block",
        {"s": scales(2, 5, 1), "z": drawn((2, 5, 1))},
        "axis=2, block_size=16",
        inputs=TOKENS,
        batch=2,
        last=True,
        opset=21,
    ),
    around(
        "block_not_full",
        {"s": scales(2, 5, 3), "z": drawn((2, 5, 3))},
        "axis=2, block_size=3",
        inputs=TOKENS,
        batch=2,
        last=True,
        prunes=False,
        opset=21,
    ),
)

BETWEEN = tuple(
    Case(
        name,
        "QuantizeLinear",
        f"Q = QuantizeLinear(X, s, z) {text} Y = DequantizeLinear(R, s, z)",
        {"X": (8, 6, 6)},
        constants={"s": 0.0213, "z": np.array(120, np.uint8), **constants},
        **options,
    )
    for name, text, constants, options in (
        ("max_pool", "R = MaxPool<kernel_shape=[2,2], pads=[1,0,1,0]>(Q)", {}, {}),
        ("reshape", "R = Reshape(Q, to)", {"to": [0, 4, 2, -1]}, {}),
        ("transpose", "R = Transpose<perm=[0,2,1,3]>(Q)", {}, {"last": True}),
        ("concat", "R = Concat<axis=1>(Q, Q)", {}, {}),
        ("split", "A, B = Split<axis=1>(Q) R = Concat<axis=2>(A, B)", {}, {"opset": 13}),
        ("slice", "R = Slice(Q, at, to, axes)", {"at": [2], "to": [6], "axes": [1]}, {}),
        ("pad", "R = Pad(Q, pads, z)", {"pads": [0, 1, 0, 0, 0, 0, 1, 0]}, {}),
        (
            "clip",
            "R = Clip(Q, low, high)",
            {"low": np.array(100, np.uint8), "high": np.array(200, np.uint8)},
            {},
        ),
        ("resize", "R = Resize(Q, , sizes)", {"sizes": [1.0, 1.0, 2.0, 2.0]}, {}),
        ("twice", "D = DequantizeLinear(Q, s, z) R = QuantizeLinear(D, s, z)", {}, {}),
    )
)
OF_RUNTIME = tuple(
    Case(
        name,
        op_type,
        f"Q = {RUNTIME}.QuantizeLinear{attributes}(X, s, z) "
        f"Y = {RUNTIME}.DequantizeLinear{attributes}(Q, s, z)",
        constants={"s": scales(*shape), "z": np.full(shape, 3, dtype)},
        domain=RUNTIME,
    )
    for op_type in ("QuantizeLinear", "DequantizeLinear")
    for name, attributes, shape, dtype in (
        ("tensor", "", (), np.uint8),
        ("channels", "<axis=1>", (4,), np.int8),
        ("default_axis", "", (4,), np.int16),
        ("features", "<axis=3>", (6,), np.uint16),
    )
)
DYNAMIC = (
    Case(
        "plain",
        "DynamicQuantizeLinear",
        "Q, s, z = DynamicQuantizeLinear(X) Y = DequantizeLinear(Q, s, z)",
    ),
    Case(
        "features",
        "DynamicQuantizeLinear",
        "Q, s, z = DynamicQuantizeLinear(X) Y = DequantizeLinear(Q, s, z)",
        FLAT,
    ),
    Case(
        "positive",
        "DynamicQuantizeLinear",
        "R = Relu(X) Q, s, z = DynamicQuantizeLinear(R) Y = DequantizeLinear(Q, s, z)",
    ),
)
CASES = (*PER_TENSOR, *QUANTIZE, *BETWEEN, *OF_RUNTIME, *DYNAMIC)
