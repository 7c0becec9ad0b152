"""Rows for GroupQueryAttention and RotaryEmbedding of ONNX Runtime."""

from __future__ import annotations

import numpy as np
from ops.cases import Case
from ops.cases_attention import (
    BATCH,
    BATCH_INPUTS,
    BATCHES,
    PROJECT,
    SIZES,
    TOKENS,
    UNDO_BATCHES,
    draw,
)
from ops.cases_rotary import CACHE, OPEN, PLACES, SHUT, SMALL_CACHE

ORT = "com.microsoft"
SIXTEEN = {"Wq": (12, 96), "Wk": (12, 32), "Wv": (12, 32)}
"""6 query heads of 16 features, on 2 heads of keys and values."""
COSINES, SINES = draw(12, 8), draw(12, 8)


def grouped(
    name: str,
    arguments: str = "",
    attributes: str = "",
    constants: dict[str, np.ndarray] | None = None,
    **options: object,
) -> Case:
    """Make a row of GroupQueryAttention: the first run, on 4 positions."""
    call = f"com.microsoft.GroupQueryAttention<num_heads=6, kv_num_heads=2{attributes}>"
    lengths = {"n": np.array([3] * BATCH, np.int32), "total": np.array(4, np.int32)}
    row = {"weights": SIXTEEN, "inputs": TOKENS, "domain": ORT, "batch": BATCH, **options}
    text = row.pop("text", f"{PROJECT} Y, A, D = {call}(Q, K, V, , , n, total{arguments})")
    text = text.replace("GQA", call)
    return Case(
        name,
        "GroupQueryAttention",
        text,
        constants={**lengths, **(constants or {})},
        last=True,
        **row,
    )


ROTATION = {"c": COSINES, "s": SINES}
STEP = (
    "Pq = MatMul(C, Wpk) Pr = MatMul(C, Wpv) Ps = Reshape(Pq, to) Pt = Reshape(Pr, to)"
    " Pk = Transpose<perm=[0,2,1,3]>(Ps) Pv = Transpose<perm=[0,2,1,3]>(Pt)"
)
NEXT = {
    "inputs": {"X": (1, 12), "C": (5, 8)},
    "weights": {**SIXTEEN, "Wpk": (8, 32), "Wpv": (8, 32)},
}
SECOND = {
    "to": np.array([0, 0, 2, 16]),
    "n": np.array([5] * BATCH, np.int32),
    "total": np.array(6, np.int32),
}
GROUPED = (
    grouped("first"),
    grouped("one_output", text=f"{PROJECT} Y = GQA(Q, K, V, , , n, total)"),
    grouped("any_order", "", ", causal=0"),
    grouped("scale", "", ", scale=0.2"),
    grouped("softcap", "", ", softcap=0.5"),
    grouped("window", "", ", local_window_size=2"),
    grouped("smooth", "", ", smooth_softmax=1"),
    grouped("sink", ", , , , , sink", weights={**SIXTEEN, "sink": (6,)}),
    grouped("scores_bias", ", , , , S", weights={**SIXTEEN, "S": (1, 6, 4, 4)}),
    grouped("rotary", ", c, s", ", do_rotary=1", ROTATION),
    grouped("rotary_interleaved", ", c, s", ", do_rotary=1, rotary_interleaved=1", ROTATION),
    grouped(
        "position_ids",
        ", c, s, p",
        ", do_rotary=1",
        {**ROTATION, "p": np.array([[1, 2, 3, 4]] * 3)},
    ),
    grouped(
        "side_by_side",
        attributes=", do_rotary=1",
        constants=ROTATION,
        text="Q = MatMul(X, W) Y, A, D = GQA(Q, , , , , n, total, c, s)",
        weights={"W": (12, 160)},
    ),
    grouped("lengths", "", "", {"n": np.array([3, 1, 2], np.int32)}),
    grouped(
        "next",
        attributes=", do_rotary=1",
        text=f"{PROJECT} {STEP} Y, A, D = GQA(Q, K, V, Pk, Pv, n, total, c, s)",
        constants={**SECOND, **ROTATION},
        **NEXT,
    ),
    grouped(
        "next_cache",
        text=f"{PROJECT} {STEP} A, D, E = GQA(Q, K, V, Pk, Pv, n, total)"
        " T = Transpose<perm=[0,2,1,3]>(D) Y = Reshape(T, back)",
        constants={**SECOND, "back": np.array([0, 0, -1]), "n": np.array([5, 3, 2], np.int32)},
        **NEXT,
    ),
    grouped(
        "next_of_a_large_cache",
        text=f"{PROJECT} {STEP} Y, D, E = GQA(Q, K, V, Pk, Pv, n, total, , , p)",
        constants={
            **SECOND,
            "p": np.array([[4], [2], [1]]),
            "n": np.array([3, 1, 2], np.int32),
            "total": np.array(4, np.int32),
        },
        **NEXT,
    ),
)
PLACED = (
    grouped(
        "positions",
        text="F = MatMul(Wt, X) Q = MatMul(F, Wq) K = MatMul(F, Wk) V = MatMul(F, Wv)"
        " A, D, E = GQA(Q, K, V, , , n, total) Y = MatMul(Wr, A)",
        weights={**SIXTEEN, "Wt": (4, 4), "Wr": (2, 4)},
    ),
    grouped(
        "positions_of_the_cache",
        text=f"{PROJECT} Cm = MatMul(Wt, C) {STEP.replace('(C,', '(Cm,')}"
        " Y, D, E = GQA(Q, K, V, Pk, Pv, n, total)",
        constants=SECOND,
        inputs=NEXT["inputs"],
        weights={**NEXT["weights"], "Wt": (5, 5)},
    ),
    grouped(
        "rotation_of_weights",
        attributes=", do_rotary=1",
        text=f"{PROJECT} c = Reshape(R, to) s = Neg(c) Y, D, E = GQA(Q, K, V, , , n, total, c, s)",
        inputs={**TOKENS, "R": (4, 8)},
        constants={"to": np.array([12, 8])},
    ),
    grouped(
        "batches",
        text=f"{BATCHES} A, D, E = GQA(Q, K, V, , , n, total) {UNDO_BATCHES}",
        weights={"Wq": (1, 96), "Wk": (1, 32), "Wv": (1, 32), "Wo": (96, 1)},
        inputs=BATCH_INPUTS,
        constants={"n": np.array([3] * 12, np.int32)},
        batch=1,
    ),
)
ROTARY = tuple(
    Case(
        name,
        "RotaryEmbedding",
        f"Q = MatMul(X, Wq) {text}",
        TOKENS,
        {"Wq": (12, 24)},
        {**SIZES, **PLACES, **cache},
        domain=ORT,
        batch=BATCH,
        last=True,
    )
    for name, text, cache in (
        ("packed", "Y = com.microsoft.RotaryEmbedding(Q, p, c, s)", CACHE),
        ("heads", "Y = com.microsoft.RotaryEmbedding<num_heads=4>(Q, p, c, s)", CACHE),
        ("no_heads", "Y = com.microsoft.RotaryEmbedding<num_heads=0>(Q, p, c, s)", CACHE),
        ("interleaved", "Y = com.microsoft.RotaryEmbedding<interleaved=1>(Q, p, c, s)", CACHE),
        (
            "some_features",
            "Y = com.microsoft.RotaryEmbedding<num_heads=4, rotary_embedding_dim=4>(Q, p, c, s)",
            SMALL_CACHE,
        ),
        (
            "first_position",
            "Y = com.microsoft.RotaryEmbedding(Q, start, c, s)",
            {**CACHE, "start": np.array([2])},
        ),
        ("unpacked", f"{OPEN} A = com.microsoft.RotaryEmbedding(Qh, p, c, s) {SHUT}", CACHE),
    )
)
CASES = (*GROUPED, *PLACED, *ROTARY)
