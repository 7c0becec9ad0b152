"""Rows for operators that convert elements, read their bits again or look for infinities."""

from __future__ import annotations

import numpy as np
from ops.cases import Case

_LOGS = "P = Relu(X) L = Log(P) N = Neg(X) Q = Relu(N) K = Log(Q) D = Sub(L, K)"
"""D is infinite everywhere: above zero where X is, and below zero where X is. L is so below only."""
INFINITE = tuple(
    Case(
        f"{name}_{opset}",
        "IsInf",
        f"{_LOGS} M = IsInf{attributes}({tensor}) Y = Cast<to=1>(M)",
        opset=opset,
    )
    for opset in (10, 20)
    for name, attributes, tensor in (
        ("some", "", "L"),
        ("positive", "<detect_negative=0>", "D"),
        ("negative", "<detect_positive=0>", "D"),
        ("neither", "<detect_negative=0, detect_positive=0>", "D"),
    )
)
LIKE = tuple(
    Case(
        f"another_shape_{opset}",
        "CastLike",
        "K = Mul(X, ten) I = Cast<to=6>(K) Y = CastLike(I, like)",
        constants={"ten": 10.0, "like": [0.5, 1.5, 2.5]},
        opset=opset,
    )
    for opset in (15, 19, 25)
)
BITS = (
    Case(
        "there_and_back",
        "BitCast",
        "I = BitCast<to=6>(X) J = BitwiseAnd(I, mask) Y = BitCast<to=1>(J)",
        constants={"mask": np.full((1, 1, 1, 1), -16, np.int32)},
        opset=26,
    ),
)
CASES = (*INFINITE, *LIKE, *BITS)
