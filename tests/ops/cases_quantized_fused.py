"""Rows for QAttention, DynamicQuantizeLSTM and MatMulNBits."""

from __future__ import annotations

import numpy as np
from ops.cases import Case
from ops.cases_quantize import RUNTIME, drawn, scales
from ops.cases_quantized_linear import IN, PARAMETERS, bytes_, signed

N_HEADS, WIDTH = 4, 2
COLUMNS = 3 * N_HEADS * WIDTH


def attention(name: str, operands: str, constants: dict | None = None, **options: object) -> Case:
    """Make a row of QAttention with four heads of two on six features."""
    outputs, then = options.pop("outputs", "Y"), options.pop("then", "")
    call = f"{outputs} = {RUNTIME}.QAttention<num_heads={N_HEADS}>({operands})"
    return Case(
        name,
        "QAttention",
        f"{options.pop('quantised', IN)} {call} {then}",
        options.pop("inputs", {"X": (5, 6)}),
        {"b": (COLUMNS,)},
        {**PARAMETERS, "W": signed(6, COLUMNS), **(constants or {})},
        domain=RUNTIME,
        last=True,
        **options,
    )


OF_COLUMNS = {"S": scales(COLUMNS), "Z": np.zeros(COLUMNS, np.int8)}
ATTENTION = (
    attention("plain", "Q, W, b, xs, ws, , xz, wz"),
    attention("columns", "Q, W, b, xs, S, , xz, Z", OF_COLUMNS),
    attention("no_zeros", "Q, W, b, xs, ws"),
    attention("lengths", "Q, W, b, xs, ws, m, xz, wz", {"m": np.array([3, 5], np.int32)}, batch=2),
    attention(
        "masked", "Q, W, b, xs, ws, m, xz", {"m": np.eye(5, dtype=np.int32)[None][[0, 0]]}, batch=2
    ),
    attention(
        "zero",
        "Q, W, b, xs, S, , xz, Z",
        {"S": scales(COLUMNS), "Z": drawn((COLUMNS,))},
        prunes=False,
    ),
    attention("present", "Q, W, b, xs, ws, , xz, wz", outputs="Y, present"),
    attention(
        "past",
        "Q, W, b, xs, ws, , xz, wz, past",
        {"past": np.random.default_rng(0).standard_normal((2, 2, 4, 3, 2)).astype(np.float32)},
        outputs="Y, present",
        batch=2,
    ),
    attention(
        "made_positions",
        "Q, W, b, xs, ws, , xz, wz",
        {"one": [1]},
        quantised=f"T = Transpose<perm=[0,2,1]>(X) {IN.replace('X', 'T')}",
        outputs="A",
        then="Y = ReduceSum<keepdims=0>(A, one)",
        inputs={"X": (6, 5)},
    ),
    attention(
        "dynamic",
        "Q, W, b, s, ws, , z, wz",
        quantised="Q, s, z = DynamicQuantizeLinear(X)",
    ),
)
LSTM = tuple(
    Case(
        name,
        "DynamicQuantizeLSTM",
        f"T = Transpose<perm=[1,0,2]>(X) Z, h, c = {RUNTIME}.DynamicQuantizeLSTM<hidden_size=4>"
        "(T, W, R, , , , , , s, z, s, z) S = Squeeze(Z, one) Y = Transpose<perm=[1,0,2]>(S)",
        {"X": (5, 6)},
        constants={
            "W": signed(1, 6, 16),
            "R": signed(1, 4, 16),
            "s": scales(*shape),
            "z": np.zeros(shape, np.int8),
            "one": [1],
        },
        domain=RUNTIME,
        last=True,
        prunes=False,
        has_twin=False,
    )
    for name, shape in (("tensor", (1,)), ("channels", (1, 16)))
)


def packed(
    name: str,
    attributes: str,
    shape: tuple[int, int, int],
    operands: str = "X, W, S",
    **options: object,
) -> Case:
    """Make a row of MatMulNBits with weights of [n, blocks, bytes of a block]."""
    n, blocks, _ = shape
    constants = {"W": bytes_(*shape), "S": scales(n, blocks), **options.pop("constants", {})}
    return Case(
        name,
        "MatMulNBits",
        f"Y = {RUNTIME}.MatMulNBits<{attributes}>({operands})",
        {"X": (5, options.pop("k", 64))},
        constants=constants,
        domain=RUNTIME,
        last=True,
        **options,
    )


PACKED = (
    packed("4bits", "K=64, N=6, bits=4, block_size=16", (6, 4, 8)),
    packed("default_bits", "K=64, N=6, block_size=32", (6, 2, 16)),
    packed("8bits", "K=64, N=6, bits=8, block_size=16", (6, 4, 16)),
    packed("2bits", "K=64, N=6, bits=2, block_size=16", (6, 4, 4)),
    packed(
        "zeros_and_bias",
        "K=64, N=6, bits=4, block_size=16",
        (6, 4, 8),
        "X, W, S, Z, , b",
        constants={"Z": bytes_(6, 2)},
        weights={"b": (6,)},
    ),
    packed(
        "zeros_of_8bits",
        "K=64, N=6, bits=8, block_size=16",
        (6, 4, 16),
        "X, W, S, Z",
        constants={"Z": bytes_(6, 4)},
    ),
    packed(
        "zeros_in_floats",
        "K=64, N=6, bits=4, block_size=16",
        (6, 4, 8),
        "X, W, S, Z",
        constants={"Z": (drawn((6, 4), np.uint8) / 16).astype(np.float32)},
    ),
    packed(
        "flat",
        "K=64, N=6, bits=4, block_size=16",
        (6, 4, 8),
        "X, W, S, Z",
        constants={"S": scales(24), "Z": bytes_(12)},
    ),
    packed(
        "flat_without_zeros",
        "K=64, N=6, bits=4, block_size=16",
        (6, 4, 8),
        constants={"S": scales(24)},
    ),
    packed("block_not_full", "K=56, N=6, bits=4, block_size=16", (6, 4, 8), k=56, prunes=False),
    packed(
        "ordered",
        "K=64, N=6, bits=4, block_size=16",
        (6, 4, 8),
        "X, W, S, , g",
        constants={"g": np.repeat(np.arange(4), 16).astype(np.int32)},
        prunes=False,
        has_twin=False,
    ),
)
CASES = (*ATTENTION, *LSTM, *PACKED)
