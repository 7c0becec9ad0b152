"""Rows for what ONNX Runtime's optimizer fuses, and for Swish."""

from __future__ import annotations

from ops.cases import Case

ORT = "com.microsoft"
MAPS = {"X": (4, 6, 6)}
FLAT = {"X": (8,)}
ROWS = {"X": (3, 8)}
TWO = {"X": (5, 6), "Z": (6, 7)}


def conv(name: str, attributes: str, **options: object) -> Case:
    """Make a row of FusedConv."""
    weights = {"W": (6, 4, 3, 3), "B": (6,)} | dict(options.pop("weights", {}))
    arguments = options.pop("arguments", "X, W, B")
    prepare = options.pop("prepare", "")
    text = f"{prepare} Y = com.microsoft.FusedConv{attributes}({arguments})"
    return Case(name, "FusedConv", text, MAPS, weights, domain=ORT, **options)


def gemm(name: str, attributes: str, **options: object) -> Case:
    """Make a row of FusedGemm."""
    row = {"weights": {"W": (8, 6), "C": (6,)}, **options}
    arguments = row.pop("arguments", "X, W, C")
    text = f"Y = com.microsoft.FusedGemm{attributes}({arguments})"
    return Case(name, "FusedGemm", text, FLAT, domain=ORT, **row)


def matmul(name: str, text: str, inputs: dict[str, tuple[int, ...]], **options: object) -> Case:
    """Make a row of FusedMatMul."""
    op_type = options.pop("op_type", "FusedMatMul")
    text = text.replace("FMM", f"com.microsoft.{op_type}")
    return Case(name, op_type, text, inputs, domain=ORT, **options)


CONV = (
    *(
        conv(name, f'<activation="{name}"{more}>')
        for name, more in (
            ("Relu", ""),
            ("Tanh", ""),
            ("Sigmoid", ""),
            ("LeakyRelu", ", activation_params=[0.2]"),
            ("Clip", ", activation_params=[-0.3, 0.4]"),
            ("HardSigmoid", ", activation_params=[0.3, 0.4]"),
            ("HardSwish", ""),
        )
    ),
    conv("nothing", ""),
    conv("no_bias", '<activation="Relu", strides=[2,1], auto_pad="SAME_UPPER">', arguments="X, W"),
    conv("blocks", '<activation="Relu", group=2>', weights={"W": (6, 2, 3, 3)}),
    conv(
        "depthwise",
        '<activation="Relu", group=4, pads=[1,1,1,1]>',
        weights={"W": (4, 1, 3, 3), "B": (4,)},
    ),
    conv(
        "sum",
        '<activation="Relu">',
        prepare="Z = Conv(X, V)",
        weights={"V": (6, 4, 3, 3)},
        arguments="X, W, B, Z",
    ),
    conv(
        "sum_alone",
        "",
        prepare="Z = Conv(X, V)",
        weights={"V": (6, 4, 3, 3)},
        arguments="X, W, , Z",
    ),
    conv(
        "residual",
        '<activation="Tanh", pads=[1,1,1,1]>',
        weights={"W": (4, 4, 3, 3), "B": (4,)},
        arguments="X, W, B, X",
    ),
)
GEMM = (
    *(
        gemm(name, f'<activation="{name}"{more}>')
        for name, more in (
            ("Relu", ""),
            ("Tanh", ""),
            ("Sigmoid", ""),
            ("Softplus", ""),
            ("Softsign", ""),
            ("Celu", ", activation_alpha=0.5"),
            ("Elu", ", activation_alpha=0.5"),
            ("HardSigmoid", ", activation_alpha=0.3, activation_beta=0.4"),
            ("LeakyRelu", ", activation_alpha=0.2"),
            ("Selu", ", activation_alpha=1.5, activation_gamma=1.1"),
            ("ThresholdedRelu", ", activation_alpha=0.3"),
        )
    ),
    gemm("no_addend", '<activation="Relu">', arguments="X, W"),
    gemm(
        "transposed",
        '<activation="Relu", transB=1, alpha=0.5, beta=2.0>',
        weights={"W": (6, 8), "C": (6,)},
    ),
    gemm("residual", '<activation="Relu">', arguments="X, W, X", weights={"W": (8, 8)}),
)
MATMUL = (
    matmul("plain", "Y = FMM(X, W)", FLAT, weights={"W": (8, 6)}),
    matmul("alpha", "Y = FMM<alpha=0.5>(X, W)", ROWS, weights={"W": (8, 6)}, last=True),
    matmul("weight_transposed", "Y = FMM<transB=1>(X, W)", ROWS, weights={"W": (6, 8)}, last=True),
    matmul("left", "Y = FMM(W, X)", {"X": (6, 10)}, weights={"W": (5, 6)}),
    matmul("left_transposed", "Y = FMM<transA=1>(W, X)", {"X": (6, 10)}, weights={"W": (6, 5)}),
    matmul(
        "both_transposed",
        "Y = FMM<transA=1, transB=1>(W, X)",
        {"X": (10, 6)},
        weights={"W": (6, 5)},
        last=True,
    ),
    matmul("computed", "Y = FMM<transA=1>(X, Z)", {"X": (6, 5), "Z": (6, 7)}),
    matmul(
        "keys",
        "S = FMM<transB=1, alpha=0.3>(X, Z) P = Softmax(S) Y = MatMul(P, Z)",
        {"X": (5, 6), "Z": (7, 6)},
        last=True,
    ),
    matmul(
        "batches",
        "T = FMM<transBatchA=1>(X, W) Y = Transpose<perm=[2,0,1,3]>(T)",
        {"X": (4, 5, 6)},
        weights={"W": (1, 1, 6, 7)},
        last=True,
    ),
    matmul(
        "batches_of_weights",
        "T = FMM<transBatchB=1, transB=1>(X, W) Y = Relu(T)",
        {"X": (4, 5, 6)},
        weights={"W": (7, 1, 4, 6)},
        last=True,
    ),
    matmul(
        "positions_first",
        "T = Transpose<perm=[1,0,2]>(X) A = MatMul(T, Wq) B = MatMul(T, Wk) C = MatMul(T, Wv)"
        " Q = Reshape(A, to) K = Reshape(B, to) V = Reshape(C, wide)"
        " S = FMM<transBatchA=1, transBatchB=1, transB=1, alpha=0.4>(Q, K) P = Softmax(S)"
        " O = FMM<transBatchB=1>(P, V) U = Transpose<perm=[0,2,1,3]>(O) Y = Reshape(U, back)",
        {"X": (4, 12)},
        weights={"Wq": (12, 24), "Wk": (12, 24), "Wv": (12, 20)},
        constants={"to": [4, -1, 4, 6], "wide": [4, -1, 4, 5], "back": [0, 4, -1]},
        last=True,
    ),
    matmul(
        "vector", "Y = FMM<transB=1, alpha=0.5>(X, W)", FLAT, weights={"W": (8,)}, counted=False
    ),
    matmul(
        "vector_left", "Y = FMM<transA=1>(W, X)", {"X": (6, 10)}, weights={"W": (6,)}, counted=False
    ),
    matmul(
        "plain",
        "Y = FMM<transB=1, alpha=2.0>(X, W)",
        FLAT,
        weights={"W": (6, 8)},
        op_type="TransposeMatMul",
    ),
)
ACTIVATIONS = (
    Case("default", "Swish", "Y = Swish(X)", opset=24),
    Case("alpha", "Swish", "Y = Swish<alpha=1.5>(X)", opset=24),
    Case("default", "QuickGelu", "Y = com.microsoft.QuickGelu(X)", domain=ORT),
    Case("alpha", "QuickGelu", "Y = com.microsoft.QuickGelu<alpha=1.2>(X)", domain=ORT),
    Case("exact", "Gelu", "Y = com.microsoft.Gelu(X)", domain=ORT),
    Case("plain", "FastGelu", "Y = com.microsoft.FastGelu(X)", domain=ORT),
    Case(
        "bias",
        "FastGelu",
        "Y = com.microsoft.FastGelu(X, B)",
        ROWS,
        {"B": (8,)},
        domain=ORT,
        last=True,
    ),
    Case(
        "bias",
        "BiasGelu",
        "Y = com.microsoft.BiasGelu(X, B)",
        ROWS,
        {"B": (8,)},
        domain=ORT,
        last=True,
    ),
)
CASES = (*CONV, *GEMM, *MATMUL, *ACTIVATIONS)
