"""Rows for sums, joins, pools and activations of quantised tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ops.cases_quantize import RUNTIME
from ops.cases_quantized_linear import FLAT, TOKENS, bytes_, row

if TYPE_CHECKING:
    from ops.cases import Case

ROW = {"X": (7, 6, 4)}
BESIDE = "K = QuantizeLinear(Z, ws, v)"
SHARES = {"ys": 1 / 256, "yz": np.array(0, np.uint8)}
"""What suits numbers from 0 to 1."""
MORE = {"ws": 0.0313, "v": np.array(99, np.uint8)}


def mapped(
    name: str, op_type: str, text: str, constants: dict | None = None, **more: object
) -> Case:
    """Make a row of an operator of ONNX Runtime, whose name stands as OP in the text."""
    text = text.replace("OP", f"{RUNTIME}.{op_type}")
    return row(name, op_type, text, {**MORE, **(constants or {})}, domain=RUNTIME, **more)


BINARY = tuple(
    mapped(name, op_type, text, constants, inputs=inputs)
    for op_type in ("QLinearAdd", "QLinearMul")
    for name, text, constants, inputs in (
        (
            "computed",
            f"{BESIDE} R = OP(Q, xs, xz, K, ws, v, ys, yz)",
            {},
            {"X": (4, 6, 6), "Z": (4, 6, 6)},
        ),
        (
            "constant",
            "R = OP(Q, xs, xz, W, ws, v, ys, yz)",
            {"W": bytes_(4, 1, 1)},
            {"X": (4, 6, 6)},
        ),
        ("scalar", "R = OP(W, ws, v, Q, xs, xz, ys, yz)", {"W": bytes_()}, {"X": (4, 6, 6)}),
        (
            "broadcast",
            f"{BESIDE} R = OP(K, ws, v, Q, xs, xz, ys, yz)",
            {},
            {"X": (4, 6, 6), "Z": (4, 1, 1)},
        ),
    )
)
JOIN = (
    mapped(
        "channels",
        "QLinearConcat",
        f"{BESIDE} R = OP<axis=1>(ys, yz, Q, xs, xz, K, ws, v)",
        inputs={"X": (4, 6, 6), "Z": (5, 6, 6)},
    ),
    mapped(
        "negative_axis",
        "QLinearConcat",
        f"{BESIDE} R = OP<axis=-1>(ys, yz, Q, xs, xz, K, ws, v)",
        inputs={"X": (5, 8), "Z": (5, 3)},
        last=True,
    ),
    mapped(
        "with_itself",
        "QLinearConcat",
        "R = OP<axis=1>(ys, yz, Q, xs, xz, Q, xs, xz, W, ws, v)",
        {"W": bytes_(2, 3, 6, 6)},
        batch=2,
    ),
)
POOL = (
    mapped(
        "plain",
        "QLinearAveragePool",
        "R = OP<kernel_shape=[2,3], strides=[2,1]>(Q, xs, xz, ys, yz)",
    ),
    mapped(
        "pads",
        "QLinearAveragePool",
        "R = OP<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1, strides=[2,2]>"
        "(Q, xs, xz, ys, yz)",
    ),
    mapped(
        "beyond_the_pads",
        "QLinearAveragePool",
        "R = OP<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1, ceil_mode=1, "
        "strides=[2,2]>(Q, xs, xz, ys, yz)",
        has_twin=False,
    ),
    mapped(
        "channels_last",
        "QLinearAveragePool",
        "R = OP<kernel_shape=[2,3], channels_last=1>(Q, xs, xz, ys, yz)",
        inputs=ROW,
        last=True,
        has_twin=False,
    ),
    mapped("plain", "QLinearGlobalAveragePool", "R = OP(Q, xs, xz, ys, yz)"),
    mapped(
        "channels_last",
        "QLinearGlobalAveragePool",
        "R = OP<channels_last=1>(Q, xs, xz, ys, yz)",
        inputs=ROW,
        last=True,
        has_twin=False,
    ),
    mapped(
        "plain",
        "NhwcMaxPool",
        "R = OP<kernel_shape=[2,3], strides=[2,2], pads=[0,1,1,0]>(Q)",
        inputs=ROW,
        last=True,
    ),
    mapped(
        "dilations",
        "NhwcMaxPool",
        "R = OP<kernel_shape=[2,2], dilations=[2,1], ceil_mode=1>(Q)",
        inputs=ROW,
        last=True,
    ),
)
ACTIVATION = (
    mapped("plain", "QLinearSigmoid", "R = OP(Q, xs, xz, ys, yz)"),
    mapped("features", "QLinearSigmoid", "R = OP(Q, xs, xz, ys, yz)", inputs=TOKENS, last=True),
    mapped("plain", "QLinearLeakyRelu", "R = OP<alpha=0.1>(Q, xs, xz, ys, yz)"),
    mapped("default_alpha", "QLinearLeakyRelu", "R = OP(Q, xs, xz, ys, yz)", inputs=FLAT),
    mapped(
        "channels",
        "QLinearSoftmax",
        "R = OP<axis=1, opset=13>(Q, xs, xz, ys, yz)",
        SHARES,
        prunes=False,
    ),
    mapped("rows", "QLinearSoftmax", "R = OP<axis=2, opset=13>(Q, xs, xz, ys, yz)", SHARES),
    mapped("default_axis", "QLinearSoftmax", "R = OP<opset=13>(Q, xs, xz, ys, yz)", SHARES),
    mapped("flattens", "QLinearSoftmax", "R = OP<axis=2, opset=11>(Q, xs, xz, ys, yz)", SHARES),
    mapped(
        "flattens_features",
        "QLinearSoftmax",
        "R = OP<axis=1, opset=11>(Q, xs, xz, ys, yz)",
        SHARES,
        inputs=TOKENS,
        last=True,
        prunes=False,
    ),
    mapped(
        "flattens_channels",
        "QLinearSoftmax",
        "R = OP<axis=1, opset=11>(Q, xs, xz, ys, yz)",
        SHARES,
        prunes=False,
    ),
    mapped(
        "computed",
        "QLinearWhere",
        f"{BESIDE} R = OP(c, Q, xs, xz, K, ws, v, ys, yz)",
        {"c": np.array([[[True], [False], [True], [True], [False], [True]]])},
        inputs={"X": (4, 6, 6), "Z": (4, 6, 6)},
    ),
    mapped(
        "constant",
        "QLinearWhere",
        "R = OP(c, Q, xs, xz, W, ws, v, ys, yz)",
        {"c": np.array([[[True]], [[False]], [[True]], [[True]]]), "W": bytes_(4, 1, 1)},
    ),
)


CASES = (*BINARY, *JOIN, *POOL, *ACTIVATION)
