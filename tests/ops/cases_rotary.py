"""Rows for rotary embeddings."""

from __future__ import annotations

import numpy as np
from ops.cases import Case
from ops.cases_attention import BATCH, FOUR, HEADS, SIZES, TOKENS, draw

QUERY = "Q = MatMul(X, Wq)"
OPEN = "Qu = Reshape(Q, to) Qh = Transpose<perm=[0,2,1,3]>(Qu)"
SHUT = "P = Transpose<perm=[0,2,1,3]>(A) Y = Reshape(P, back)"
CACHE = {"c": draw(9, 3), "s": draw(9, 3)}
SMALL_CACHE = {"c": draw(9, 2), "s": draw(9, 2)}
PLACES = {"p": np.array([[0, 1, 2, 3], [3, 4, 5, 6], [5, 6, 7, 8]])}


def rotary(name: str, text: str, constants: dict[str, np.ndarray], **options: object) -> Case:
    """Make a row of RotaryEmbedding on 4 heads of 6 features."""
    row = {"weights": {"Wq": (12, 24)}, "inputs": TOKENS, "batch": BATCH, "opset": 23, **options}
    return Case(
        name,
        "RotaryEmbedding",
        f"{QUERY} {text}",
        constants={**SIZES, **PLACES, **constants},
        last=True,
        **row,
    )


ROTARY = (
    rotary("packed", "Y = RotaryEmbedding<num_heads=4>(Q, c, s, p)", CACHE),
    rotary("interleaved", "Y = RotaryEmbedding<num_heads=4, interleaved=1>(Q, c, s, p)", CACHE),
    rotary(
        "some_features",
        "Y = RotaryEmbedding<num_heads=4, rotary_embedding_dim=4>(Q, c, s, p)",
        SMALL_CACHE,
    ),
    rotary(
        "some_interleaved",
        "Y = RotaryEmbedding<num_heads=4, rotary_embedding_dim=4, interleaved=1>(Q, c, s, p)",
        SMALL_CACHE,
    ),
    rotary("unpacked", f"{OPEN} A = RotaryEmbedding(Qh, c, s, p) {SHUT}", CACHE),
    rotary(
        "unpacked_some",
        f"{OPEN} A = RotaryEmbedding<rotary_embedding_dim=4>(Qh, c, s, p) {SHUT}",
        SMALL_CACHE,
    ),
    rotary(
        "unpacked_interleaved",
        f"{OPEN} A = RotaryEmbedding<interleaved=1, num_heads=4>(Qh, c, s, p) {SHUT}",
        CACHE,
    ),
    rotary(
        "of_every_position",
        "Y = RotaryEmbedding<num_heads=4>(Q, c, s)",
        {"c": draw(BATCH, 4, 3), "s": draw(BATCH, 4, 3)},
    ),
    rotary(
        "computed",
        "F = Cast<to=1>(p) U = Unsqueeze(F, last) A = Mul(U, f) c = Cos(A) s = Sin(A)"
        " Y = RotaryEmbedding<num_heads=4>(Q, c, s)",
        {"f": draw(3), "last": np.array([-1])},
    ),
    rotary(
        "of_queries_and_keys",
        "K = MatMul(X, Wk) V = MatMul(X, Wv) R = RotaryEmbedding<num_heads=4>(Q, c, s, p)"
        " T = RotaryEmbedding<num_heads=4>(K, c, s, p)"
        f" Y = Attention{HEADS}(R, T, V)",
        CACHE,
        weights=FOUR,
    ),
)
PLACED_ROTARY = (
    rotary(
        "positions",
        "F = MatMul(Wt, Q) A = RotaryEmbedding<num_heads=4>(F, c, s, p) Y = MatMul(Wr, A)",
        CACHE,
        weights={"Wq": (12, 24), "Wt": (4, 4), "Wr": (2, 4)},
    ),
    rotary(
        "positions_of_caches",
        "d = MatMul(Wt, c) e = MatMul(Wu, c) Y = RotaryEmbedding<num_heads=4>(Q, d, e)",
        {},
        inputs={**TOKENS, "c": (4, 3)},
        weights={"Wq": (12, 24), "Wt": (4, 4), "Wu": (4, 4)},
    ),
    Case(
        "batches",
        "RotaryEmbedding",
        "T = Transpose<perm=[2,1,0]>(X) Q = MatMul(T, Wq)"
        " A = RotaryEmbedding<num_heads=4>(Q, c, s) B = MatMul(A, Wo) Y = Transpose<perm=[2,1,0]>(B)",
        TOKENS,
        {"Wq": (1, 24), "Wo": (24, 1)},
        {"c": draw(12, 4, 3), "s": draw(12, 4, 3)},
        opset=23,
        batch=1,
        last=True,
    ),
)
CASES = (*ROTARY, *PLACED_ROTARY)
