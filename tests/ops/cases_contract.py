"""Rows for Conv, ConvTranspose, Gemm, MatMul and BatchNormalization."""

from __future__ import annotations

from ops.cases import Case

FLAT = {"X": (8,)}
LINE = {"X": (6, 10)}
CUBE = {"X": (4, 5, 4, 5)}
WIDE = {"X": (8, 6, 6)}
NORM = {"scale": (4,), "bias": (4,), "mean": (4,), "var": (4,)}


def conv(name: str, attributes: str, w: tuple[int, ...], **options: object) -> Case:
    """Make a row of Conv; a bias comes with `weights={"B": ...}`."""
    return _convolution("Conv", name, attributes, w, options)


def deconv(name: str, attributes: str, w: tuple[int, ...], **options: object) -> Case:
    """Make a row of ConvTranspose."""
    return _convolution("ConvTranspose", name, attributes, w, options)


def _convolution(
    op_type: str, name: str, attributes: str, w: tuple[int, ...], options: dict[str, object]
) -> Case:
    bias = options.pop("bias", None)
    weights = {"W": w} if bias is None else {"W": w, "B": (bias,)}
    operands = "X, W" if bias is None else "X, W, B"
    inputs = options.pop("inputs", {"X": (4, 6, 6)})
    return Case(name, op_type, f"Y = {op_type}{attributes}({operands})", inputs, weights)


CONV = (
    conv("plain", "", (6, 4, 3, 3)),
    conv("bias", "", (6, 4, 3, 3), bias=6),
    conv("pads", "<pads=[1,1,1,1]>", (6, 4, 3, 3), bias=6),
    conv("asymmetric_pads", "<pads=[0,1,2,1]>", (6, 4, 3, 3), bias=6),
    conv("strides", "<strides=[2,3], kernel_shape=[3,3]>", (6, 4, 3, 3)),
    conv("dilations", "<dilations=[2,1], pads=[2,1,2,1]>", (6, 4, 3, 3)),
    conv("same_upper", '<auto_pad="SAME_UPPER", strides=[2,2]>', (6, 4, 3, 3)),
    conv("same_lower", '<auto_pad="SAME_LOWER", strides=[2,1]>', (6, 4, 4, 2), bias=6),
    conv("valid", '<auto_pad="VALID">', (6, 4, 2, 3)),
    conv("one_tap", "<strides=[2,3]>", (6, 4, 1, 1), bias=6),
    conv("one_tap_pads", "<strides=[3,2], pads=[0,1,2,1]>", (6, 4, 1, 1), bias=6),
    conv("one_tap_same", '<auto_pad="SAME_LOWER", strides=[2,2]>', (6, 4, 1, 1)),
    conv("one_tap_on_one_axis", "<strides=[2,2], pads=[1,1,1,0]>", (6, 4, 1, 3)),
    conv("one_tap_dilations", "<strides=[2,1], dilations=[3,2]>", (6, 4, 1, 3)),
    conv("one_tap_blocks", "<strides=[2,2], group=2>", (6, 2, 1, 1), bias=6),
    conv("blocks", "<group=2>", (6, 2, 3, 3)),
    conv("blocks_bias", "<group=4>", (12, 2, 1, 1), bias=12, inputs=WIDE),
    conv("depthwise", "<group=4, pads=[1,1,1,1]>", (4, 1, 3, 3), bias=4),
    conv("multiplier", "<group=4>", (12, 1, 3, 3), bias=12),
    conv("1d", "<strides=[2]>", (5, 6, 3), bias=5, inputs=LINE),
    conv("1d_blocks", "<group=3, pads=[1,0]>", (6, 2, 3), bias=6, inputs=LINE),
    conv("1d_one_tap", "<strides=[3], pads=[1,1]>", (5, 6, 1), bias=5, inputs=LINE),
    conv("3d_one_tap", "<strides=[2,1,2]>", (6, 4, 1, 1, 1), bias=6, inputs=CUBE),
    conv("3d", "<strides=[1,2,1]>", (6, 4, 3, 2, 1), bias=6, inputs=CUBE),
    conv("3d_depthwise", "<group=4, pads=[1,0,1,0,1,0]>", (4, 1, 2, 2, 2), inputs=CUBE),
    Case(
        "computed_weight",
        "Conv",
        "T = Transpose<perm=[1,0,2,3]>(W) Y = Conv(X, T)",
        weights={"W": (4, 6, 3, 3)},
    ),
    Case(
        "shared_weight",
        "Conv",
        "H = Conv<pads=[1,1,1,1]>(X, W) R = Relu(H) Y = Conv(R, W)",
        weights={"W": (4, 4, 3, 3)},
    ),
)
TRANSPOSED = (
    deconv("plain", "", (4, 6, 3, 3)),
    deconv("bias", "<strides=[2,2]>", (4, 6, 3, 3), bias=6),
    deconv("pads", "<pads=[1,1,1,1], strides=[2,2]>", (4, 6, 3, 3), bias=6),
    deconv("asymmetric_pads", "<pads=[0,1,2,1], strides=[2,2]>", (4, 6, 3, 3), bias=6),
    deconv("output_padding", "<output_padding=[1,0], strides=[2,2]>", (4, 6, 3, 3), bias=6),
    deconv(
        "asymmetric_output_padding",
        "<pads=[0,1,1,0], output_padding=[1,1], strides=[2,2]>",
        (4, 6, 3, 3),
        bias=6,
    ),
    deconv("output_shape", "<output_shape=[12,13], strides=[2,2]>", (4, 6, 4, 4), bias=6),
    deconv("output_shape_odd", "<output_shape=[11,12], strides=[2,2]>", (4, 6, 4, 4), bias=6),
    deconv(
        "output_shape_upper",
        '<output_shape=[11,12], strides=[2,2], auto_pad="SAME_UPPER">',
        (4, 6, 4, 4),
    ),
    deconv("same_upper", '<auto_pad="SAME_UPPER", strides=[2,2]>', (4, 6, 3, 3), bias=6),
    deconv("same_lower", '<auto_pad="SAME_LOWER", strides=[2,2]>', (4, 6, 3, 3)),
    deconv("one_tap", "<strides=[2,3], output_padding=[1,0]>", (4, 6, 1, 1), bias=6),
    deconv("valid", '<auto_pad="VALID", strides=[2,1]>', (4, 6, 3, 3)),
    deconv("dilations", "<dilations=[2,1], pads=[1,0,1,0]>", (4, 6, 3, 2)),
    deconv("blocks", "<group=2>", (4, 3, 3, 3), bias=6),
    deconv("blocks_wide", "<group=4, strides=[2,2]>", (8, 3, 2, 2), bias=12, inputs=WIDE),
    deconv("depthwise", "<group=4, strides=[2,2]>", (4, 1, 2, 2), bias=4),
    deconv("multiplier", "<group=4>", (4, 3, 2, 2)),
    deconv("1d", "<strides=[3], pads=[1,0]>", (6, 5, 4), bias=5, inputs=LINE),
    deconv("3d", "<strides=[1,2,1]>", (4, 6, 2, 2, 1), bias=6, inputs=CUBE),
)
GEMM = (
    Case("plain", "Gemm", "Y = Gemm(X, W)", FLAT, {"W": (8, 6)}),
    Case("linear", "Gemm", "Y = Gemm<transB=1>(X, W, C)", FLAT, {"W": (6, 8), "C": (6,)}),
    Case("bias", "Gemm", "Y = Gemm(X, W, C)", FLAT, {"W": (8, 6), "C": (6,)}),
    Case(
        "transposed_a",
        "Gemm",
        "T = Transpose(X) Y = Gemm<transA=1>(T, W, C)",
        FLAT,
        {"W": (8, 6), "C": (6,)},
    ),
    Case(
        "transposed_both",
        "Gemm",
        "T = Transpose(X) Y = Gemm<transA=1, transB=1>(T, W, C)",
        FLAT,
        {"W": (6, 8), "C": (6,)},
    ),
    Case(
        "alpha_beta",
        "Gemm",
        "Y = Gemm<alpha=0.5, beta=2.0, transB=1>(X, W, C)",
        FLAT,
        {"W": (6, 8), "C": (6,)},
    ),
    Case("bias_row", "Gemm", "Y = Gemm(X, W, C)", FLAT, {"W": (8, 6), "C": (1, 6)}),
    Case("bias_one", "Gemm", "Y = Gemm(X, W, C)", FLAT, {"W": (8, 6), "C": (1,)}),
    Case("bias_scalar", "Gemm", "Y = Gemm(X, W, C)", FLAT, {"W": (8, 6)}, {"C": 0.5}),
    Case("bias_column", "Gemm", "Y = Gemm(X, W, C)", FLAT, {"W": (8, 6), "C": (3, 1)}, batch=3),
    Case("bias_full", "Gemm", "Y = Gemm(X, W, C)", FLAT, {"W": (8, 6), "C": (3, 6)}, batch=3),
    Case("residual", "Gemm", "Y = Gemm<beta=0.5>(X, W, X)", FLAT, {"W": (8, 8)}),
    Case(
        "weight_left",
        "Gemm",
        "T = Gemm<transB=1>(W, X, C) Y = Transpose(T)",
        FLAT,
        {"W": (6, 8), "C": (6, 1)},
    ),
    Case(
        "weight_left_transposed",
        "Gemm",
        "T = Gemm<transA=1, transB=1>(W, X) Y = Transpose(T)",
        FLAT,
        {"W": (8, 6)},
    ),
    Case("computed", "Gemm", "Y = Gemm<transB=1>(X, Z)", {"X": (8,), "Z": (8,)}, batch=3),
    Case(
        "flattened",
        "Gemm",
        "F = Flatten(X) Y = Gemm<transB=1>(F, W, C)",
        {"X": (4, 3, 3)},
        {"W": (6, 36), "C": (6,)},
    ),
)
MATMUL = (
    Case("2d", "MatMul", "Y = MatMul(X, W)", FLAT, {"W": (8, 6)}),
    Case(
        "rows",
        "MatMul",
        "T = Transpose<perm=[0,2,1]>(X) Y = MatMul(T, W)",
        LINE,
        {"W": (6, 5)},
    ),
    Case("left", "MatMul", "Y = MatMul(W, X)", LINE, {"W": (5, 6)}),
    Case("left_4d", "MatMul", "Y = MatMul(W, X)", {"X": (4, 6, 3)}, {"W": (5, 6)}),
    Case("batched_right", "MatMul", "Y = MatMul(X, W)", {"X": (4, 3, 6)}, {"W": (4, 6, 5)}),
    Case("batched_left", "MatMul", "Y = MatMul(W, X)", {"X": (4, 6, 3)}, {"W": (4, 5, 6)}),
    Case("broadcast_right", "MatMul", "Y = MatMul(X, W)", {"X": (4, 3, 6)}, {"W": (1, 6, 5)}),
    Case("batched_4d", "MatMul", "Y = MatMul(X, W)", {"X": (4, 3, 6)}, {"W": (1, 4, 6, 5)}),
    Case("vector_right", "MatMul", "Y = MatMul(X, W)", FLAT, {"W": (8,)}, counted=False),
    Case("vector_left", "MatMul", "Y = MatMul(W, X)", LINE, {"W": (6,)}, counted=False),
    Case("vector_right_batched", "MatMul", "Y = MatMul(X, W)", LINE, {"W": (10,)}, counted=False),
    Case(
        "computed",
        "MatMul",
        "T = Transpose<perm=[0,2,1]>(X) Y = MatMul(T, Z)",
        {"X": (6, 5), "Z": (6, 7)},
    ),
    Case("shared_operand", "MatMul", "A = MatMul(X, W) Y = MatMul(A, W)", FLAT, {"W": (8, 8)}),
    Case(
        "computed_weight",
        "MatMul",
        "T = Transpose(W) Y = MatMul(X, T)",
        FLAT,
        {"W": (6, 8)},
    ),
    Case(
        "reshaped_weight",
        "MatMul",
        "T = Reshape(W, to) Y = MatMul(X, T)",
        FLAT,
        {"W": (8, 2, 3)},
        {"to": [8, 6]},
    ),
)
NORMALIZE = (
    Case(
        "opset15",
        "BatchNormalization",
        "Y = BatchNormalization<epsilon=0.01>(X, scale, bias, mean, var)",
        weights=NORM,
    ),
    Case(
        "opset9",
        "BatchNormalization",
        "Y = BatchNormalization(X, scale, bias, mean, var)",
        weights=NORM,
        opset=9,
    ),
    Case(
        "opset14_momentum",
        "BatchNormalization",
        "Y = BatchNormalization<momentum=0.5>(X, scale, bias, mean, var)",
        {"X": (4, 10)},
        NORM,
        opset=14,
    ),
    Case(
        "features",
        "BatchNormalization",
        "Y = BatchNormalization(X, scale, bias, mean, var)",
        {"X": (4,)},
        NORM,
    ),
    Case(
        "shared_statistics",
        "BatchNormalization",
        "Y = BatchNormalization(X, scale, bias, bias, scale_var)",
        weights={"scale": (4,), "bias": (4,)},
        constants={"scale_var": [1.0, 2.0, 0.5, 0.25]},
    ),
)
CASES = (*CONV, *TRANSPOSED, *GEMM, *MATMUL, *NORMALIZE)
