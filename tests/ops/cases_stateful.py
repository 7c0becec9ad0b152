"""Rows for operators that hand on a state."""

from __future__ import annotations

import numpy as np
from ops.cases import Case
from ops.cases_attention import BATCH, BATCH_INPUTS, BATCHES, PROJECT, TOKENS, UNDO_BATCHES

ORT = "com.microsoft"
LINE = {"X": (4, 9)}
STATE = {"X": (4, 9), "Z": (4, 2)}


def scatter(name: str, text: str, inputs: dict[str, tuple[int, ...]], **options: object) -> Case:
    """Make a row of TensorScatter."""
    return Case(name, "TensorScatter", text, inputs, opset=24, **options)


SCATTER = (
    scatter("maps", "Y = TensorScatter(X, Z)", {"X": (4, 6, 5), "Z": (4, 2, 5)}),
    scatter("axis", "Y = TensorScatter<axis=2>(X, Z)", {"X": (4, 6, 5), "Z": (4, 3, 5)}),
    scatter(
        "starts",
        "Y = TensorScatter(X, Z, n)",
        {"X": (6, 8), "Z": (2, 8)},
        given={"n": np.array([0, 4, 2])},
        batch=BATCH,
        last=True,
    ),
    scatter(
        "circular",
        'Y = TensorScatter<mode="circular">(X, Z, n)',
        {"X": (6, 8), "Z": (3, 8)},
        given={"n": np.array([5, 1, 4])},
        batch=BATCH,
        last=True,
    ),
    scatter(
        "channels", "Y = TensorScatter<axis=1>(X, Z)", {"X": (6, 4), "Z": (2, 4)}, prunes=False
    ),
)


def conv(name: str, attributes: str, operands: str = "X, W", **options: object) -> Case:
    """Make a row of CausalConvWithState, with filters of 3 taps."""
    weights = {"W": (4, 1, 3), "B": (4,)} | dict(options.pop("weights", {}))
    row = {"text": "Y, S = CCS", "inputs": LINE, **options}
    call = f"com.microsoft.CausalConvWithState{attributes}({operands})"
    text = row.pop("text").replace("CCS", call)
    return Case(name, "CausalConvWithState", text, weights=weights, domain=ORT, **row)


CONV = (
    conv("plain", ""),
    conv("bias", "", "X, W, B"),
    conv("silu", '<activation="silu">', "X, W, B"),
    conv("swish", '<activation="swish">'),
    conv("dilation", "<dilation=2>", "X, W, B"),
    conv("past", "", "X, W, B, Z", inputs=STATE),
    conv("past_alone", '<activation="silu">', "X, W, , Z", inputs=STATE),
    conv("state", "", "X, W, B, Z", inputs=STATE, text="A, Y = CCS"),
    conv("short", "", "X, W, B, Z", inputs={"X": (4, 1), "Z": (4, 2)}, text="A, Y = CCS"),
    conv(
        "channels_last",
        "<channels_last=1>",
        "X, W",
        inputs={"X": (9, 4)},
        last=True,
        prunes=False,
        has_twin=False,
    ),
)
SHARED = {"Wq": (12, 24), "Wk": (12, 12), "Wv": (12, 10)}
"""4 query heads on 2 heads of keys and values; 6 features, values of 5."""


def linear(
    name: str,
    rule: str,
    operands: str = "",
    weights: dict[str, tuple[int, ...]] | None = None,
    **options: object,
) -> Case:
    """Make a row of LinearAttention."""
    row = {"inputs": TOKENS, "project": PROJECT, "before": "", "after": "", **options}
    attributes = f'q_num_heads=4, kv_num_heads=2, update_rule="{rule}"{row.pop("attributes", "")}'
    call = f"com.microsoft.LinearAttention<{attributes}>(Q, K, V{operands})"
    parts = (row.pop("project"), row.pop("before"), row.pop("names", "Y, S"), row.pop("after"))
    text = "{} {} {} = {} {}".format(*parts[:3], call, parts[3])
    weights = {**SHARED, **(weights or {})}
    return Case(name, "LinearAttention", text, weights=weights, domain=ORT, last=True, **row)


DECAY = "D1 = MatMul(X, Wd) D2 = Sigmoid(D1) D = Neg(D2)"
RATE = "R1 = MatMul(X, Wr) R = Sigmoid(R1)"
PAST = "P1 = MatMul(C, Wp) P = Reshape(P1, to)"
LINEAR = (
    linear("linear", "linear"),
    linear("scale", "linear", attributes=", scale=0.3"),
    linear("scale_0", "linear", attributes=", scale=0.0"),
    linear("decay_of_heads", "gated", ", , D", {"Wd": (12, 2)}, before=DECAY),
    linear("decay_of_features", "gated", ", , D", {"Wd": (12, 12)}, before=DECAY),
    linear("delta", "delta", ", , , R", {"Wr": (12, 2)}, before=RATE),
    linear("one_rate", "delta", ", , , R", {"Wr": (12, 1)}, before=RATE),
    linear(
        "both", "gated_delta", ", , D, R", {"Wd": (12, 12), "Wr": (12, 2)}, before=f"{DECAY} {RATE}"
    ),
    linear(
        "past",
        "gated_delta",
        ", P, D, R",
        {"Wd": (12, 2), "Wr": (12, 2), "Wp": (8, 60)},
        before=f"{DECAY} {RATE} {PAST}",
        inputs={**TOKENS, "C": (1, 8)},
        constants={"to": [-1, 2, 6, 5]},
    ),
    linear(
        "state",
        "linear",
        names="A, S",
        after="Y = Reshape(S, back)",
        constants={"back": [-1, 1, 60]},
    ),
)
PLACED = (
    scatter(
        "batches",
        "A = Transpose<perm=[2,1,0]>(X) B = Transpose<perm=[2,1,0]>(Z) T = TensorScatter(A, B, n)"
        " Y = Transpose<perm=[2,1,0]>(T)",
        {"X": (6, 8), "Z": (2, 8)},
        constants={"n": np.arange(8) % 4},
        batch=1,
        last=True,
    ),
    conv(
        "positions",
        "",
        "F, W, B",
        text="F = MatMul(X, Wt) A, S = CCS Y = MatMul(A, Wr)",
        weights={"Wt": (9, 7), "Wr": (7, 2)},
    ),
    conv(
        "positions_of_the_state",
        "",
        "X, W, B, F",
        text="F = MatMul(Z, Wt) Y, S = CCS",
        inputs={"X": (4, 9), "Z": (4, 5)},
        weights={"Wt": (5, 2)},
    ),
    conv(
        "batches",
        "",
        "A, W, , C",
        text="A = Transpose<perm=[1,0,2]>(X) C = Transpose<perm=[1,0,2]>(Z) T, S = CCS"
        " Y = Transpose<perm=[1,0,2]>(T)",
        inputs=STATE,
        weights={"W": (1, 1, 3)},
        batch=1,
    ),
    conv(
        "taps",
        "",
        "X, F",
        text="M = MatMul(R, Wk) T = Reshape(M, to) F = Expand(T, grow) Y, S = CCS",
        inputs={**LINE, "R": (8,)},
        weights={"Wk": (8, 3)},
        constants={"to": [1, 1, 3], "grow": [4, 1, 1]},
        batch=1,
    ),
    linear(
        "positions",
        "linear",
        project="F = MatMul(Wt, X) Q = MatMul(F, Wq) K = MatMul(F, Wk) V = MatMul(F, Wv)",
        weights={"Wt": (5, 4), "Wr": (2, 5)},
        names="A, S",
        after="Y = MatMul(Wr, A)",
    ),
    linear(
        "batches",
        "linear",
        project=BATCHES,
        weights={"Wq": (1, 24), "Wk": (1, 12), "Wv": (1, 10), "Wo": (20, 1)},
        inputs=BATCH_INPUTS,
        names="A, S",
        after=UNDO_BATCHES,
        batch=1,
    ),
)
CASES = (*SCATTER, *CONV, *LINEAR, *PLACED)
