"""Rows for weights behind DequantizeLinear, and for weights that are stored in half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
from ops.cases import Case
from ops.cases_quantize import FLAT, FLOAT16, drawn, scales

if TYPE_CHECKING:
    from numpy.typing import NDArray


def weight(
    name: str,
    attributes: str,
    w: NDArray,
    s: NDArray,
    z: NDArray | None = None,
    call: str = "MatMul(X, D)",
    **options: object,
) -> Case:
    """Make a row of dequantised weights."""
    constants = {"W": w, "s": s} | ({} if z is None else {"z": z})
    zero = "" if z is None else ", z"
    text = f"D = DequantizeLinear{attributes}(W, s{zero}) Y = {call}"
    inputs = options.pop("inputs", FLAT if "MatMul" in call else {"X": (4, 6, 6)})
    return Case(name, "DequantizeLinear", text, inputs, constants=constants, **options)


FILTERS = drawn((6, 4, 3, 3))
DEQUANTIZE = (
    weight("conv", "", FILTERS, scales(), call="Conv(X, D)", opset=10),
    weight("conv_channels", "<axis=0>", FILTERS, scales(6), call="Conv(X, D)"),
    weight(
        "conv_channels_zero",
        "<axis=-4>",
        drawn((6, 4, 3, 3), np.uint8),
        scales(6),
        drawn((6,), np.uint8, 3),
        call="Conv(X, D)",
    ),
    weight("conv_blocks", "<axis=0>", drawn((6, 2, 3, 3)), scales(6), call="Conv<group=2>(X, D)"),
    weight("depthwise", "<axis=0>", drawn((4, 1, 3, 3)), scales(4), call="Conv<group=4>(X, D)"),
    weight("deconv", "<axis=1>", drawn((4, 6, 2, 2)), scales(6), call="ConvTranspose(X, D)"),
    weight("read_channels", "<axis=1>", FILTERS, scales(4), drawn((4,)), call="Conv(X, D)"),
    weight("default_axis", "", drawn((8, 6)), scales(6), drawn((6,))),
    weight("tensor_zero", "", drawn((8, 6)), scales(), np.array(7, np.int8)),
    weight("one_of_one", "<axis=0>", drawn((8, 6)), scales(1), np.array([7], np.int8)),
    weight("int16", "<axis=0>", drawn((8, 6), np.int16), scales(8), opset=21),
    weight("uint16", "", drawn((8, 6), np.uint8).astype(np.uint16), scales(), opset=21),
    weight("int32", "<axis=1>", drawn((8, 6), np.int32), scales(6)),
    weight("int4", "", drawn((8, 6), ml_dtypes.int4), scales(6), opset=21),
    weight(
        "uint4",
        "",
        drawn((8, 6), ml_dtypes.uint4),
        scales(6),
        drawn((6,), ml_dtypes.uint4),
        opset=21,
    ),
    weight("int2", "", drawn((8, 6), ml_dtypes.int2), scales(6), opset=25),
    weight(
        "float8",
        "",
        (drawn((8, 6)) / 32).astype(ml_dtypes.float8_e4m3fn),
        scales(6),
        opset=19,
    ),
    weight(
        "blocks", "<axis=0, block_size=2>", drawn((8, 6)), scales(4, 6), drawn((4, 6)), opset=21
    ),
    weight(
        "blocks_int4",
        "<axis=0, block_size=4>",
        drawn((8, 6), ml_dtypes.uint4),
        scales(2, 6),
        drawn((2, 6), ml_dtypes.uint4),
        opset=21,
    ),
    weight("blocks_written", "<axis=-1, block_size=3>", drawn((8, 6)), scales(8, 2), opset=23),
    weight("one_block", "<axis=0, block_size=16>", drawn((8, 6)), scales(1, 6), opset=21),
    weight("block_not_full", "<axis=0, block_size=5>", drawn((8, 6)), scales(2, 6), opset=21),
    weight("opset24", "<axis=1>", drawn((8, 6)), scales(6), drawn((6,)), opset=24),
    weight(
        "transposed", "<axis=0>", drawn((6, 8)), scales(6), call="Gemm<transB=1>(X, D)", inputs=FLAT
    ),
    Case(
        "output_dtype",
        "DequantizeLinear",
        f"D = DequantizeLinear<output_dtype={FLOAT16}>(W, s) F = Cast<to=1>(D) Y = MatMul(X, F)",
        FLAT,
        constants={"W": drawn((8, 6)), "s": scales(6)},
        opset=23,
    ),
    Case(
        "half",
        "DequantizeLinear",
        "D = DequantizeLinear(W, s) F = Cast<to=1>(D) Y = MatMul(X, F)",
        FLAT,
        constants={"W": drawn((8, 6)), "s": scales(6).astype(np.float16)},
        opset=19,
    ),
    Case(
        "bias",
        "DequantizeLinear",
        "D = DequantizeLinear<axis=0>(W, s) B = DequantizeLinear<axis=0>(b, t, z) "
        "Y = Conv(X, D, B)",
        constants={
            "W": FILTERS,
            "s": scales(6),
            "b": drawn((6,), np.int32),
            "t": scales(6, seed=2),
            "z": np.zeros(6, np.int32),
        },
    ),
    Case(
        "transposed_before",
        "DequantizeLinear",
        "T = Transpose(W) D = DequantizeLinear<axis=1>(T, s) Y = MatMul(X, D)",
        FLAT,
        constants={"W": drawn((6, 8)), "s": scales(6)},
    ),
    Case(
        "table",
        "DequantizeLinear",
        "D = DequantizeLinear<axis=0>(W, s) Y = Gather(D, at)",
        {},
        constants={"W": drawn((7, 8)), "s": scales(7)},
        given={"at": np.array([[3, 0], [6, 6]])},
        last=True,
    ),
    Case(
        "addend",
        "DequantizeLinear",
        "D = DequantizeLinear<axis=0>(W, s) Y = Add(X, D)",
        constants={"W": drawn((4, 1, 1)), "s": scales(4)},
    ),
)
NETWORK = Case(
    "network",
    "QuantizeLinear",
    """
    Q = QuantizeLinear(X, xs, xz)
    D = DequantizeLinear(Q, xs, xz)
    W1 = DequantizeLinear<axis=0>(w1, s1, z1)
    B1 = DequantizeLinear<axis=0>(b1, t1)
    H = Conv<pads=[1,1,1,1]>(D, W1, B1)
    R = Relu(H)
    QR = QuantizeLinear(R, xs, xz)
    DR = DequantizeLinear(QR, xs, xz)
    W2 = DequantizeLinear<axis=0>(w2, s2)
    S = Conv(DR, W2)
    A = Add(S, D)
    QA = QuantizeLinear(A, xs, xz)
    Y = DequantizeLinear(QA, xs, xz)
    """,
    constants={
        "xs": 0.0213,
        "xz": np.array(117, np.uint8),
        "w1": drawn((6, 4, 3, 3)),
        "s1": scales(6, least=0.001),
        "z1": np.zeros(6, np.int8),
        "b1": drawn((6,), np.int32),
        "t1": scales(6, least=0.001, seed=2),
        "w2": drawn((4, 6, 1, 1), seed=3),
        "s2": scales(4, least=0.001, seed=4),
    },
)
STORED_IN_HALF = (
    Case(
        "conv",
        "Cast",
        "F = Cast<to=1>(W) G = Cast<to=1>(B) Y = Conv(X, F, G)",
        constants={
            "W": (drawn((6, 4, 3, 3)) / 64).astype(np.float16),
            "B": (drawn((6,)) / 64).astype(np.float16),
        },
    ),
    Case(
        "matmul",
        "Cast",
        "F = Cast<to=1>(W) Y = MatMul(X, F)",
        FLAT,
        constants={"W": (drawn((8, 6)) / 64).astype(np.float16)},
    ),
    Case(
        "norm",
        "Cast",
        "F = Cast<to=1>(g) G = Cast<to=1>(b) Y = BatchNormalization(X, F, G, m, v)",
        constants={
            "g": np.array([0.5, 1.5, -1, 2], np.float16),
            "b": np.array([0.1, 0.2, -0.3, 1], np.float16),
            "m": [0.1, -0.2, 0.3, 0.4],
            "v": [1.0, 2.0, 0.5, 0.25],
        },
    ),
    Case(
        "computes_in_half",
        "Cast",
        f"H = Cast<to={FLOAT16}>(X) M = MatMul(H, W) Y = Cast<to=1>(M)",
        FLAT,
        constants={"W": (drawn((8, 6)) / 64).astype(np.float16)},
        tolerance=1e-2,
        reason="it computes in float16",
    ),
)
CASES = (*DEQUANTIZE, NETWORK, *STORED_IN_HALF)
