"""Rows for reductions, and for pools that take a norm or put elements back."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

GRID = {"X": (4, 3, 5)}
UNEVEN = {"X": (4, 7, 8)}
AXES_AS_INPUT = 18
_LOGS = frozenset({"ReduceLogSum"})
_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin",
    "ReduceProd", "ReduceSumSquare",
)  # fmt: skip


def reduction(
    op_type: str,
    name: str,
    attributes: str = "",
    axes: list[int] | None = None,
    *,
    opset: int = AXES_AS_INPUT,
    **options: object,
) -> Case:
    """Make a row that reduces X; where a logarithm is taken of it, what is positive."""
    operand = "Z" if op_type in _LOGS else "X"
    before = "Z = Exp(X) " if op_type in _LOGS else ""
    operands = operand if axes is None else f"{operand}, axes"
    constants = {} if axes is None else {"axes": np.array(axes, np.int64)}
    call = f"{before}Y = {op_type}{attributes}({operands})"
    inputs = options.pop("inputs", GRID)
    return Case(name, op_type, call, inputs, {}, constants, opset=opset, **options)


def forms(op_type: str) -> tuple[Case, ...]:
    """Make a row for every way in which axes are given."""
    return (
        reduction(op_type, "opset9", "<axes=[2, 3]>", opset=9),
        reduction(op_type, "opset12", "<axes=[-1, -2], keepdims=0>", opset=12),
        reduction(op_type, "opset13", "<axes=[3], keepdims=1>", opset=13),
        reduction(op_type, "opset18", axes=[2, -1]),
        reduction(op_type, "opset18_dropped", "<keepdims=0>", [-2]),
        reduction(op_type, "opset20", "<noop_with_empty_axes=1>", [3], opset=20),
        reduction(op_type, "channels", axes=[1]),
        reduction(op_type, "channels_and_rows", "<axes=[1, -2], keepdims=1>", opset=13),
        reduction(op_type, "channels_dropped", "<keepdims=0>", [-3, 3], last=True),
        reduction(op_type, "features", axes=[1], inputs={"X": (8,)}),
        reduction(op_type, "every_axis", "<keepdims=0>", opset=13, batch=1),
        reduction(op_type, "empty_axes", "", [], batch=1),
        reduction(op_type, "none", "<noop_with_empty_axes=1>"),
        reduction(op_type, "none_empty", "<noop_with_empty_axes=1, keepdims=0>", []),
    )


def integers(op_type: str) -> Case:
    """Make a row on int32 tensors."""
    body = f"K = Mul(X, ten) I = Cast<to=6>(K) R = {op_type}(I, axes) Y = Cast<to=1>(R)"
    return Case("integers", op_type, body, GRID, {}, {"ten": 3.0, "axes": [-1]}, opset=18)


_NORM = "M = ReduceMean<axes=[-1]>(X) D = Sub(X, M)"
_SCALED = "N = Div(D, Q) G = Mul(N, S) Y = Add(G, B)"
DECOMPOSED = (
    Case(
        "layer_norm",
        "ReduceMean",
        f"{_NORM} P = Pow(D, two) V = ReduceMean<axes=[-1]>(P) E = Add(V, small) Q = Sqrt(E) {_SCALED}",
        {"X": (5, 8)},
        {"S": (8,), "B": (8,)},
        {"two": 2.0, "small": 1e-5},
        last=True,
    ),
    Case(
        "layer_norm_of_channels",
        "ReduceMean",
        """M = ReduceMean<axes=[1]>(X) D = Sub(X, M) P = Mul(D, D) V = ReduceMean<axes=[1]>(P)
        E = Add(V, small) Q = Sqrt(E) N = Div(D, Q) G = Mul(N, S) Y = Add(G, B)""",
        GRID,
        {"S": (4, 1, 1), "B": (4, 1, 1)},
        {"small": 1e-5},
    ),
    Case(
        "division_by_norm",
        "ReduceL2",
        "N = ReduceL2<axes=[1]>(X) Y = Div(X, N)",
    ),
    Case(
        "two_factors",
        "ReduceSumSquare",
        "A = Reshape(X, to) B = Relu(A) Y = ReduceSumSquare<axes=[2], keepdims=0>(B)",
        {"X": (12,)},
        {},
        {"to": [0, 3, 4]},
    ),
    Case(
        "computed_axes",
        "ReduceSum",
        "M = ReduceMax<keepdims=1>(at) Y = ReduceSum(X, M)",
        given={"at": np.array([-1, 0])},
        batch=3,
        prunes=False,
    ),
)

_SIZES = "S = Shape<start=1>(X)"
NUMBERS = (
    Case(
        "product_of_sizes",
        "Reshape",
        f"{_SIZES} P = ReduceProd(S) T = Concat<axis=0>(zero, P) Y = Reshape(X, T)",
        constants={"zero": [0]},
    ),
    Case(
        "scalar_product_of_sizes",
        "Reshape",
        f"""{_SIZES} P = ReduceProd<keepdims=0>(S) Q = Unsqueeze(P, first)
        T = Concat<axis=0>(zero, Q) Y = Reshape(X, T)""",
        constants={"zero": [0], "first": [0]},
    ),
    Case(
        "products_of_sizes",
        "Reshape",
        f"""{_SIZES} A = Reshape(S, square) P = ReduceProd<axes=[1], keepdims=0>(A)
        T = Concat<axis=0>(zero, P) Y = Reshape(X, T)""",
        {"X": (4, 6, 2, 3)},
        {},
        {"zero": [0], "square": [2, 2]},
    ),
    Case(
        "sum_of_sizes",
        "Slice",
        f"""{_SIZES} P = ReduceSum(S, all) C = Concat<axis=1>(X, X, X)
        b = Sub(P, twelve) e = Add(b, four) Y = Slice(C, b, e, one)""",
        {"X": (4, 6, 6)},
        {},
        {"all": [0], "twelve": [12], "four": [4], "one": [1]},
    ),
    Case(
        "greatest_of_sizes",
        "Reshape",
        f"{_SIZES} P = ReduceMax(S) T = Concat<axis=0>(zero, P, rest) Y = Reshape(X, T)",
        {"X": (6, 4, 3)},
        {},
        {"zero": [0], "rest": [4, 3]},
    ),
    Case(
        "least_of_sizes",
        "Reshape",
        f"{_SIZES} P = ReduceMin(S) T = Concat<axis=0>(zero, P, rest) Y = Reshape(X, T)",
        {"X": (3, 4, 5)},
        {},
        {"zero": [0], "rest": [4, 5]},
    ),
    Case(
        "least_of_other_sizes",
        "Reshape",
        """S = Shape<start=2>(X) P = ReduceMin(S) T = Concat<axis=0>(zero, zero, P, rest)
        Y = Reshape(X, T)""",
        {"X": (4, 6, 5)},
        {},
        {"zero": [0], "rest": [-1]},
    ),
)

_WINDOW = "kernel_shape=[3,3], strides=[2,2]"
POOLS = (
    *(
        Case(name, "LpPool", f"Y = LpPool<{attributes}>(X)", UNEVEN, opset=opset)
        for name, attributes, opset in (
            ("plain", "kernel_shape=[2,3]", 17),
            ("one", "kernel_shape=[2,3], p=1", 11),
            ("three", "kernel_shape=[2,3], p=3", 22),
            ("opset2", f"{_WINDOW}", 8),
            ("pads", f"{_WINDOW}, pads=[0,1,1,2]", 17),
            ("same_upper", f'{_WINDOW}, auto_pad="SAME_UPPER"', 17),
            ("same_lower", f'{_WINDOW}, auto_pad="SAME_LOWER"', 18),
            ("valid", f'{_WINDOW}, auto_pad="VALID"', 17),
            ("dilations", "kernel_shape=[2,2], dilations=[2,3], strides=[1,2]", 18),
            ("ceil", f"{_WINDOW}, ceil_mode=1", 18),
        )
    ),
    Case("1d", "LpPool", "Y = LpPool<kernel_shape=[3], strides=[2]>(X)", {"X": (6, 10)}),
    Case("3d", "LpPool", "Y = LpPool<kernel_shape=[2,2,3]>(X)", {"X": (4, 5, 4, 5)}, opset=18),
    *(
        Case(name, "GlobalLpPool", f"Y = GlobalLpPool{attributes}(X)", {"X": shape}, opset=opset)
        for name, attributes, shape, opset in (
            ("1d", "", (6, 10), 17),
            ("2d", "<p=1>", (4, 6, 6), 13),
            ("3d", "<p=3>", (4, 5, 4, 5), 7),
        )
    ),
)
_WINDOWS = "kernel_shape=[2,2], strides=[2,2]"
_CORNERS = np.arange(4) + 16 * np.arange(12).reshape(3, 4, 1)
UNPOOLS = (
    Case(
        "plain",
        "MaxUnpool",
        f"Y = MaxUnpool<{_WINDOWS}>(X, places)",
        {"X": (4, 2, 2)},
        given={"places": _CORNERS.reshape(3, 4, 2, 2)},
        batch=3,
        prunes=False,
    ),
    Case(
        "pads",
        "MaxUnpool",
        "Y = MaxUnpool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,0,0]>(X, places)",
        {"X": (4, 2, 2)},
        given={"places": _CORNERS.reshape(3, 4, 2, 2)},
        batch=3,
        prunes=False,
        opset=9,
    ),
    Case(
        "shape",
        "MaxUnpool",
        f"Y = MaxUnpool<{_WINDOWS}>(X, places, shape)",
        {"X": (4, 2, 2)},
        constants={"shape": [3, 4, 5, 5]},
        given={"places": _CORNERS.reshape(3, 4, 2, 2)},
        batch=3,
        prunes=False,
        opset=22,
    ),
    Case(
        "constant_places",
        "MaxUnpool",
        f"Y = MaxUnpool<{_WINDOWS}>(X, places)",
        {"X": (4, 2, 2)},
        constants={"places": _CORNERS.reshape(3, 4, 2, 2)},
        batch=3,
        prunes=False,
    ),
    Case(
        "computed_places",
        "MaxUnpool",
        f"""N = Mul(Z, zero) I = Cast<to=7>(N) P = Add(I, places)
        Y = MaxUnpool<{_WINDOWS}>(X, P)""",
        {"X": (4, 2, 2), "Z": (4, 2, 2)},
        constants={"places": _CORNERS.reshape(3, 4, 2, 2), "zero": 0.0},
        batch=3,
        prunes=False,
    ),
    Case(
        "after_pool",
        "MaxUnpool",
        f"P, I = MaxPool<{_WINDOWS}>(X) S = Shape(X) Y = MaxUnpool<{_WINDOWS}>(P, I, S)",
        {"X": (4, 6, 5)},
        prunes=False,
    ),
)
CASES = (
    *(case for op_type in _REDUCTIONS for case in forms(op_type)),
    *(integers(op_type) for op_type in ("ReduceL1", "ReduceMax", "ReduceProd", "ReduceSum")),
    *(
        reduction(op_type, name, attributes, [], batch=1)
        for op_type in ("ReduceMean", "ReduceSum")
        for name, attributes in (
            ("empty_axes", "<keepdims=0>"),
            ("none_empty", "<noop_with_empty_axes=1>"),
        )
    ),
    *DECOMPOSED,
    *NUMBERS,
    *POOLS,
    *UNPOOLS,
)
