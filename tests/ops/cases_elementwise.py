"""Rows for operators that act position by position, and Softmax and reductions."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

FLAT = {"X": (8,)}
TWO = {"X": (4, 6, 6), "Z": (4, 6, 6)}
BOOLEAN = "zero = Constant<value_float=0.0>() A = Greater(X, zero) B = Greater(Z, zero)"
UNIT = "S = Sigmoid(X)"
"""Values between 0 and 1, for functions that are not defined everywhere."""

_ANYWHERE = (
    "Abs", "Asinh", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Neg", "Relu", "Round",
    "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tanh",
)  # fmt: skip
_ON_UNIT = ("Acos", "Asin", "Log", "Reciprocal", "Sqrt", "Tan")
_ATTRIBUTES = {
    "Celu": ("", "<alpha=0.5>"),
    "Elu": ("", "<alpha=0.5>"),
    "HardSigmoid": ("", "<alpha=0.3, beta=0.4>"),
    "HardSwish": ("",),
    "LeakyRelu": ("", "<alpha=0.2>"),
    "Mish": ("",),
    "Selu": ("", "<alpha=1.5, gamma=1.1>"),
    "Shrink": ("", "<lambd=0.2, bias=0.1>"),
    "ThresholdedRelu": ("", "<alpha=0.3>"),
}
UNARY = (
    *(Case("maps", op, f"Y = {op}(X)") for op in _ANYWHERE),
    *(Case("features", op, f"Y = {op}(X)", FLAT) for op in ("Relu", "Sigmoid", "Tanh")),
    *(Case("maps", op, f"{UNIT} Y = {op}(S)") for op in _ON_UNIT),
    Case("maps", "Acosh", f"{UNIT} T = Add(S, S) U = Exp(T) Y = Acosh(U)"),
    Case("maps", "Atanh", f"{UNIT} T = Mul(S, half) Y = Atanh(T)", constants={"half": 0.5}),
    Case("maps", "IsNaN", "L = Log(X) M = IsNaN(L) Y = Cast<to=1>(M)"),
    Case("maps", "Not", f"{BOOLEAN} M = Not(A) C = And(M, B) Y = Cast<to=1>(C)", TWO),
    *(
        Case(f"form{i}", op, f"Y = {op}{attributes}(X)", opset=18)
        for op, forms in _ATTRIBUTES.items()
        for i, attributes in enumerate(forms)
    ),
    Case("exact", "Gelu", "Y = Gelu(X)", opset=20),
    Case("tanh", "Gelu", 'Y = Gelu<approximate="tanh">(X)', opset=20),
)


def integers(op: str, call: str) -> Case:
    """Make a row on int32 tensors made of computed values."""
    body = f"K = Mul(X, ten) L = Mul(Z, ten) I = Cast<to=6>(K) J = Cast<to=6>(L) R = {call}"
    return Case("integers", op, f"{body} Y = Cast<to=1>(R)", TWO, {}, {"ten": 10.0}, opset=18)


BITS = (
    integers("BitwiseAnd", "BitwiseAnd(I, J)"),
    integers("BitwiseNot", "BitwiseNot(I)"),
    integers("BitwiseOr", "BitwiseOr(I, J)"),
    integers("BitwiseXor", "BitwiseXor(I, J)"),
    integers("Equal", "Equal(I, J)"),
    integers("GreaterOrEqual", "GreaterOrEqual(I, J)"),
    integers("LessOrEqual", "LessOrEqual(I, J)"),
    Case(
        "integers_truncate",
        "Div",
        "K = Mul(X, ten) I = Cast<to=6>(K) R = Div(I, three) Y = Cast<to=1>(R)",
        constants={"ten": 10.0, "three": np.array(3, np.int32)},
    ),
    Case(
        "integers",
        "Mod",
        "K = Mul(X, ten) I = Cast<to=6>(K) R = Mod(I, three) Y = Cast<to=1>(R)",
        constants={"ten": 10.0, "three": np.array(3, np.int32)},
    ),
    *(
        Case(
            direction.lower(),
            "BitShift",
            f"{UNIT} K = Mul(S, ten) I = Cast<to=2>(K)"
            f' R = BitShift<direction="{direction}">(I, one) Y = Cast<to=1>(R)',
            constants={"ten": 10.0, "one": np.array(1, np.uint8)},
        )
        for direction in ("LEFT", "RIGHT")
    ),
)
LOGIC = tuple(
    Case("computed", op, f"{BOOLEAN} R = {op}(A, B) Y = Cast<to=1>(R)", TWO)
    for op in ("And", "Or", "Xor")
)
BINARY = (
    *(Case("computed", op, f"Y = {op}(X, Z)", TWO) for op in ("Add", "Mul", "Sub")),
    *(
        Case("channels", op, f"Y = {op}(X, P)", weights={"P": (1, 4, 1, 1)})
        for op in ("Add", "Mul", "Sub")
    ),
    *(
        Case("lower_rank", op, f"Y = {op}(P, X)", weights={"P": (4, 1, 1)})
        for op in ("Add", "Mul", "Sub")
    ),
    *(Case("features", op, f"Y = {op}(X, P)", FLAT, {"P": (8,)}) for op in ("Add", "Mul")),
    *(Case("scalar", op, f"Y = {op}(X, k)", constants={"k": 1.5}) for op in ("Add", "Mul", "Div")),
    *(
        Case("channels", op, f"R = {op}(X, P) Y = Cast<to=1>(R)", weights={"P": (4, 1, 1)})
        for op in ("Greater", "Less", "GreaterOrEqual")
    ),
    Case("itself", "Add", "Y = Add(X, X)"),
    Case("positions", "Add", "Y = Add(X, P)", weights={"P": (4, 6, 6)}),
    Case("column", "Mul", "Y = Mul(X, Z)", {"X": (4, 6, 6), "Z": (4, 1, 1)}),
    Case("single_map", "Mul", "Y = Mul(X, Z)", {"X": (4, 6, 6), "Z": (1, 6, 6)}),
    Case("computed", "Div", f"{UNIT} T = Add(S, one) Y = Div(Z, T)", TWO, {}, {"one": 1.0}),
    Case("channels", "Div", "Y = Div(X, var)", weights={"var": (4, 1, 1)}),
    Case("square", "Pow", "Y = Pow(X, two)", constants={"two": 2.0}),
    Case("channels", "Pow", f"{UNIT} Y = Pow(S, P)", weights={"P": (4, 1, 1)}),
    Case("computed", "Pow", f"{UNIT} Y = Pow(S, Z)", TWO),
    Case("remainder", "Mod", "Y = Mod<fmod=1>(X, k)", constants={"k": 0.7}),
    Case(
        "numbers",
        "Mul",
        "S = Shape(X) T = Mul(S, one) Y = Reshape(X, T)",
        constants={"one": [1]},
        prunes=False,
    ),
)
VARIADIC = (
    *(Case("one", op, f"Y = {op}(X)") for op in ("Max", "Mean", "Min", "Sum")),
    *(Case("two", op, f"Y = {op}(X, Z)", TWO) for op in ("Max", "Mean", "Min", "Sum")),
    *(
        Case("three", op, f"Y = {op}(X, P, Z)", TWO, {"P": (1, 4, 1, 1)})
        for op in ("Max", "Mean", "Min", "Sum")
    ),
)
CHOICE = (
    Case("computed", "Where", f"{BOOLEAN} Y = Where(A, X, Z)", TWO),
    Case("channels", "Where", f"{BOOLEAN} Y = Where(A, P, Z)", TWO, {"P": (4, 1, 1)}),
    Case(
        "constant_condition",
        "Where",
        "Y = Where(mask, X, zero)",
        constants={"mask": np.tri(6, dtype=np.bool_), "zero": 0.0},
    ),
    Case(
        "frozen_by_the_condition",
        "Where",
        "Y = Where(mask, X, zero)",
        constants={"mask": np.array([True, False, True, True]).reshape(4, 1, 1), "zero": 0.0},
    ),
    Case("channels", "PRelu", "Y = PRelu(X, P)", weights={"P": (4, 1, 1)}),
    Case("opset9", "PRelu", "Y = PRelu(X, P)", weights={"P": (4, 1, 1)}, opset=9),
    Case("single", "PRelu", "Y = PRelu(X, P)", weights={"P": (1,)}),
    Case("single_ranked", "PRelu", "Y = PRelu(X, P)", weights={"P": (1, 1, 1)}),
    Case("full_rank", "PRelu", "Y = PRelu(X, P)", weights={"P": (1, 4, 1, 1)}),
    Case("positions", "PRelu", "Y = PRelu(X, P)", weights={"P": (4, 6, 6)}),
    Case("features", "PRelu", "Y = PRelu(X, P)", FLAT, {"P": (8,)}),
    Case("attributes", "Clip", "Y = Clip<min=-0.5, max=0.5>(X)", opset=10),
    Case("attribute_min", "Clip", "Y = Clip<min=0.0>(X)", opset=6),
    Case("inputs", "Clip", "Y = Clip(X, k, l)", constants={"k": -0.5, "l": 0.5}),
    Case("input_max", "Clip", "Y = Clip(X, , l)", constants={"l": 0.5}),
    Case("input_min", "Clip", "Y = Clip(X, k)", constants={"k": 0.0}),
    Case("unbounded", "Clip", "Y = Clip(X)"),
    Case("maps", "Identity", "Y = Identity(X)"),
    Case("weight", "Identity", "P = Identity(W) Y = Conv(X, P)", weights={"W": (6, 4, 1, 1)}),
    Case("double", "Cast", "D = Cast<to=11>(X) E = Abs(D) Y = Cast<to=1>(E)"),
    Case(
        "integer",
        "Cast",
        "K = Mul(X, k) D = Cast<to=7>(K) Y = Cast<to=1>(D)",
        constants={"k": 9.0},
    ),
    Case(
        "numbers",
        "Cast",
        "S = Shape(X) I = Cast<to=6>(S) J = Cast<to=7>(I) Y = Reshape(X, J)",
        prunes=False,
    ),
    Case("attribute", "Dropout", "Y = Dropout<ratio=0.3>(X)", opset=10),
    Case("input", "Dropout", "Y = Dropout(X, r)", constants={"r": 0.3}),
    Case("default", "Dropout", "Y = Dropout(X)"),
    Case("mask", "Dropout", "D, M = Dropout(X) F = Cast<to=1>(M) Y = Mul(D, F)"),
)
CASES = (*UNARY, *BITS, *LOGIC, *BINARY, *VARIADIC, *CHOICE)
