"""Rows for operators that choose positions, and for those to which their order matters."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

GRID = {"X": (4, 3, 5)}
SIGNS = "S = Sign(X)"
"""Makes equal elements."""


def row(op_type: str, name: str, text: str, **options: object) -> Case:
    """Make a row on three feature maps, unless other inputs are named."""
    inputs = options.pop("inputs", GRID)
    return Case(name, op_type, text, inputs, **options)


HARDMAX = (
    row("Hardmax", "last", "Y = Hardmax(X)"),
    row("Hardmax", "rows", "Y = Hardmax<axis=-2>(X)"),
    row("Hardmax", "ties", f"{SIGNS} Y = Hardmax<axis=2>(S)"),
    row("Hardmax", "channels", "Y = Hardmax<axis=1>(X)", prunes=False),
    row("Hardmax", "flattened", "Y = Hardmax<axis=2>(X)", opset=12),
    row("Hardmax", "flattened_negative", "Y = Hardmax<axis=-1>(X)", opset=11),
    row("Hardmax", "flattened_default", "Y = Hardmax(X)", opset=9, prunes=False),
)
ARGS = tuple(
    row(op_type, name, f"{before}I = {op_type}{call} Y = Cast<to=1>(I)", **options)
    for op_type in ("ArgMax", "ArgMin")
    for name, before, call, options in (
        ("rows", "", "<axis=2>(X)", {}),
        ("negative", "", "<axis=-1, keepdims=1>(X)", {"opset": 11}),
        ("dropped", "", "<axis=3, keepdims=0>(X)", {"opset": 9}),
        ("first", f"{SIGNS} ", "<axis=2, select_last_index=0>(S)", {}),
        ("last", f"{SIGNS} ", "<axis=2, select_last_index=1>(S)", {"opset": 12}),
        ("channels", "", "<axis=1>(X)", {"prunes": False}),
        ("batch", "", "(X)", {"batch": 2}),
    )
)

_REST = """A = Shape<start=2, end=3>(V) B = Shape<start=3>(V) P = Mul(A, B)
T = Concat<axis=0>(head, P) Y = Reshape(V, T)"""
"""Writes the number of channels beside one that is only known as the model runs."""
_BOTH = "F = Cast<to=1>(I) Y = Add(V, F)"
TOP = (
    row("TopK", "rows", f"V, I = TopK<axis=2>(X, k) {_BOTH}", constants={"k": [2]}),
    row("TopK", "smallest", f"V, I = TopK<axis=-1, largest=0>(X, k) {_BOTH}", constants={"k": [3]}),
    row("TopK", "ties", f"{SIGNS} V, I = TopK(S, k) {_BOTH}", constants={"k": [4]}, opset=11),
    row("TopK", "values", "Y, I = TopK(X, k)", constants={"k": [2]}, opset=24),
    row("TopK", "unsorted", "V, I = TopK<sorted=0>(X, k) Y = ReduceSum(V, axes)",
        constants={"k": [2], "axes": [3]}),
    row("TopK", "opset10", f"V, I = TopK<axis=2>(X, k) {_BOTH}", constants={"k": [2]}, opset=10),
    row("TopK", "opset9", f"V, I = TopK<axis=2, k=2>(X) {_BOTH}", opset=9),
    row("TopK", "channels", "Y, I = TopK<axis=1>(X, k)", constants={"k": [2]}, prunes=False),
    row("TopK", "computed",
        f"S = Shape<start=3>(X) K = Sub(S, two) V, I = TopK(X, K) {_BOTH}",
        constants={"two": [2]}),
    row("TopK", "as_many_as_channels",
        f"S = Shape<start=1, end=2>(X) V, I = TopK(X, S) {_BOTH}"),
    row("TopK", "written_beside_what_runs",
        f"m = ReduceMax<keepdims=1>(n) k = Add(m, two) V, I = TopK<axis=2>(X, k) {_REST}",
        constants={"two": [2], "head": [3, 4]}, given={"n": np.array([1, 0])}, batch=3,
        counted=False),
    row("TopK", "as_it_runs",
        f"m = ReduceMax<keepdims=1>(n) k = Add(m, two) V, I = TopK<axis=2>(X, k) {_BOTH}",
        constants={"two": [2]}, given={"n": np.array([-1, 0])}, counted=False),
)  # fmt: skip

_FOUND = "T = Transpose(P) F = Cast<to=1>(T)"
FOUND = (
    row("NonZero", "plain", f"R = Relu(X) P = NonZero(R) {_FOUND} Y = Identity(F)", last=True,
        batch=2, counted=False, prunes=False),
    row("Reshape", "numbers_that_are_not_zero",
        """P = NonZero(mask) p = Reshape(P, flat) T = Concat<axis=0>(zero, p, flat)
        Y = Reshape(X, T)""",
        constants={"mask": [0, 0, 1, 0], "flat": [-1], "zero": [0]}),
    row("Compress", "rows", "Y = Compress<axis=2>(X, C)",
        constants={"C": np.array([True, False, True])}),
    row("Compress", "short", "Y = Compress<axis=-1>(X, C)", opset=9,
        constants={"C": np.array([False, True])}),
    row("Compress", "channels", "Y = Compress<axis=1>(X, C)", prunes=False,
        constants={"C": np.array([True, False, True, True])}),
    row("Compress", "flattened", "V = Compress(X, C) Y = Reshape(V, to)", prunes=False,
        constants={"C": np.array([True, False, True, True]), "to": [1, 3]}, counted=False),
    row("Compress", "computed_condition",
        """G = ReduceMax<axes=[0, 2, 3], keepdims=0>(Z) C = Greater(G, zero)
        V = Compress<axis=1>(X, C) Y = ReduceSum(V, axes)""",
        inputs={**GRID, "Z": (4, 3, 5)}, constants={"axes": [1], "zero": 0.0}, prunes=False),
    row("Compress", "as_it_runs", "V = Compress<axis=2>(X, C) Y = ReduceSum(V, axes)",
        constants={"axes": [2]}, given={"C": np.array([True, False, True])}),
    *(
        row("Unique", name, f"{SIGNS} V{more} = Unique{attributes}(S) {text}", prunes=False,
            batch=1, inputs={"X": (3, 4)}, counted=False)
        for name, more, attributes, text in (
            ("elements", "", "", "Y = Identity(V)"),
            ("first_ones", ", A", "", "Y = Cast<to=1>(A)"),
            ("unsorted", ", A", "<sorted=0>", "F = Cast<to=1>(A) Y = Add(V, F)"),
            ("inverse", ", , B", "<sorted=0>", "Y = Cast<to=1>(B)"),
            ("inverse_sorted", ", , B", "", "Y = Cast<to=1>(B)"),
            ("counts", ", , , D", "", "F = Cast<to=1>(D) Y = Add(V, F)"),
            ("counts_unsorted", ", , , D", "<sorted=0>", "F = Cast<to=1>(D) Y = Add(V, F)"),
            ("slices", ", A, B, D", "<axis=-1>", "Y = Identity(V)"),
            ("slices_unsorted", ", A, B, D", "<axis=2, sorted=0>", "Y = Identity(V)"),
        )
    ),
)  # fmt: skip

_INDICES = "I = ArgMax<axis=3, keepdims=0>(X)"
_PAIR = {"pair": [-1.0, 2.0]}
ONE_HOT = (
    row("OneHot", "last", f"{_INDICES} Y = OneHot(I, depth, pair)",
        constants={"depth": 5, **_PAIR}),
    row("OneHot", "inserted", f"{_INDICES} Y = OneHot<axis=2>(I, depth, pair)",
        constants={"depth": [6], **_PAIR}, opset=9),
    row("OneHot", "negative_axis", f"{_INDICES} Y = OneHot<axis=-2>(I, depth, pair)",
        constants={"depth": 3, **_PAIR}),
    row("OneHot", "before_channels",
        f"{_INDICES} H = OneHot<axis=1>(I, depth, pair) Y = ReduceSum(H, axes)",
        constants={"depth": 5, "axes": [2], **_PAIR}),
    row("OneHot", "out_of_range", "Y = OneHot(I, depth, pair)", inputs={}, last=True,
        given={"I": np.array([[0, 4, -1, 5], [-5, -6, 2, 1]])}, prunes=False,
        constants={"depth": 5, **_PAIR}),
    row("OneHot", "depth_of_channels",
        f"{_INDICES} D = Shape<start=1, end=2>(X) Y = OneHot(I, D, pair)", constants=_PAIR),
    row("OneHot", "computed_pair",
        f"{_INDICES} pair = ReduceMean<axes=[0], keepdims=0>(Z) Y = OneHot(I, depth, pair)",
        inputs={**GRID, "Z": (2,)}, constants={"depth": 5}),
    row("OneHot", "written_beside_what_runs",
        f"m = ReduceMax<keepdims=1>(n) d = Add(m, two) {_INDICES} V = OneHot(I, d, pair) {_REST}",
        constants={"two": [2], "head": [3, 4], **_PAIR}, given={"n": np.array([4, 0])}, batch=3,
        counted=False),
    row("OneHot", "as_it_runs",
        f"m = ReduceMax<keepdims=1>(n) d = Add(m, two) {_INDICES} Y = OneHot(I, d, pair)",
        constants={"two": [2], **_PAIR}, given={"n": np.array([-1, 0])}, counted=False),
)  # fmt: skip

CUMULATED = (
    *(
        row(op_type, name, f"Y = {op_type}{attributes}(X, axis)", opset=opset,
            constants={"axis": np.array(axis)})
        for op_type, opset in (("CumSum", 14), ("CumProd", 26))
        for name, attributes, axis in (
            ("plain", "", 2),
            ("channels", "", 1),
            ("exclusive", "<exclusive=1>", -3),
            ("reverse", "<reverse=1>", 1),
            ("both", "<exclusive=1, reverse=1>", 1),
            ("last", "<exclusive=1, reverse=1>", [-1]),
        )
    ),
    row("CumSum", "opset11", "Y = CumSum(X, axis)", opset=11,
        constants={"axis": np.array(1, np.int32)}),
    row("CumSum", "features", "Y = CumSum(X, axis)", inputs={"X": (5, 8)}, last=True,
        constants={"axis": np.array(2)}),
    row("CumSum", "integers",
        "K = Mul(X, ten) I = Cast<to=6>(K) J = CumSum<exclusive=1>(I, axis) Y = Cast<to=1>(J)",
        constants={"axis": np.array(1), "ten": 3.0}),
    row("CumSum", "computed_axis", "a = ReduceMax<keepdims=0>(n) Y = CumSum(X, a)",
        given={"n": np.array([-1, 2])}, prunes=False),
    row("CumSum", "two_dims",
        "A = Reshape(X, to) R = Relu(A) F = Reshape(R, back) Y = CumSum(F, axis)",
        inputs={"X": (12,)},
        constants={"to": [0, 3, 4], "back": [0, -1], "axis": np.array(1)}),
)  # fmt: skip

_LENGTHS = {"lengths": np.array([1, 4, 3])}
ORDERED = (
    row("ReverseSequence", "samples_first",
        "Y = ReverseSequence<batch_axis=0, time_axis=1>(X, lengths)",
        inputs={"X": (5, 8)}, last=True, batch=3, given=_LENGTHS),
    row("ReverseSequence", "time_first",
        """T = Transpose<perm=[1, 0, 2]>(X) R = ReverseSequence(T, lengths)
        Y = Transpose<perm=[1, 0, 2]>(R)""",
        inputs={"X": (5, 8)}, last=True, batch=3, given=_LENGTHS),
    row("ReverseSequence", "channels", "Y = ReverseSequence<batch_axis=0, time_axis=1>(X, lengths)",
        batch=3, given=_LENGTHS, prunes=False),
    row("ReverseSequence", "lengths_of_channels",
        """T = Transpose<perm=[2, 1, 0, 3]>(X) R = ReverseSequence(T, lengths)
        Y = Transpose<perm=[2, 1, 0, 3]>(R)""",
        constants={"lengths": [2, 3, 1, 3]}),
    *(
        row("Trilu", name, f"Y = Trilu{call}", constants=constants)
        for name, call, constants in (
            ("upper", "(X)", {}),
            ("lower", "<upper=0>(X)", {}),
            ("above", "<upper=1>(X, k)", {"k": 1}),
            ("below", "<upper=0>(X, k)", {"k": [-1]}),
        )
    ),
    row("Trilu", "channels", "Y = Trilu(X)", inputs={"X": (4, 5)}, prunes=False),
    row("Trilu", "as_it_runs", "m = ReduceMax<keepdims=0>(n) Y = Trilu(X, m)",
        given={"n": np.array([-2, 1])}),
    row("EyeLike", "plain", "E = EyeLike(X) Y = Mul(X, E)", inputs={"X": (4,)}, prunes=False),
    row("EyeLike", "above", "E = EyeLike<k=1, dtype=11>(X) F = Cast<to=1>(E) Y = Add(X, F)",
        inputs={"X": (4,)}, prunes=False, opset=22),
    row("EyeLike", "below", "E = EyeLike<k=-1>(X) Y = Mul(X, E)", inputs={"X": (4,)},
        prunes=False, opset=9),
)  # fmt: skip
CASES = (*HARDMAX, *ARGS, *TOP, *FOUND, *ONE_HOT, *CUMULATED, *ORDERED)
