"""Rows for attention on maps: windows, grids, channels that attend, and convolutions."""

from __future__ import annotations

import numpy as np
from ops.cases_transformer import (
    ATTEND,
    HEADS,
    ONE,
    PROJECT,
    SEPARATE,
    SIZES,
    THREE,
    UNFOLD_FOLD,
    WEIGHTS,
    row,
)

MAPS = {"X": (6, 4, 12)}
"""6 x 4 positions."""
WINDOWS = (
    "W6 = Reshape({0}, windows) T6 = Transpose<perm=[0,1,3,2,4,5]>(W6) {1} = Reshape(T6, flat)"
)
UNDO_WINDOWS = (
    "V6 = Reshape({0}, whole) R6 = Transpose<perm=[0,1,3,2,4,5]>(V6) {1} = Reshape(R6, maps)"
)
IN_WINDOWS = {
    "windows": [-1, 3, 2, 2, 2, 12],
    "flat": [-1, 4, 12],
    "whole": [-1, 3, 2, 2, 2, 20],
    "maps": [-1, 6, 4, 20],
    **SIZES,
}
"""Windows of 2 x 2."""
ROLL = "A{1} = Slice({0}, {2}, far, {3}) B{1} = Slice({0}, zero, {2}, {3}) {1} = Concat<axis={4}>(A{1}, B{1})"
ATTEND_TO_X = f"{HEADS.replace('MatMul(X,', 'MatMul(F,')} {ATTEND} P = Transpose<perm=[0,2,1,3]>(O) U = Reshape(P, back)"
VISION = (
    row(
        "windows",
        "Reshape",
        f"{WINDOWS.format('X', 'F')} {ATTEND_TO_X} {UNDO_WINDOWS.format('U', 'Y')}",
        SEPARATE,
        inputs=MAPS,
        constants=IN_WINDOWS,
    ),
    row(
        "shifted_windows",
        "Concat",
        f"{ROLL.format('X', 'H', 'by', 'rows', 1)} {ROLL.format('H', 'G', 'by', 'columns', 2)}"
        f" {WINDOWS.format('G', 'F')} {ATTEND_TO_X} {UNDO_WINDOWS.format('U', 'C')}"
        f" {ROLL.format('C', 'D1', 'back_by', 'rows', 1)}"
        f" {ROLL.format('D1', 'Y', 'back_by', 'columns', 2)}",
        SEPARATE,
        inputs=MAPS,
        constants={
            **IN_WINDOWS,
            "by": [1],
            "back_by": [-1],
            "zero": [0],
            "far": [2**31],
            "rows": [1],
            "columns": [2],
        },
    ),
    row(
        "masked_windows",
        "Add",
        f"{WINDOWS.format('X', 'F')} {HEADS.replace('MatMul(X,', 'MatMul(F,')}"
        " S = MatMul(Qh, Kh) S5 = Reshape(S, of_windows) M = Add(S5, mask)"
        " S4 = Reshape(M, scores) A = Softmax(S4) O = MatMul(A, Vh)"
        f" P = Transpose<perm=[0,2,1,3]>(O) U = Reshape(P, back) {UNDO_WINDOWS.format('U', 'Y')}",
        SEPARATE,
        inputs=MAPS,
        constants={
            **IN_WINDOWS,
            "of_windows": [-1, 6, 4, 4, 4],
            "scores": [-1, 4, 4, 4],
            "mask": np.where(np.arange(96).reshape(1, 6, 1, 4, 4) % 7 < 2, -100, 0).astype(
                np.float32
            ),
        },
    ),
    row(
        "channels_attend",
        "Softmax",
        f"{THREE} R = Reshape(B1, five) P5 = Transpose<perm=[2,0,3,4,1]>(R)"
        " Qg = Gather<axis=0>(P5, i0) Kg = Gather<axis=0>(P5, i1) Vh = Gather<axis=0>(P5, i2)"
        " Qn = LpNormalization<axis=3, p=2>(Qg) Kn = LpNormalization<axis=-1, p=2>(Kg)"
        " Kh = Transpose<perm=[0,1,3,2]>(Kn) S = MatMul(Qn, Kh) D = Mul(S, t) A = Softmax(D)"
        " O = MatMul(A, Vh) P = Transpose<perm=[0,3,1,2]>(O) Y = Reshape(P, back)",
        (4, 12),
        weights={**ONE, "t": (4, 1, 1)},
        constants={"five": [0, 0, 3, 4, 6], "back": [0, 0, -1], "i0": 0, "i1": 1, "i2": 2},
    ),
    row(
        "channels_attend_by_a_norm",
        "Softmax",
        f"{PROJECT} Qu = Reshape(Q, to) Ku = Reshape(K, tok) Vu = Reshape(V, tov)"
        " Qg = Transpose<perm=[0,2,3,1]>(Qu) Kg = Transpose<perm=[0,2,3,1]>(Ku)"
        " Vh = Transpose<perm=[0,2,3,1]>(Vu) Nq = ReduceL2<axes=[-1], keepdims=1>(Qg)"
        " Nk = ReduceL2<axes=[3], keepdims=1>(Kg) Cq = Clip(Nq, tiny) Ck = Clip(Nk, tiny)"
        " Qn = Div(Qg, Cq) Kn = Div(Kg, Ck) Kh = Transpose<perm=[0,1,3,2]>(Kn)"
        " S = MatMul(Qn, Kh) A = Softmax(S) O = MatMul(A, Vh) P = Transpose<perm=[0,3,1,2]>(O)"
        " Y = Reshape(P, back)",
        (4, 5, 12),
        weights={"Wq": (12, 20), "Wk": (12, 24), "Wv": (12, 24)},
        constants={
            "to": [0, 0, 4, 5],
            "tok": [0, 0, 4, 6],
            "tov": [0, 0, 4, 6],
            "back": [0, 0, -1],
            "tiny": 1e-6,
        },
    ),
    row(
        "class_token",
        "Concat",
        "Sh = Shape(X) b = Gather<axis=0>(Sh, z) t = Concat<axis=0>(b, m, m) Lt = Shape(t)"
        " L1 = ConstantOfShape<value = int64[1] {1}>(Lt) Lm = Mul(L1, m) Eq = Equal(t, Lm)"
        " Wt = Where(Eq, L1, t) E = Expand(C, Wt)"
        f" J = Concat<axis=1>(E, X) F = Add(J, Pe) {ATTEND_TO_X} N1 = MatMul(U, Wo)"
        " G = Mul(N1, gamma) R = Add(F, G) T = Gather<axis=1>(R, first) Y = MatMul(T, Wc)",
        (4, 5, 6, 7, 12),
        weights={
            **WEIGHTS,
            "C": (1, 1, 12),
            "Pe": (1, 6, 12),
            "Wo": (20, 12),
            "gamma": (12,),
            "Wc": (12, 7),
        },
        constants={**SIZES, "z": [0], "m": [-1], "first": 0},
    ),
    row(
        "class_token_of_written_size",
        "Expand",
        f"E = Expand(C, t) F = Concat<axis=1>(E, X) {ATTEND_TO_X} Y = Add(U, U)",
        SEPARATE,
        weights={**WEIGHTS, "C": (1, 1, 12)},
        constants={**SIZES, "t": [3, 1, 12]},
        batch=3,
    ),
)
CONVOLVED = {"X": (12, 4, 3)}
"""Maps of 12 channels, made and read by convolutions."""
CONVOLUTIONS = (
    row(
        "convolved",
        "Split",
        "T = Conv(X, W, B) R = Reshape(T, heads) Qh, Kh, Vh = Split<axis=2>(R, parts)"
        " Qt = Transpose<perm=[0,1,3,2]>(Qh) S = MatMul(Qt, Kh) D = Mul(S, s) A = Softmax(D)"
        " At = Transpose<perm=[0,1,3,2]>(A) O = MatMul(Vh, At) P = Reshape(O, maps)"
        " V4 = Reshape(Vh, maps) E = Conv<group=20, pads=[1,1,1,1]>(V4, Wp) Y = Add(P, E)",
        SEPARATE,
        inputs=CONVOLVED,
        weights={"W": (68, 12, 1, 1), "B": (68,), "Wp": (20, 1, 3, 3)},
        constants={"heads": [0, 4, 17, 12], "parts": [6, 6, 5], "maps": [0, 20, 4, 3], "s": 0.4},
        last=False,
    ),
    row(
        "reduced_keys",
        "MatMul",
        "F = Reshape(X, flat) T = Transpose<perm=[0,2,1]>(F) Q = MatMul(T, Wq)"
        " C = Conv<strides=[2,1]>(X, Wr) G = Reshape(C, small) U = Transpose<perm=[0,2,1]>(G)"
        " K = MatMul(U, Wk) V = MatMul(U, Wv)"
        f" {UNFOLD_FOLD.replace(' Y = ', ' L = ')} M = MatMul(L, Wo) N1 = Add(M, T)"
        " H = Transpose<perm=[0,2,1]>(N1) Y = Reshape(H, maps)",
        (4, 5, 6, 9, 12),
        inputs=CONVOLVED,
        weights={"Wq": (12, 24), "Wr": (9, 12, 2, 1), "Wk": (9, 24), "Wv": (9, 20), "Wo": (20, 12)},
        constants={**SIZES, "flat": [0, 12, 12], "small": [0, 9, 6], "maps": [0, 12, 4, 3]},
        last=False,
    ),
    row(
        "grid",
        "Transpose",
        "W6 = Reshape(X, grid) T6 = Transpose<perm=[0,2,4,1,3,5]>(W6) F = Reshape(T6, flat)"
        f" {ATTEND_TO_X} V6 = Reshape(U, whole) R6 = Transpose<perm=[0,3,1,4,2,5]>(V6)"
        " Y = Reshape(R6, maps)",
        SEPARATE,
        inputs=MAPS,
        constants={**IN_WINDOWS, "grid": [-1, 2, 3, 2, 2, 12], "whole": [-1, 3, 2, 2, 2, 20]},
    ),
    row(
        "unfolded_patches",
        "Reshape",
        "A1 = Reshape(X, u1) A2 = Transpose<perm=[0,2,1,3]>(A1) A3 = Reshape(A2, u2)"
        f" A4 = Transpose<perm=[0,3,2,1]>(A3) F = Reshape(A4, u3) {ATTEND_TO_X} G = MatMul(U, Wo)"
        " Z1 = Reshape(G, f1) Z2 = Transpose<perm=[0,3,2,1]>(Z1) Z3 = Reshape(Z2, f2)"
        " Z4 = Transpose<perm=[0,2,1,3]>(Z3) Y = Reshape(Z4, f3)",
        (4, 5, 6, 7, 12),
        inputs={"X": (12, 4, 6)},
        weights={**WEIGHTS, "Wo": (20, 7)},
        constants={
            **SIZES,
            "u1": [-1, 2, 3, 2],
            "u2": [-1, 12, 6, 4],
            "u3": [-1, 6, 12],
            "f1": [-1, 4, 6, 7],
            "f2": [-1, 3, 2, 2],
            "f3": [-1, 7, 4, 6],
        },
        last=False,
    ),
)
CASES = (*VISION, *CONVOLUTIONS)
