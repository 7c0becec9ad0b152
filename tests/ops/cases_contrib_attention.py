"""Rows for Attention and MultiHeadAttention as ONNX Runtime's optimizer writes them."""

from __future__ import annotations

import numpy as np
from ops.cases import Case
from ops.cases_attention import (
    BATCH,
    BATCH_INPUTS,
    BATCHES,
    CACHES,
    CROSS,
    EQUAL,
    FLAT,
    FOUR,
    FOUR_CROSS,
    MIXED,
    MIXERS,
    OF_BATCHES,
    PROJECT,
    PROJECT_CROSS,
    SIZES,
    TOKENS,
    UNDO_BATCHES,
    WITH_CACHE,
    allowed,
)

ORT = "com.microsoft"


def called(op_type: str, text: str) -> str:
    """Put ONNX Runtime's operator, with 4 heads, where the text of a row says CALL."""
    call = f"com.microsoft.{op_type}<num_heads=4"
    return text.replace("CALL<", f"{call}, ").replace("CALL", f"{call}>")


def fused(name: str, text: str, weights: dict[str, tuple[int, ...]], **options: object) -> Case:
    """Make a row of ONNX Runtime's Attention, which holds the projections."""
    row = {"inputs": TOKENS, "domain": ORT, "last": True, **options}
    return Case(name, "Attention", called("Attention", text), weights=weights, **row)


def many(
    name: str, text: str, weights: dict[str, tuple[int, ...]] = FOUR, **options: object
) -> Case:
    """Make a row of MultiHeadAttention."""
    row = {"inputs": TOKENS, "domain": ORT, "last": True, **options}
    project = row.pop("project", PROJECT_CROSS if "Z" in row["inputs"] else PROJECT)
    text = f"{project} {called('MultiHeadAttention', text)}"
    return Case(name, "MultiHeadAttention", text, weights=weights, **row)


FUSED_WEIGHTS = {"W": (12, 72), "B": (72,)}
"""4 heads of 6 features, three times."""
WIDE_WEIGHTS = {"W": (12, 68), "B": (68,)}
"""4 heads of 6 features, values of 5."""
PAST = "Pq = MatMul(C, Wp) Pr = Reshape(Pq, to) Ps = Transpose<perm=[2,0,3,1,4]>(Pr)"
INT_MASKS = (
    ("keys", np.array([[1, 1, 1, 1], [1, 1, 0, 1], [0, 1, 0, 0]], np.int32)),
    ("queries", allowed(BATCH, 4, 4).astype(np.int32)),
    ("lengths", np.array([4, 2, 3], np.int32)),
    ("ends_and_starts", np.array([4, 3, 3, 0, 1, 2], np.int32)),
    ("cumulated", np.array([4, 2, 3, 0, 4, 6, 9, 0, 4, 6, 9], np.int32)),
)
FUSED = (
    fused("plain", "Y = CALL(X, W, B)", FUSED_WEIGHTS),
    fused("scale", "Y = CALL<scale=0.3>(X, W, B)", FUSED_WEIGHTS),
    fused("scale_0", "Y = CALL<scale=0.0>(X, W, B)", FUSED_WEIGHTS),
    fused("causal", "Y = CALL<unidirectional=1>(X, W, B)", FUSED_WEIGHTS),
    fused("wide", "Y = CALL<qkv_hidden_sizes=[24, 24, 20]>(X, W, B)", WIDE_WEIGHTS),
    *(
        fused(
            f"mask_{name}",
            "Y = CALL<mask_filter_value=-2.0>(X, W, B, M)",
            FUSED_WEIGHTS,
            given={"M": mask},
            batch=BATCH,
        )
        for name, mask in INT_MASKS
    ),
    fused(
        "mask_causal",
        "Y = CALL<unidirectional=1>(X, W, B, M)",
        FUSED_WEIGHTS,
        given={"M": INT_MASKS[0][1]},
        batch=BATCH,
    ),
    fused("scores_bias", "Y = CALL(X, W, B, , , S)", {**FUSED_WEIGHTS, "S": (1, 4, 4, 4)}),
    fused(
        "past",
        f"{PAST} Y, P = CALL(X, W, B, , Ps)",
        {**FUSED_WEIGHTS, "Wp": (8, 48)},
        inputs=WITH_CACHE,
        constants={"to": [0, 0, 2, 4, -1]},
    ),
    fused(
        "past_causal",
        f"{PAST} Y, P = CALL<unidirectional=1>(X, W, B, , Ps)",
        {**FUSED_WEIGHTS, "Wp": (8, 48)},
        inputs=WITH_CACHE,
        constants={"to": [0, 0, 2, 4, -1]},
    ),
    fused(
        "present",
        "A, P = CALL(X, W, B) T = Transpose<perm=[1,3,0,2,4]>(P) Y = Reshape(T, back)",
        FUSED_WEIGHTS,
        constants={"back": [0, 0, -1]},
    ),
    fused("computed_weights", "T = Transpose(W) Y = CALL(X, T, B)", {"W": (72, 12), "B": (72,)}),
)
MANY = (
    many("plain", "Y = CALL(Q, K, V)"),
    many("cross", "Y = CALL(Q, K, V)", FOUR_CROSS, inputs=CROSS),
    many("scale", "Y = CALL<scale=0.3>(Q, K, V)"),
    many("scale_0", "Y = CALL<scale=0.0>(Q, K, V)"),
    many("bias", "Y = CALL(Q, K, V, B)", {**FOUR, "B": (68,)}),
    many("causal", "Y = CALL<unidirectional=1>(Q, K, V)"),
    *(
        many(
            f"mask_{name}",
            "Y = CALL<mask_filter_value=-2.0>(Q, K, V, , M)",
            given={"M": mask},
            batch=BATCH,
        )
        for name, mask in INT_MASKS
        if name != "ends_and_starts"
    ),
    many(
        "mask_causal",
        "Y = CALL<unidirectional=1>(Q, K, V, , M)",
        given={"M": INT_MASKS[0][1]},
        batch=BATCH,
    ),
    many("scores_bias", "Y = CALL(Q, K, V, , , S)", {**FOUR, "S": (1, 4, 4, 4)}),
    many(
        "scores_bias_and_mask",
        "Y = CALL(Q, K, V, , M, S)",
        {**FOUR, "S": (1, 1, 4, 4)},
        given={"M": INT_MASKS[0][1]},
        batch=BATCH,
    ),
    many(
        "past",
        f"{CACHES} Y, A, D = CALL(Q, K, V, , , , Pk, Pv)",
        {**EQUAL, "Wpk": (8, 24), "Wpv": (8, 24)},
        inputs=WITH_CACHE,
        constants=SIZES,
    ),
    many(
        "past_causal",
        f"{CACHES} Y, A, D = CALL<unidirectional=1>(Q, K, V, B, , , Pk, Pv)",
        {**EQUAL, "Wpk": (8, 24), "Wpv": (8, 24), "B": (72,)},
        inputs=WITH_CACHE,
        constants=SIZES,
    ),
    many(
        "unpacked_keys",
        "Ku = Reshape(K, to) Vu = Reshape(V, to) Kh = Transpose<perm=[0,2,1,3]>(Ku)"
        " Vh = Transpose<perm=[0,2,1,3]>(Vu) Y = CALL(Q, Kh, Vh, B)",
        {"Wq": (12, 24), "Wk": (10, 24), "Wv": (10, 24), "B": (72,)},
        inputs=CROSS,
        constants=SIZES,
    ),
    many("present", f"A, D, Pv = CALL(Q, K, V) {FLAT.format('Pv')}", constants=SIZES),
    many("present_keys", f"A, D, Pv = CALL(Q, K, V) {FLAT.format('D')}", constants=SIZES),
)
WEIGHED = "G = MatMul(R, Wm) L = Greater(G, zero) M = Cast<to=6>(L)"
"""A mask of keys that weights make."""
PLACED = (
    *(
        many(
            f"positions_{name}",
            f"A = CALL{more}(Q, K, V) Y = MatMul(Wr, A)",
            {**FOUR, **MIXERS},
            project=MIXED,
        )
        for name, more in (("plain", ""), ("causal", "<unidirectional=1>"))
    ),
    many(
        "batches",
        f"A = CALL(Q, K, V) {UNDO_BATCHES}",
        OF_BATCHES,
        project=BATCHES,
        inputs=BATCH_INPUTS,
        batch=1,
    ),
    many(
        "masked_batches",
        f"A = CALL(Q, K, V, , M) {UNDO_BATCHES}",
        OF_BATCHES,
        project=BATCHES,
        inputs=BATCH_INPUTS,
        constants={"M": allowed(12, 4).astype(np.int32)},
        batch=1,
    ),
    many(
        "mask_of_weights",
        f"{WEIGHED} Y = CALL(Q, K, V, , M)",
        {**FOUR, "Wm": (8, 4)},
        inputs={**TOKENS, "R": (8,)},
        constants={"zero": 0.0},
    ),
    fused(
        "positions",
        "F = MatMul(Wt, X) A = CALL(F, W, B) Y = MatMul(Wr, A)",
        {**FUSED_WEIGHTS, "Wt": (5, 4), "Wr": (2, 5)},
    ),
    fused(
        "batches",
        "Xt = Transpose<perm=[2,1,0]>(X) Ct = Transpose<perm=[2,1,0]>(C) Pq = MatMul(Ct, Wp)"
        " Pr = Reshape(Pq, to) Ps = Transpose<perm=[2,0,3,1,4]>(Pr)"
        f" A, D = CALL(Xt, W, b, , Ps) {UNDO_BATCHES}",
        {"W": (1, 72), "b": (72,), "Wp": (1, 48), "Wo": (24, 1)},
        inputs={"X": (4, 12), "C": (2, 12)},
        constants={"to": [0, 0, 2, 4, -1]},
        batch=1,
    ),
)
CASES = (*FUSED, *MANY, *PLACED)
