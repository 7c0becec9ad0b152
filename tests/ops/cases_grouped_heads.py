"""Rows for attention whose heads of keys and values serve several heads of queries."""

from __future__ import annotations

from ops.cases_transformer import FOLD, PROJECT, row

GROUPED_WEIGHTS = {"Wq": (12, 36), "Wk": (12, 12), "Wv": (12, 10)}
"""6 query heads on 2 heads of keys and values: 2, 3, 5, 6."""
GROUPED_SIZES = {
    "to": [0, 0, 6, 6],
    "tok": [0, 0, 2, 6],
    "tov": [0, 0, 2, 5],
    "z": [2],
    "grow": [1, 1, 3, 1, 1],
    "times": [1, 1, 3, 1, 1],
    "many_k": [0, 6, 5, 6],
    "many_v": [0, 6, 5, 5],
    "back": [0, 0, 30],
    "groups": [0, 0, 2, 3, 6],
}
GROUPED_HEADS = (
    "Ku = Reshape(K, tok) Vu = Reshape(V, tov) Kt = Transpose<perm=[0,2,1,3]>(Ku)"
    " Vt = Transpose<perm=[0,2,1,3]>(Vu) Kx = Unsqueeze(Kt, z) Vx = Unsqueeze(Vt, z)"
)
GROUPED_QUERIES = "Qu = Reshape(Q, to) Qh = Transpose<perm=[0,2,1,3]>(Qu)"
GROUPED_ATTEND = (
    "Km = Reshape(Ke, many_k) Vm = Reshape(Ve, many_v) Kh = Transpose<perm=[0,1,3,2]>(Km)"
    " S = MatMul(Qh, Kh) A = Softmax(S) O = MatMul(A, Vm)"
)
REPEATED = tuple(
    row(
        name,
        op_type,
        f"{PROJECT} {text}",
        (2, 3, 5, 6, 12),
        weights=GROUPED_WEIGHTS,
        constants=GROUPED_SIZES,
    )
    for name, op_type, text in (
        (
            "shared_heads",
            "Expand",
            (
                f"{GROUPED_QUERIES} {GROUPED_HEADS} Ke = Expand(Kx, grow) Ve = Expand(Vx, grow)"
                f" {GROUPED_ATTEND} {FOLD}"
            ),
        ),
        (
            "shared_heads",
            "Tile",
            (
                f"{GROUPED_QUERIES} {GROUPED_HEADS} Ke = Tile(Kx, times) Ve = Tile(Vx, times)"
                f" {GROUPED_ATTEND} {FOLD}"
            ),
        ),
        (
            "shared_heads_broadcast",
            "MatMul",
            (
                f"{GROUPED_HEADS} Qu = Reshape(Q, groups) Qh = Transpose<perm=[0,2,3,1,4]>(Qu)"
                " Kh = Transpose<perm=[0,1,2,4,3]>(Kx) S = MatMul(Qh, Kh) A = Softmax(S)"
                " O = MatMul(A, Vx) P = Transpose<perm=[0,3,1,2,4]>(O) Y = Reshape(P, back)"
            ),
        ),
    )
)
CASES = (
    *REPEATED,
    row(
        "shared_heads_of_computed_size",
        "Expand",
        f"{PROJECT} {GROUPED_QUERIES} {GROUPED_HEADS} Sk = Shape(Kt) k0 = Gather<axis=0>(Sk, i0)"
        " k1 = Gather<axis=0>(Sk, i1) k2 = Gather<axis=0>(Sk, i2) k3 = Gather<axis=0>(Sk, i3)"
        " gk = Concat<axis=0>(k0, k1, three, k2, k3) Sv = Shape(Vt) v3 = Gather<axis=0>(Sv, i3)"
        " gv = Concat<axis=0>(k0, k1, three, k2, v3) lk = Shape(gk)"
        " ones = ConstantOfShape<value = int64[1] {1}>(lk) mk = Mul(ones, minus)"
        " ek = Equal(gk, mk) wk = Where(ek, ones, gk) Ke = Expand(Kx, wk) Ve = Expand(Vx, gv)"
        " h = Mul(k1, three) many_k = Concat<axis=0>(k0, h, k2, k3)"
        f" many_v = Concat<axis=0>(k0, h, k2, v3) {GROUPED_ATTEND} {FOLD}",
        (2, 3, 5, 6, 12),
        weights=GROUPED_WEIGHTS,
        constants={
            **{key: value for key, value in GROUPED_SIZES.items() if "many" not in key},
            "i0": [0],
            "i1": [1],
            "i2": [2],
            "i3": [3],
            "three": [3],
            "minus": -1,
        },
    ),
)
