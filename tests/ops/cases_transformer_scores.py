"""Rows for what is done to scores, queries and keys, and for sizes that are computed."""

from __future__ import annotations

import numpy as np
from ops.cases_transformer import (
    ATTEND,
    FOLD,
    HEADS,
    HEADS_IN_FRONT,
    PROJECT,
    SEPARATE,
    SIZES,
    TOKENS,
    UNFOLD,
    WEIGHTS,
    row,
)

SCORES = (
    row(
        "mask_of_callers",
        "Add",
        f"{HEADS} S = MatMul(Qh, Kh) D = Div(S, root) M = Add(D, m) A = Softmax(M)"
        f" O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        given={"m": np.where(np.tri(5) > 0, 0, -1e9).astype(np.float32).reshape(1, 1, 5, 5)},
    ),
    row(
        "mask_of_numbers",
        "Where",
        f"{HEADS} S = MatMul(Qh, Kh) F = Cast<to=1>(n) G = Sub(one, F) H = Mul(G, low)"
        " E = Unsqueeze(H, axes) B = Cast<to=9>(E) W = Where(B, low, S) A = Softmax(W)"
        f" O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        constants={**SIZES, "one": 1.0, "low": -1e9, "axes": [1, 2]},
        given={"n": np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 1, 0, 0]])},
        batch=3,
    ),
    row(
        "mask_of_positions",
        "Where",
        f"{HEADS} S = MatMul(Qh, Kh) Sh = Shape(S) I = Gather<axis=0>(Sh, i2)"
        " R = Range(zero, I, one) C1 = Unsqueeze(R, a1) L = LessOrEqual(R, C1)"
        f" W = Where(L, S, low) A = Softmax(W) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        constants={**SIZES, "i2": -1, "zero": 0, "one": 1, "low": -1e9, "a1": [1]},
    ),
    row(
        "bias_of_heads",
        "Add",
        f"{HEADS} S = MatMul(Qh, Kh) D = Add(S, B) A = Softmax(D) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "B": (1, 4, 5, 5)},
    ),
    row(
        "bias_from_a_table",
        "Gather",
        f"{HEADS} S = MatMul(Qh, Kh) G = Gather<axis=0>(B, where) T = Transpose<perm=[2,0,1]>(G)"
        f" U = Unsqueeze(T, z) D = Add(S, U) A = Softmax(D) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "B": (9, 4)},
        constants={**SIZES, "where": np.arange(5)[:, None] - np.arange(5) + 4, "z": [0]},
    ),
    row(
        "bias_from_a_flat_table",
        "Gather",
        f"{HEADS} S = MatMul(Qh, Kh) G = Gather<axis=0>(B, where) R = Reshape(G, square)"
        f" T = Transpose<perm=[2,0,1]>(R) D = Add(S, T) A = Softmax(D) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "B": (9, 4)},
        constants={
            **SIZES,
            "where": (np.arange(5)[:, None] - np.arange(5) + 4).reshape(-1),
            "square": [5, 5, -1],
        },
    ),
    row(
        "temperature_of_heads",
        "Mul",
        f"{HEADS} S = MatMul(Qh, Kh) D = Mul(S, t) A = Softmax(D) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "t": (4, 1, 1)},
    ),
    row(
        "talking_heads",
        "MatMul",
        f"{HEADS} S = MatMul(Qh, Kh) T = Transpose<perm=[0,2,3,1]>(S) M = MatMul(T, Wt)"
        " U = Transpose<perm=[0,3,1,2]>(M) A = Softmax(U) L = Transpose<perm=[0,2,3,1]>(A)"
        " N1 = MatMul(L, Ws) B = Transpose<perm=[0,3,1,2]>(N1) O = MatMul(B, Vh)"
        f" {FOLD}",
        (4, 4, 4, 5, 6, 12),
        weights={**WEIGHTS, "Wt": (4, 4), "Ws": (4, 4)},
    ),
    row(
        "scale_of_the_width",
        "MatMul",
        f"{HEADS} Sh = Shape(Qh) W = Slice(Sh, last, most) F = Cast<to=1>(W) R = Sqrt(F)"
        " I = Div(one, R) J = Sqrt(I) Qs = Mul(Qh, J) Ks = Mul(Kh, J) S = MatMul(Qs, Ks)"
        f" A = Softmax(S) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        constants={**SIZES, "last": [-1], "most": [2**62], "one": 1.0},
    ),
    row(
        "scale_of_the_features",
        "MatMul",
        f"Sh = Shape(X) E = Gather<axis=0>(Sh, i2) H = Div(E, three) F = Cast<to=1>(H) R = Sqrt(F)"
        f" {HEADS} S = MatMul(Qh, Kh) D = Div(S, R) A = Softmax(D) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        constants={**SIZES, "i2": 2, "three": 3},
    ),
    row(
        "scale_as_a_power",
        "MatMul",
        f"{HEADS} Sh = Shape(Vh) W = Gather<axis=0>(Sh, i3) F = Cast<to=1>(W) R = Pow(F, half)"
        f" S = MatMul(Qh, Kh) D = Mul(S, R) A = Softmax(D) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        constants={**SIZES, "i3": -1, "half": -0.5},
    ),
)
BIASES = (
    row(
        "cosine",
        "ReduceL2",
        f"{HEADS} Nq = ReduceL2<axes=[-1], keepdims=1>(Qh) Nk = ReduceL2<axes=[2], keepdims=1>(Kh)"
        " Qn = Div(Qh, Nq) Kn = Div(Kh, Nk) S = MatMul(Qn, Kn) D = Mul(S, t) A = Softmax(D)"
        f" O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "t": (4, 1, 1)},
    ),
    row(
        "bias_from_weights",
        "MatMul",
        f"H1 = MatMul(C, W1) H2 = Relu(H1) H3 = MatMul(H2, W2) T3 = Transpose<perm=[2,0,1]>(H3)"
        f" {HEADS} S = MatMul(Qh, Kh) D = Add(S, T3) A = Softmax(D) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "C": (5, 5, 2), "W1": (2, 8), "W2": (8, 4)},
    ),
    row(
        "bias_from_queries",
        "MatMul",
        f"{HEADS} S = MatMul(Qh, Kh) B = MatMul(Qh, R) D = Add(S, B) A = Softmax(D)"
        f" O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "R": (6, 5)},
    ),
    row(
        "bias_per_head",
        "Gather",
        f"{HEADS} S = MatMul(Qh, Kh) G = Gather<axis=1>(B, where) D = Add(S, G) A = Softmax(D)"
        f" O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "B": (4, 9)},
        constants={**SIZES, "where": np.arange(5)[:, None] - np.arange(5) + 4},
    ),
)
SHAPES = (
    row(
        "computed_targets",
        "Shape",
        "Sh = Shape(X) b = Gather<axis=0>(Sh, i0) n = Gather<axis=0>(Sh, i1)"
        " ub = Unsqueeze(b, z) un = Unsqueeze(n, z) to = Concat<axis=0>(ub, un, four, six)"
        " tov = Concat<axis=0>(ub, un, four, five) back = Concat<axis=0>(ub, un, wide)"
        f" {HEADS} S = MatMul(Qh, Kh) A = Softmax(S) O = MatMul(A, Vh) {FOLD}",
        SEPARATE,
        constants={"i0": 0, "i1": 1, "z": [0], "four": [4], "five": [5], "six": [6], "wide": [20]},
    ),
    row(
        "computed_widths",
        "MatMul",
        "Q1 = MatMul(X, Wq) K1 = MatMul(X, Wk) V1 = MatMul(X, Wv)"
        " Sh = Shape(X) b = Slice(Sh, z, two) Sq = Shape(Q1) Sv = Shape(V1)"
        " eq = Gather<axis=0>(Sq, two) ev = Gather<axis=0>(Sv, two) wq = Div(eq, four)"
        " wv = Div(ev, four) to = Concat<axis=0>(b, four, wq) tov = Concat<axis=0>(b, four, wv)"
        f" {UNFOLD.replace('(Q,', '(Q1,').replace('(K,', '(K1,').replace('(V,', '(V1,')}"
        f" {HEADS_IN_FRONT} S = MatMul(Qh, Kh) A = Softmax(S) O = MatMul(A, Vh)"
        " P = Transpose<perm=[0,2,1,3]>(O) So = Shape(P) h = Gather<axis=0>(So, two)"
        " w = Gather<axis=0>(So, three) m = Mul(h, w) back = Concat<axis=0>(b, m)"
        " Y = Reshape(P, back)",
        SEPARATE,
        constants={"z": [0], "two": [2], "three": [3], "four": [4]},
    ),
    row(
        "batch_times_heads",
        "MatMul",
        "Sh = Shape(X) b = Gather<axis=0>(Sh, z) n = Gather<axis=0>(Sh, one)"
        " bh = Mul(b, four) q = Concat<axis=0>(bh, n, six) k = Concat<axis=0>(bh, six, n)"
        " v = Concat<axis=0>(bh, n, five) o = Concat<axis=0>(b, four, n, five)"
        f" {HEADS} Qb = Reshape(Qh, q) Kb = Reshape(Kh, k) Vb = Reshape(Vh, v)"
        f" S = MatMul(Qb, Kb) A = Softmax(S) Ob = MatMul(A, Vb) O = Reshape(Ob, o) {FOLD}",
        SEPARATE,
        constants={**SIZES, "z": [0], "one": [1], "four": [4], "five": [5], "six": [6]},
    ),
)
OTHER = (
    row(
        "linear",
        "MatMul",
        f"{PROJECT} {UNFOLD} Qt = Transpose<perm=[0,2,1,3]>(Qu) Kt = Transpose<perm=[0,2,3,1]>(Ku)"
        " Vh = Transpose<perm=[0,2,1,3]>(Vu) Qe = Elu(Qt) Ke = Elu(Kt) Qh = Add(Qe, one)"
        " Kh = Add(Ke, one) C = MatMul(Kh, Vh) O1 = MatMul(Qh, C)"
        " Z = ReduceSum<keepdims=1>(Kh, axis) D = MatMul(Qh, Z) Dm = Add(D, tiny)"
        f" O = Div(O1, Dm) {FOLD}",
        SEPARATE,
        constants={**SIZES, "one": 1.0, "axis": [-1], "tiny": 1e-3},
    ),
    row(
        "rotated",
        "Concat",
        f"{HEADS} Kt = Transpose<perm=[0,1,3,2]>(Kh)"
        " Qa = Slice(Qh, zero, half, last) Qb = Slice(Qh, half, far, last) Qm = Neg(Qb)"
        " Qr = Concat<axis=-1>(Qm, Qa) Qc = Mul(Qh, cos) Qs = Mul(Qr, sin) Q2 = Add(Qc, Qs)"
        " Ka = Slice(Kt, zero, half, last) Kb = Slice(Kt, half, far, last) Km = Neg(Kb)"
        " Kr = Concat<axis=-1>(Km, Ka) Kc = Mul(Kt, cos) Ks = Mul(Kr, sin) K2 = Add(Kc, Ks)"
        f" K3 = Transpose<perm=[0,1,3,2]>(K2) S = MatMul(Q2, K3) A = Softmax(S) O = MatMul(A, Vh) {FOLD}",
        (3, 4, 5, 12),
        constants={
            **SIZES,
            "zero": [0],
            "half": [3],
            "far": [2**31],
            "last": [-1],
            "cos": np.cos(np.arange(30).reshape(5, 6) / 7).astype(np.float32),
            "sin": np.sin(np.arange(30).reshape(5, 6) / 7).astype(np.float32),
        },
    ),
    row(
        "rotated_side_by_side",
        "Slice",
        f"{HEADS} Kt = Transpose<perm=[0,1,3,2]>(Kh)"
        " Qa = Slice(Qh, zero, far, last, two) Qb = Slice(Qh, one, far, last, two)"
        " Qac = Mul(Qa, cos) Qbs = Mul(Qb, sin) Qas = Mul(Qa, sin) Qbc = Mul(Qb, cos)"
        " Q1 = Sub(Qac, Qbs) Q2 = Add(Qas, Qbc) Qx = Unsqueeze(Q1, last) Qy = Unsqueeze(Q2, last)"
        " Qz = Concat<axis=-1>(Qx, Qy) Qr = Reshape(Qz, joined)"
        " S = MatMul(Qr, Kh) A = Softmax(S)"
        f" O = MatMul(A, Vh) {FOLD}",
        (3, 4, 5, 12),
        constants={
            **SIZES,
            "zero": [0],
            "one": [1],
            "two": [2],
            "far": [2**31],
            "last": [-1],
            "joined": [0, 0, 0, 6],
            "cos": np.cos(np.arange(15).reshape(5, 3) / 7).astype(np.float32),
            "sin": np.sin(np.arange(15).reshape(5, 3) / 7).astype(np.float32),
        },
    ),
    row(
        "grown_cache",
        "Concat",
        "Pq = MatMul(C, Wpk) Pr = MatMul(C, Wpv) Ps = Reshape(Pq, to) Pt = Reshape(Pr, tov)"
        " Pk = Transpose<perm=[0,2,3,1]>(Ps) Pv = Transpose<perm=[0,2,1,3]>(Pt)"
        f" {HEADS} Kx = Concat<axis=3>(Pk, Kh) Vx = Concat<axis=2>(Pv, Vh)"
        f" S = MatMul(Qh, Kx) A = Softmax(S) O = MatMul(A, Vx) {FOLD}",
        (4, 5, 6, 8, 12),
        inputs={**TOKENS, "C": (2, 8)},
        weights={**WEIGHTS, "Wpk": (8, 24), "Wpv": (8, 20)},
    ),
    row(
        "learned_queries",
        "MatMul",
        f"Q = MatMul(L, Wq) K = MatMul(X, Wk) V = MatMul(X, Wv)"
        " Qu = Reshape(Q, alone) Ku = Reshape(K, to) Vu = Reshape(V, tov)"
        f" {HEADS_IN_FRONT} {ATTEND} {FOLD}",
        SEPARATE,
        weights={**WEIGHTS, "Wq": (9, 24), "L": (2, 9)},
        constants={**SIZES, "alone": [1, 2, 4, 6]},
    ),
    row(
        "block",
        "MatMul",
        f"{HEADS} {ATTEND} {FOLD.replace(' Y = ', ' U = ')} H1 = MatMul(U, Wo) H = Add(H1, Bo)"
        " R1 = Add(X, H) F1 = MatMul(R1, W1) F2 = Add(F1, B1) E1 = Div(F2, two) E2 = Erf(E1)"
        " E3 = Add(E2, one) E4 = Mul(F2, E3) E5 = Mul(E4, half) G1 = MatMul(E5, W2)"
        " G = Mul(G1, gamma) R = Add(R1, G) Y = MatMul(R, Wc)",
        (4, 5, 6, 7, 12, 16),
        weights={
            **WEIGHTS,
            "Wo": (20, 12),
            "Bo": (12,),
            "W1": (12, 16),
            "B1": (16,),
            "W2": (16, 12),
            "gamma": (12,),
            "Wc": (12, 7),
        },
        constants={**SIZES, "two": 1.4142, "one": 1.0, "half": 0.5},
    ),
)
CASES = (*SCORES, *BIASES, *SHAPES, *OTHER)
