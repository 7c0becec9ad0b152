"""Rows for attention that is spelled out in other operators, as exporters write it.

Heads number 4 and hold 6 features, values of their own projection 5, tokens 12 features: so the
sizes of what may be removed say what it is.
"""

from __future__ import annotations

import numpy as np
from ops.cases import Case

TOKENS = {"X": (5, 12)}
"""5 positions."""
FREE: dict[str, tuple[int, ...]] = {}
"""For each row the sizes of its groups."""

PROJECT = "Q = MatMul(X, Wq) K = MatMul(X, Wk) V = MatMul(X, Wv)"
WEIGHTS = {"Wq": (12, 24), "Wk": (12, 24), "Wv": (12, 20)}
UNFOLD = "Qu = Reshape(Q, to) Ku = Reshape(K, to) Vu = Reshape(V, tov)"
FOLD = "P = Transpose<perm=[0,2,1,3]>(O) Y = Reshape(P, back)"
HEADS_IN_FRONT = (
    "Qh = Transpose<perm=[0,2,1,3]>(Qu) Kh = Transpose<perm=[0,2,3,1]>(Ku)"
    " Vh = Transpose<perm=[0,2,1,3]>(Vu)"
)
HEADS = f"{PROJECT} {UNFOLD} {HEADS_IN_FRONT}"
ATTEND = "S = MatMul(Qh, Kh) D = Div(S, root) A = Softmax<axis=-1>(D) O = MatMul(A, Vh)"
SIZES = {"to": [0, 0, 4, 6], "tov": [0, 0, 4, 5], "back": [0, 0, 20], "root": 2.449}
SEPARATE = (4, 5, 6, 12)
"""Heads, width of values, width of queries and keys, features."""
TOGETHER = (4, 6, 12)


def row(name: str, op_type: str, text: str, free: tuple[int, ...], **options: object) -> Case:
    """Make a row that says which groups there are."""
    given = {"inputs": TOKENS, "weights": WEIGHTS, "constants": SIZES, "last": True, **options}
    case = Case(name, op_type, text, **given)
    FREE[case.id] = free
    return case


ORDERS = (
    row("plain", "MatMul", f"{PROJECT} {UNFOLD} {HEADS_IN_FRONT} {ATTEND} {FOLD}", SEPARATE),
    row(
        "biases",
        "MatMul",
        "Q1 = MatMul(X, Wq) K1 = MatMul(X, Wk) V1 = MatMul(X, Wv)"
        " Q = Add(Q1, Bq) K = Add(Bk, K1) V = Add(V1, Bv)"
        f" {UNFOLD} {HEADS_IN_FRONT} {ATTEND} {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "Bq": (24,), "Bk": (24,), "Bv": (20,)},
    ),
    row(
        "keys_transposed_later",
        "MatMul",
        f"{PROJECT} {UNFOLD} Qh = Transpose<perm=[0,2,1,3]>(Qu)"
        " Kt = Transpose<perm=[0,2,1,3]>(Ku) Kh = Transpose<perm=[0,1,3,2]>(Kt)"
        f" Vh = Transpose<perm=[0,2,1,3]>(Vu) {ATTEND} {FOLD}",
        SEPARATE,
    ),
    row(
        "scaled_in_front",
        "Softmax",
        f"{PROJECT} {UNFOLD} {HEADS_IN_FRONT} Qs = Mul(Qh, s) Ks = Mul(Kh, s)"
        f" S = MatMul(Qs, Ks) A = Softmax<axis=3>(S) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        constants={**SIZES, "s": 0.64},
    ),
    row(
        "scores_transposed",
        "MatMul",
        f"{PROJECT} {UNFOLD} Qh = Transpose<perm=[0,2,3,1]>(Qu) Kh = Transpose<perm=[0,2,1,3]>(Ku)"
        " Vh = Transpose<perm=[0,2,3,1]>(Vu) S = MatMul(Kh, Qh) A = Softmax<axis=2>(S)"
        " O = MatMul(Vh, A) P = Transpose<perm=[0,3,1,2]>(O) Y = Reshape(P, back)",
        SEPARATE,
    ),
    row(
        "heads_last",
        "MatMul",
        f"{PROJECT} Qu = Reshape(Q, to) Ku = Reshape(K, to) Vu = Reshape(V, tov)"
        " Qh = Transpose<perm=[0,3,1,2]>(Qu) Kh = Transpose<perm=[0,3,2,1]>(Ku)"
        " Vh = Transpose<perm=[0,3,1,2]>(Vu) S = MatMul(Qh, Kh) A = Softmax(S)"
        " O = MatMul(A, Vh) P = Transpose<perm=[0,2,3,1]>(O) Y = Reshape(P, back)",
        SEPARATE,
        constants={"to": [0, 0, 6, 4], "tov": [0, 0, 5, 4], "back": [0, 0, -1]},
    ),
    row(
        "opset11",
        "Softmax",
        f"{PROJECT} {UNFOLD} {HEADS_IN_FRONT} S = MatMul(Qh, Kh) A = Softmax<axis=3>(S)"
        f" O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        opset=11,
    ),
    row(
        "batch_and_heads_in_one",
        "MatMul",
        f"{PROJECT} {UNFOLD} {HEADS_IN_FRONT} Qb = Reshape(Qh, q) Kb = Reshape(Kh, k)"
        " Vb = Reshape(Vh, v) S = MatMul(Qb, Kb) A = Softmax(S) Ob = MatMul(A, Vb)"
        f" O = Reshape(Ob, o) {FOLD}",
        SEPARATE,
        constants={**SIZES, "q": [-1, 5, 6], "k": [-1, 6, 5], "v": [-1, 5, 5], "o": [-1, 4, 5, 5]},
    ),
)
UNFOLD_FOLD = f"{UNFOLD} {HEADS_IN_FRONT} {ATTEND} {FOLD}"
THREE = "T = MatMul(X, W) B1 = Add(T, B)"
ONE = {"W": (12, 72), "B": (72,)}
FUSED = (
    row(
        "split",
        "Split",
        f"{THREE} Q, K, V = Split<axis=-1>(B1, parts) {UNFOLD_FOLD}",
        SEPARATE,
        weights={"W": (12, 68), "B": (68,)},
        constants={**SIZES, "parts": [24, 24, 20]},
    ),
    row(
        "sliced",
        "Slice",
        f"{THREE} Q = Slice(B1, zero, one, two) K = Slice(B1, one, end, two)"
        f" V = Slice(B1, end, most, two) {UNFOLD_FOLD}",
        SEPARATE,
        weights={"W": (12, 68), "B": (68,)},
        constants={**SIZES, "zero": [0], "one": [24], "end": [48], "most": [2**31], "two": [2]},
    ),
    row(
        "gathered",
        "Gather",
        f"{THREE} R = Reshape(B1, five) P5 = Transpose<perm=[2,0,3,1,4]>(R)"
        " Qh = Gather<axis=0>(P5, i0) Kg = Gather<axis=0>(P5, i1) Vh = Gather<axis=0>(P5, i2)"
        f" Kh = Transpose<perm=[0,1,3,2]>(Kg) {ATTEND} {FOLD}",
        TOGETHER,
        weights=ONE,
        constants={
            "five": [0, 0, 3, 4, 6],
            "back": [0, 0, -1],
            "root": 2.449,
            "i0": 0,
            "i1": 1,
            "i2": 2,
        },
    ),
    row(
        "unbound",
        "Split",
        f"{THREE} R = Reshape(B1, five) P5 = Transpose<perm=[2,0,3,1,4]>(R)"
        " Q5, K5, V5 = Split<axis=0>(P5) Qh = Squeeze(Q5, z) Kg = Squeeze(K5, z)"
        f" Vh = Squeeze(V5, z) Kh = Transpose<perm=[0,1,3,2]>(Kg) {ATTEND} {FOLD}",
        TOGETHER,
        weights=ONE,
        constants={"five": [0, 0, 3, 4, 6], "back": [0, 0, -1], "root": 2.449, "z": [0]},
    ),
    row(
        "heads_first",
        "Split",
        f"{THREE} R = Reshape(B1, four) P4 = Transpose<perm=[0,2,1,3]>(R)"
        " Qh, Kg, Vh = Split<axis=-1>(P4, parts) Kh = Transpose<perm=[0,1,3,2]>(Kg)"
        f" {ATTEND} {FOLD}",
        SEPARATE,
        weights={"W": (12, 68), "B": (68,)},
        constants={"four": [0, 0, 4, 17], "parts": [6, 6, 5], "back": [0, 0, 20], "root": 2.449},
    ),
    row(
        "heads_then_three",
        "Gather",
        f"{THREE} R = Reshape(B1, five) P5 = Transpose<perm=[0,2,1,3,4]>(R)"
        " Qh = Gather<axis=3>(P5, i0) Kg = Gather<axis=3>(P5, i1) Vh = Gather<axis=-2>(P5, i2)"
        f" Kh = Transpose<perm=[0,1,3,2]>(Kg) {ATTEND} {FOLD}",
        TOGETHER,
        weights=ONE,
        constants={
            "five": [0, 0, 4, 3, 6],
            "back": [0, 0, -1],
            "root": 2.449,
            "i0": 0,
            "i1": 1,
            "i2": -1,
        },
    ),
    row(
        "queries_apart",
        "Split",
        f"Q = MatMul(X, Wq) T = MatMul(X, W) K, V = Split<axis=2>(T, parts) {UNFOLD_FOLD}",
        SEPARATE,
        weights={"Wq": (12, 24), "W": (12, 44)},
        constants={**SIZES, "parts": [24, 20]},
    ),
)
SEQUENCE_FIRST = (
    row(
        "torch_module",
        "MatMul",
        "T = Transpose<perm=[1,0,2]>(X) Q1 = MatMul(T, Wq) K1 = MatMul(T, Wk) V1 = MatMul(T, Wv)"
        " Q2 = Add(Q1, Bq) Q = Mul(Q2, s) Qb = Reshape(Q, to) Kb = Reshape(K1, to)"
        " Vb = Reshape(V1, tov) Qh = Transpose<perm=[1,0,2]>(Qb) Kh = Transpose<perm=[1,2,0]>(Kb)"
        " Vh = Transpose<perm=[1,0,2]>(Vb) S = MatMul(Qh, Kh) A = Softmax<axis=2>(S)"
        " O = MatMul(A, Vh) P = Transpose<perm=[1,0,2]>(O) U = Reshape(P, rows)"
        " F = Gemm<transB=1>(U, Wo, Bo) G = Reshape(F, back) Y = Transpose<perm=[1,0,2]>(G)",
        (4, 5, 6, 7, 12),
        weights={**WEIGHTS, "Bq": (24,), "Wo": (7, 20), "Bo": (7,)},
        constants={
            "s": 0.4,
            "to": [5, 12, 6],
            "tov": [5, 12, 5],
            "rows": [15, 20],
            "back": [5, 3, 7],
        },
        batch=3,
    ),
    row(
        "torch_module_dynamic",
        "MatMul",
        "T = Transpose<perm=[1,0,2]>(X) Sh = Shape(T) S0 = Gather<axis=0>(Sh, i0)"
        " S1 = Gather<axis=0>(Sh, i1) N4 = Mul(S1, four) U0 = Unsqueeze(S0, z) U1 = Unsqueeze(N4, z)"
        " to = Concat<axis=0>(U0, U1, d) tov = Concat<axis=0>(U0, U1, dv)"
        " Q = MatMul(T, Wq) K = MatMul(T, Wk) V = MatMul(T, Wv)"
        " Qb = Reshape(Q, to) Kb = Reshape(K, to) Vb = Reshape(V, tov)"
        " Qh = Transpose<perm=[1,0,2]>(Qb) Kh = Transpose<perm=[1,2,0]>(Kb)"
        " Vh = Transpose<perm=[1,0,2]>(Vb) S = MatMul(Qh, Kh) A = Softmax<axis=-1>(S)"
        " O = MatMul(A, Vh) P = Transpose<perm=[1,0,2]>(O) N = Mul(S0, S1) UN = Unsqueeze(N, z)"
        " r = Concat<axis=0>(UN, e) U = Reshape(P, r) F = Gemm<transB=1>(U, Wo, Bo)"
        " V1 = Unsqueeze(S1, z) b = Concat<axis=0>(U0, V1, m) G = Reshape(F, b)"
        " Y = Transpose<perm=[1,0,2]>(G)",
        (4, 5, 6, 7, 12),
        weights={**WEIGHTS, "Wo": (7, 20), "Bo": (7,)},
        constants={"i0": 0, "i1": 1, "four": 4, "z": [0], "d": [6], "dv": [5], "e": [20], "m": [7]},
    ),
)
VARIANTS = (
    row(
        "flat_products",
        "Gemm",
        "F = Reshape(X, rows) G = Gemm(F, W, B) T = Reshape(G, wide)"
        f" Q, K, V = Split<axis=2>(T, parts) {UNFOLD_FOLD}",
        SEPARATE,
        weights={"W": (12, 68), "B": (68,)},
        constants={**SIZES, "rows": [-1, 12], "wide": [-1, 5, 68], "parts": [24, 24, 20]},
    ),
    row(
        "left_over_sizes",
        "Reshape",
        f"{HEADS} {ATTEND} {FOLD}",
        SEPARATE,
        constants={**SIZES, "to": [0, -1, 4, 6], "tov": [-1, 5, 4, 5], "back": [0, -1, 20]},
    ),
    row(
        "no_bias_of_keys",
        "Concat",
        "B = Concat<axis=0>(Bq, zeros, Bv) T = MatMul(X, W) B1 = Add(T, B)"
        f" Q, K, V = Split<axis=-1>(B1, parts) {UNFOLD_FOLD}",
        SEPARATE,
        weights={"W": (12, 68), "Bq": (24,), "Bv": (20,)},
        constants={**SIZES, "zeros": np.zeros(24, np.float32), "parts": [24, 24, 20]},
    ),
    # how many queries share a head is also compared with -1, so it cannot be written again
)
CASES = (*ORDERS, *FUSED, *SEQUENCE_FIRST, *VARIANTS)
