"""Rows for convolutions and products of quantised operands, and for what ONNX Runtime has beside.

The model around an operator is one of floats, so X is quantised in front of it and Y dequantised.
"""

from __future__ import annotations

import numpy as np
from ops.cases import Case
from ops.cases_quantize import RUNTIME, drawn, scales

FLAT = {"X": (8,)}
TOKENS = {"X": (5, 8)}
PARAMETERS = {
    "xs": 0.0213,
    "xz": np.array(117, np.uint8),
    "ys": 0.0517,
    "yz": np.array(121, np.uint8),
    "ws": 0.0039,
    "wz": np.array(0, np.int8),
    "none": np.array(0, np.uint8),
}
IN = "Q = QuantizeLinear(X, xs, xz)"
OUT = "Y = DequantizeLinear(R, ys, yz)"


def bytes_(*shape: int, seed: int = 0) -> np.ndarray:
    """Draw whole numbers of uint8."""
    return drawn(shape, np.uint8, seed)


def signed(*shape: int) -> np.ndarray:
    """Draw whole numbers of int8 of 7 bits.

    Processors without instructions for it sum two products of uint8 and int8 in 16 bits, where
    those of 8 bits saturate.
    """
    return drawn(shape) // 2


def row(name: str, op_type: str, text: str, constants: dict, **options: object) -> Case:
    """Make a row of an operator between X, quantised as Q, and Y, from R."""
    return Case(
        name,
        op_type,
        f"{IN} {text} {OUT}",
        constants={**PARAMETERS, **constants},
        **options,
    )


def conv(name: str, attributes: str, constants: dict, **options: object) -> Case:
    """Make a row of QLinearConv; scale, zero point and bias of w are added by name."""
    w_zero = "Z" if "Z" in constants else options.pop("zero", "wz")
    scale = "S" if "S" in constants else "ws"
    bias = ", B" if "B" in constants else ""
    domain = options.get("domain", "")
    call = f"{domain}.QLinearConv" if domain else "QLinearConv"
    text = f"R = {call}{attributes}(Q, xs, xz, W, {scale}, {w_zero}, ys, yz{bias})"
    return row(name, "QLinearConv", text, constants, **options)


W = signed(6, 4, 3, 3)
NO_ZERO = np.zeros(6, np.int8)
CONV = (
    conv("tensor", "<pads=[1,1,1,1]>", {"W": W}, opset=10),
    conv("bias", "<strides=[2,1]>", {"W": W, "B": drawn((6,), np.int32)}),
    conv("channels", "", {"W": W, "S": scales(6, least=0.003)}),
    conv(
        "channels_zero_bias",
        "<pads=[1,1,1,1]>",
        {"W": W, "S": scales(6, least=0.003), "Z": NO_ZERO, "B": drawn((6,), np.int32)},
    ),
    conv("zero_per_channel", "", {"W": W, "Z": drawn((6,))}),
    conv("blocks", "<group=2>", {"W": signed(6, 2, 3, 3), "S": scales(6, least=0.003)}),
    conv("depthwise", "<group=4>", {"W": signed(4, 1, 3, 3), "S": scales(4, least=0.003)}),
    conv("1d", "", {"W": signed(6, 4, 3)}, inputs={"X": (4, 9)}),
    conv("uint8", "", {"W": bytes_(6, 4, 3, 3), "Z": np.full((), 120, np.uint8)}),
    conv("uint8_no_zero", "", {"W": bytes_(6, 4, 3, 3)}, zero="none"),
    conv(
        "uint8_behind_no_zero",
        "",
        {"W": bytes_(6, 4, 3, 3), "Z": np.full((), 120, np.uint8), "xz": np.array(0, np.uint8)},
    ),
    conv(
        "uint8_behind_no_zero_opset13",
        "",
        {"W": bytes_(6, 4, 3, 3), "Z": np.full((), 120, np.uint8), "xz": np.array(0, np.uint8)},
        opset=13,
    ),
    row(
        "quantised_as_it_runs",
        "QLinearConv",
        "K = QuantizeLinear<axis=0>(F, S, Z) R = QLinearConv(Q, xs, xz, K, S, Z, ys, yz)",
        {"S": scales(6, least=0.003), "Z": NO_ZERO},
        weights={"F": (6, 4, 3, 3)},
    ),
    conv("runtime", "", {"W": W, "S": scales(6, least=0.003)}, domain=RUNTIME),
    conv(
        "runtime_channels_last",
        "<channels_last=1, strides=[2,2]>",
        {"W": W, "S": scales(6, least=0.003), "B": drawn((6,), np.int32)},
        domain=RUNTIME,
        inputs={"X": (7, 7, 4)},
        last=True,
        has_twin=False,
    ),
    conv(
        "runtime_channels_last_zero",
        "<channels_last=1>",
        {"W": W, "Z": drawn((6,))},
        domain=RUNTIME,
        inputs={"X": (7, 7, 4)},
        last=True,
        has_twin=False,
    ),
)
CONV_INTEGER = tuple(
    Case(
        name,
        "ConvInteger",
        f"{IN} I = ConvInteger{attributes}({operands}) F = Cast<to=1>(I) Y = Mul(F, ws)",
        constants={**PARAMETERS, "W": w, **more},
        **options,
    )
    for name, attributes, operands, w, more, options in (
        ("both_zeros", "<pads=[1,1,1,1]>", "Q, W, xz, wz", W, {}, {}),
        ("zero_of_x", "<strides=[2,2]>", "Q, W, xz", W, {}, {}),
        ("no_zeros", "<group=2>", "Q, W", signed(6, 2, 3, 3), {}, {}),
        ("zero_of_w", "", "Q, W, xz, v", bytes_(6, 4, 3, 3), {"v": np.array(9, np.uint8)}, {}),
        (
            "zero_of_w_alone",
            "",
            "Q, W, , v",
            bytes_(6, 4, 3, 3),
            {"v": np.array(9, np.uint8), "xz": np.array(0, np.uint8)},
            {},
        ),
    )
)


def matmul(name: str, text: str, constants: dict, **options: object) -> Case:
    """Make a row of QLinearMatMul."""
    return row(name, "QLinearMatMul", text, constants, **{"last": True, **options})


MATMUL = (
    matmul(
        "tensor",
        "R = QLinearMatMul(Q, xs, xz, W, ws, wz, ys, yz)",
        {"W": signed(8, 6)},
        inputs=FLAT,
        opset=10,
    ),
    matmul(
        "columns",
        "R = QLinearMatMul(Q, xs, xz, W, S, Z, ys, yz)",
        {"W": signed(8, 6), "S": scales(6), "Z": NO_ZERO},
        inputs=TOKENS,
    ),
    matmul(
        "columns_of_rank_2",
        "R = QLinearMatMul(Q, xs, xz, W, S, Z, ys, yz)",
        {"W": signed(8, 6), "S": scales(1, 6), "Z": NO_ZERO[None]},
        inputs=TOKENS,
    ),
    matmul(
        "columns_of_batches",
        "R = QLinearMatMul(Q, xs, xz, W, S, Z, ys, yz)",
        {"W": signed(5, 8, 6), "S": scales(5, 1, 6), "Z": np.zeros((5, 1, 6), np.int8)},
        inputs={"X": (5, 3, 8)},
    ),
    matmul(
        "opset21",
        "R = QLinearMatMul(Q, xs, xz, W, ws, wz, ys, yz)",
        {"W": signed(8, 6)},
        inputs=FLAT,
        opset=21,
    ),
    matmul(
        "zero",
        "R = QLinearMatMul(Q, xs, xz, W, S, Z, ys, yz)",
        {"W": signed(8, 6), "S": scales(6), "Z": drawn((6,))},
        inputs=FLAT,
    ),
    matmul(
        "zero_behind_no_zero",
        "R = QLinearMatMul(Q, xs, xz, W, S, Z, ys, yz)",
        {"W": signed(8, 6), "S": scales(6), "Z": drawn((6,)), "xz": np.array(0, np.uint8)},
        inputs=FLAT,
    ),
    matmul(
        "left",
        "R = QLinearMatMul(W, ws, none, Q, xs, xz, ys, yz)",
        {"W": bytes_(6, 4)},
        inputs={"X": (4, 5)},
        last=False,
    ),
    matmul(
        "computed",
        "K = QuantizeLinear(Z, xs, none) T = Transpose<perm=[0,2,1]>(K) "
        "R = QLinearMatMul(Q, xs, xz, T, xs, none, ys, yz)",
        {"xz": np.array(0, np.uint8)},
        inputs={"X": (5, 8), "Z": (7, 8)},
        last=True,
    ),
    matmul(
        "computed_zero",
        "K = QuantizeLinear(Z, xs, xz) T = Transpose<perm=[0,2,1]>(K) "
        "R = QLinearMatMul(Q, xs, xz, T, xs, xz, ys, yz)",
        {},
        inputs={"X": (5, 8), "Z": (7, 8)},
        last=True,
        prunes=False,
    ),
    matmul(
        "computed_opset13",
        "K = QuantizeLinear(Z, xs, none) T = Transpose<perm=[0,2,1]>(K) "
        "R = QLinearMatMul(Q, xs, xz, T, xs, none, ys, yz)",
        {"xz": np.array(0, np.uint8)},
        inputs={"X": (5, 8), "Z": (7, 8)},
        last=True,
        opset=13,
        prunes=False,
    ),
)
MATMUL_INTEGER = tuple(
    Case(
        name,
        "MatMulInteger",
        f"{IN} I = MatMulInteger({operands}) F = Cast<to=1>(I) Y = Mul(F, ws)",
        inputs,
        constants={**PARAMETERS, **constants},
        **options,
    )
    for name, operands, inputs, constants, options in (
        ("both_zeros", "Q, W, xz, wz", FLAT, {"W": signed(8, 6)}, {}),
        ("columns", "Q, W, xz, Z", FLAT, {"W": signed(8, 6), "Z": NO_ZERO}, {}),
        ("zero", "Q, W, xz, Z", FLAT, {"W": signed(8, 6), "Z": drawn((6,))}, {}),
        ("no_zeros", "Q, W", TOKENS, {"W": signed(8, 6)}, {"last": True}),
        ("left", "W, Q, none, xz", {"X": (4, 5)}, {"W": bytes_(6, 4)}, {}),
        ("batches", "Q, W, xz", {"X": (4, 3, 8)}, {"W": signed(4, 8, 6)}, {"last": True}),
    )
)
DYNAMIC = (
    Case(
        "dynamic",
        "MatMulInteger",
        "Q, s, z = DynamicQuantizeLinear(X) I = MatMulInteger(Q, W, z, wz) F = Cast<to=1>(I) "
        "T = Mul(s, ws) Y = Mul(F, T)",
        TOKENS,
        constants={**PARAMETERS, "W": signed(8, 6)},
        last=True,
    ),
    Case(
        "dynamic",
        "ConvInteger",
        "Q, s, z = DynamicQuantizeLinear(X) I = ConvInteger(Q, W, z, wz) F = Cast<to=1>(I) "
        "T = Mul(s, S) Y = Mul(F, T)",
        constants={**PARAMETERS, "W": W, "S": scales(6, 1, 1, least=0.003)},
    ),
)
TO_FLOAT = tuple(
    Case(
        name,
        "MatMulIntegerToFloat",
        f"{text} Y = {RUNTIME}.MatMulIntegerToFloat({operands})",
        TOKENS,
        constants={**PARAMETERS, "W": signed(8, 6), **constants},
        weights=weights,
        domain=RUNTIME,
        last=True,
    )
    for name, text, operands, constants, weights in (
        ("tensor", IN, "Q, W, xs, ws, xz, wz", {}, {}),
        ("columns", IN, "Q, W, xs, S, xz, Z, b", {"S": scales(6), "Z": NO_ZERO}, {"b": (6,)}),
        ("no_zeros", IN, "Q, W, xs, S, , , b", {"S": scales(6)}, {"b": (6,)}),
        ("zero", IN, "Q, W, xs, S, xz, Z", {"S": scales(6), "Z": drawn((6,))}, {}),
        (
            "dynamic",
            "Q, s, z = DynamicQuantizeLinear(X)",
            "Q, W, s, S, z, Z",
            {"S": scales(6), "Z": NO_ZERO},
            {},
        ),
    )
)
DYNAMIC_MATMUL = tuple(
    Case(
        name,
        "DynamicQuantizeMatMul",
        f"Y = {RUNTIME}.DynamicQuantizeMatMul({operands})",
        TOKENS,
        constants={**PARAMETERS, "W": signed(8, 6), **constants},
        weights=weights,
        domain=RUNTIME,
        last=True,
    )
    for name, operands, constants, weights in (
        ("tensor", "X, W, ws", {}, {}),
        ("columns", "X, W, S, Z, b", {"S": scales(6), "Z": NO_ZERO}, {"b": (6,)}),
        ("zero", "X, W, S, Z", {"S": scales(6), "Z": drawn((6,))}, {}),
        ("bias", "X, W, S, , b", {"S": scales(6)}, {"b": (6,)}),
    )
)
GEMM = tuple(
    row(
        name,
        "QGemm",
        f"R = {RUNTIME}.QGemm{attributes}({operands})",
        constants,
        inputs=FLAT,
        domain=RUNTIME,
        **options,
    )
    for name, attributes, operands, constants, options in (
        ("plain", "", "Q, xs, xz, W, ws, wz, , ys, yz", {"W": signed(8, 6)}, {}),
        (
            "columns",
            "<transB=1>",
            "Q, xs, xz, W, S, Z, c, ys, yz",
            {
                "W": signed(6, 8),
                "S": scales(6),
                "Z": NO_ZERO,
                "c": drawn((6,), np.int32),
            },
            {},
        ),
        (
            "alpha",
            "<alpha=0.5>",
            "Q, xs, xz, W, S, Z, c, ys, yz",
            {
                "W": signed(8, 6),
                "S": scales(6),
                "Z": NO_ZERO,
                "c": drawn((1, 6), np.int32),
            },
            {},
        ),
        (
            "zero",
            "",
            "Q, xs, xz, W, ws, v, , ys, yz",
            {"W": bytes_(8, 6), "v": np.array(99, np.uint8)},
            {},
        ),
    )
)
GEMM_MORE = (
    row(
        "transposed_a",
        "QGemm",
        f"T = Transpose(Q) R = {RUNTIME}.QGemm<transA=1>(T, xs, xz, W, ws, wz, , ys, yz)",
        {"W": signed(8, 6)},
        inputs=FLAT,
        domain=RUNTIME,
    ),
    Case(
        "float",
        "QGemm",
        f"{IN} Y = {RUNTIME}.QGemm<transB=1>(Q, xs, xz, W, S, Z, c)",
        FLAT,
        constants={
            **PARAMETERS,
            "W": signed(6, 8),
            "S": scales(6),
            "Z": NO_ZERO,
            "c": drawn((6,), np.int32),
        },
        domain=RUNTIME,
    ),
)
CASES = (
    *CONV,
    *CONV_INTEGER,
    *MATMUL,
    *MATMUL_INTEGER,
    *DYNAMIC,
    *TO_FLOAT,
    *DYNAMIC_MATMUL,
    *GEMM,
    *GEMM_MORE,
)
