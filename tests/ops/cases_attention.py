"""Rows for attention as one operator, of the standard and of ONNX Runtime."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

BATCH = 3
"""Of rows with inputs that are fed as they are: what every row is run with."""
RNG = np.random.default_rng(0)
TOKENS = {"X": (4, 12)}
"""4 positions of 12 features."""
CROSS = {"X": (4, 12), "Z": (5, 10)}
"""Keys and values come from 5 other positions, of 10 features."""
PROJECT = "Q = MatMul(X, Wq) K = MatMul(X, Wk) V = MatMul(X, Wv)"
PROJECT_CROSS = "Q = MatMul(X, Wq) K = MatMul(Z, Wk) V = MatMul(Z, Wv)"
FOUR = {"Wq": (12, 24), "Wk": (12, 24), "Wv": (12, 20)}
"""4 heads of 6 features, values of 5."""
EQUAL = {"Wq": (12, 24), "Wk": (12, 24), "Wv": (12, 24)}
FOUR_CROSS = {"Wq": (12, 24), "Wk": (10, 24), "Wv": (10, 20)}
SHARED = {"Wq": (12, 36), "Wk": (12, 12), "Wv": (12, 10)}
"""6 query heads on 2 heads of keys and values."""
UNPACK = (
    "Qu = Reshape(Q, to) Ku = Reshape(K, to) Vu = Reshape(V, to)"
    " Qh = Transpose<perm=[0,2,1,3]>(Qu) Kh = Transpose<perm=[0,2,1,3]>(Ku)"
    " Vh = Transpose<perm=[0,2,1,3]>(Vu)"
)
PACK = "P = Transpose<perm=[0,2,1,3]>(A) Y = Reshape(P, back)"
SIZES = {"to": [0, 0, 4, -1], "back": [0, 0, -1]}
HEADS = "<q_num_heads=4, kv_num_heads=4>"


def draw(*shape: int) -> np.ndarray:
    """Draw float32 numbers."""
    return RNG.standard_normal(shape).astype(np.float32)


def some_rows(mask: np.ndarray) -> np.ndarray:
    """Forbid every key to the second query."""
    mask[..., 1, :] = False
    return mask


def allowed(*shape: int) -> np.ndarray:
    """Draw booleans of which the first of each last axis is true."""
    mask = RNG.random(shape) < 0.6
    mask[..., 0] = True
    return mask


def attention(
    name: str, call: str, weights: dict[str, tuple[int, ...]] = FOUR, **options: object
) -> Case:
    """Make a row of Attention whose inputs are projected from tokens."""
    row = {"inputs": TOKENS, "opset": 23, "last": True, **options}
    project = row.pop("project", PROJECT_CROSS if "Z" in row["inputs"] else PROJECT)
    return Case(name, "Attention", f"{project} {call}", weights=weights, **row)


PACKED = (
    attention("packed", f"Y = Attention{HEADS}(Q, K, V)"),
    attention("opset24", f"Y = Attention{HEADS}(Q, K, V)", opset=24),
    attention("opset25", f"Y = Attention{HEADS}(Q, K, V)", opset=25),
    attention("cross", f"Y = Attention{HEADS}(Q, K, V)", FOUR_CROSS, inputs=CROSS),
    attention("scale", "Y = Attention<q_num_heads=4, kv_num_heads=4, scale=0.25>(Q, K, V)"),
    attention("softcap", "Y = Attention<q_num_heads=4, kv_num_heads=4, softcap=0.5>(Q, K, V)"),
    attention("causal", "Y = Attention<q_num_heads=4, kv_num_heads=4, is_causal=1>(Q, K, V)"),
    attention(
        "precision", "Y = Attention<q_num_heads=4, kv_num_heads=4, softmax_precision=1>(Q, K, V)"
    ),
    attention("one_head", "Y = Attention<q_num_heads=1, kv_num_heads=1>(Q, K, V)"),
    attention("shared_heads", "Y = Attention<q_num_heads=6, kv_num_heads=2>(Q, K, V)", SHARED),
    attention(
        "shared_head",
        "Y = Attention<q_num_heads=4, kv_num_heads=1>(Q, K, V)",
        {"Wq": (12, 24), "Wk": (12, 6), "Wv": (12, 5)},
    ),
    attention("static_batch", f"Y = Attention{HEADS}(Q, K, V)", batch=2),
    Case(
        "queries_are_weights",
        "Attention",
        f"K = MatMul(X, Wk) V = MatMul(X, Wv) Y = Attention{HEADS}(Q, K, V)",
        TOKENS,
        {"Wk": (12, 24), "Wv": (12, 20), "Q": (BATCH, 2, 24)},
        opset=23,
        batch=BATCH,
        last=True,
    ),
)
UNPACKED = (
    attention(
        "unpacked_with_numbers",
        f"{UNPACK} A = Attention{HEADS}(Qh, Kh, Vh) {PACK}",
        constants=SIZES,
    ),
    attention("unpacked", f"{UNPACK} A = Attention(Qh, Kh, Vh) {PACK}", constants=SIZES),
    attention(
        "unpacked_shared",
        "Qu = Reshape(Q, to6) Ku = Reshape(K, to2) Vu = Reshape(V, to2)"
        " Qh = Transpose<perm=[0,2,1,3]>(Qu) Kh = Transpose<perm=[0,2,1,3]>(Ku)"
        f" Vh = Transpose<perm=[0,2,1,3]>(Vu) A = Attention(Qh, Kh, Vh) {PACK}",
        SHARED,
        constants={"to6": [0, 0, 6, 6], "to2": [0, 0, 2, -1], "back": [0, 0, -1]},
    ),
    attention(
        "unpacked_causal",
        f"{UNPACK} A = Attention<is_causal=1, scale=0.3>(Qh, Kh, Vh) {PACK}",
        constants=SIZES,
        opset=24,
    ),
)
MASKED = tuple(
    attention(
        f"mask_{name}",
        f"Y = Attention{HEADS}(Q, K, V, M)",
        FOUR_CROSS,
        inputs=CROSS,
        batch=BATCH,
        **{where: {"M": mask}},
    )
    for name, where, mask in (
        ("queries", "given", draw(4, 5)),
        ("heads", "given", draw(4, 4, 5)),
        ("sample", "given", draw(BATCH, 4, 4, 5)),
        ("any_head", "given", draw(BATCH, 1, 4, 5)),
        ("any_sample", "given", draw(1, 4, 4, 5)),
        ("booleans", "given", allowed(BATCH, 1, 4, 5)),
        ("constant", "constants", draw(1, 4, 4, 5)),
        ("constant_booleans", "constants", allowed(4, 5)),
        ("no_key", "constants", some_rows(allowed(4, 5))),
        (
            "no_key_added",
            "constants",
            np.where(some_rows(allowed(4, 5)), 0, -np.inf).astype(np.float32),
        ),
    )
)
BIASED = (
    attention(
        "bias_of_heads",
        f"B = MatMul(R, Wb) T = Transpose<perm=[0,3,1,2]>(B) Y = Attention{HEADS}(Q, K, V, T)",
        {**FOUR, "Wb": (8, 4)},
        inputs={**TOKENS, "R": (4, 4, 8)},
    ),
    attention(
        "causal_mask",
        "Y = Attention<q_num_heads=4, kv_num_heads=4, is_causal=1>(Q, K, V, M)",
        given={"M": allowed(4, 4)},
    ),
)
CACHES = (
    "Pq = MatMul(C, Wpk) Pr = MatMul(C, Wpv) Ps = Reshape(Pq, to) Pt = Reshape(Pr, to)"
    " Pk = Transpose<perm=[0,2,1,3]>(Ps) Pv = Transpose<perm=[0,2,1,3]>(Pt)"
)
OF_CACHES = {"Wpk": (8, 24), "Wpv": (8, 20)}
WITH_CACHE = {**TOKENS, "C": (2, 8)}
FLAT = "T = Transpose<perm=[0,2,1,3]>({}) Y = Reshape(T, back)"
CACHED = (
    *(
        attention(
            name,
            f"{CACHES} {call}",
            {**FOUR, **OF_CACHES},
            inputs=WITH_CACHE,
            constants=SIZES,
            opset=opset,
        )
        for name, opset, call in (
            ("past", 23, f"Y, A, B = Attention{HEADS}(Q, K, V, , Pk, Pv)"),
            (
                "past_causal",
                24,
                "Y, A, B = Attention<q_num_heads=4, kv_num_heads=4, is_causal=1>(Q, K, V, , Pk, Pv)",
            ),
            (
                "present_keys",
                23,
                f"A, B, C1 = Attention{HEADS}(Q, K, V, , Pk, Pv) {FLAT.format('B')}",
            ),
            (
                "present_values",
                23,
                f"A, B, C1 = Attention{HEADS}(Q, K, V, , Pk, Pv) {FLAT.format('C1')}",
            ),
            ("past_unpacked", 23, f"{UNPACK} A, B, C1 = Attention(Qh, Kh, Vh, , Pk, Pv) {PACK}"),
        )
    ),
    attention(
        "present", f"A, B, Pv = Attention{HEADS}(Q, K, V) {FLAT.format('Pv')}", constants=SIZES
    ),
    attention(
        "past_of_callers",
        f"Y, A, B = Attention{HEADS}(Q, K, V, , past_k, past_v)",
        batch=BATCH,
        given={"past_k": draw(BATCH, 4, 2, 6), "past_v": draw(BATCH, 4, 2, 5)},
        prunes=False,
    ),
    attention(
        "lengths",
        f"Y = Attention{HEADS}(Q, K, V, , , , n)",
        FOUR_CROSS,
        inputs=CROSS,
        batch=BATCH,
        opset=24,
        given={"n": np.array([2, 5, 4])},
    ),
    attention(
        "lengths_causal",
        "Y = Attention<q_num_heads=4, kv_num_heads=4, is_causal=1>(Q, K, V, , , , n)",
        FOUR_CROSS,
        inputs=CROSS,
        batch=BATCH,
        opset=24,
        given={"n": np.array([2, 5, 4])},
    ),
)
SCORES = tuple(
    attention(
        f"scores_{stage}",
        "A, B, C1, S = Attention<q_num_heads=4, kv_num_heads=4, softcap=0.5,"
        f" qk_matmul_output_mode={stage}>(Q, K, V, M) T = Transpose<perm=[0,2,3,1]>(S)"
        " U = Reshape(T, rows) Y = Concat<axis=2>(A, U)",
        constants={"M": draw(4, 4), "rows": [0, 4, -1]},
    )
    for stage in range(4)
)
MIXED = (
    "F = MatMul(Wt, X) G = MatMul(Wu, X) H = MatMul(Wv1, X)"
    " Q = MatMul(F, Wq) K = MatMul(G, Wk) V = MatMul(H, Wv)"
)
MIXERS = {"Wt": (5, 4), "Wu": (5, 4), "Wv1": (5, 4), "Wr": (2, 5)}
"""Weights that make positions, and one that reads them."""
BATCHES = (
    "Xt = Transpose<perm=[2,1,0]>(X) Zt = Transpose<perm=[2,1,0]>(Z)"
    " Q = MatMul(Xt, Wq) K = MatMul(Zt, Wk) V = MatMul(Zt, Wv)"
)
UNDO_BATCHES = "B = MatMul(A, Wo) Y = Transpose<perm=[2,1,0]>(B)"
OF_BATCHES = {"Wq": (1, 24), "Wk": (1, 24), "Wv": (1, 20), "Wo": (20, 1)}
BATCH_INPUTS = {"X": (4, 12), "Z": (4, 12)}
"""Features that stand where samples do, of two tensors."""
PLACED = (
    *(
        attention(
            f"positions_{name}",
            "A = Attention<q_num_heads=4, kv_num_heads=4{more}>(Q, K, V) Y = MatMul(Wr, A)".replace(
                "{more}", more
            ),
            {**FOUR, **MIXERS},
            project=MIXED,
        )
        for name, more in (("plain", ""), ("causal", ", is_causal=1"))
    ),
    attention(
        "batches",
        f"A = Attention{HEADS}(Q, K, V) {UNDO_BATCHES}",
        OF_BATCHES,
        project=BATCHES,
        inputs=BATCH_INPUTS,
        batch=1,
    ),
    attention(
        "bias_of_keys",
        f"B = MatMul(R, Wb) U = Unsqueeze(B, one) Y = Attention{HEADS}(Q, K, V, U)",
        {**FOUR, "Wb": (8, 4)},
        inputs={**TOKENS, "R": (4, 8)},
        constants={"one": [1]},
    ),
)
CASES = (*PACKED, *UNPACKED, *MASKED, *BIASED, *CACHED, *SCORES, *PLACED)
