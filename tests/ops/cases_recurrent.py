"""Rows for LSTM, GRU and RNN.

ONNX Runtime has neither opsets before 7 nor `layout=1`, and cannot do without `hidden_size`:
those forms are in `test_recurrent`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ops.cases import Case

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shape = tuple[int, ...]

STEPS, FEATURES, HIDDEN, BATCH = 5, 4, 6, 3
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
REVERSE, BOTH = 'direction="reverse"', 'direction="bidirectional"'
TOKENS = {"X": (STEPS, FEATURES)}
LENGTHS = np.array([5, 2, 4], np.int32)
WITH_ZERO = np.array([0, 5, 3], np.int32)
STEPS_FIRST = "S = Transpose<perm=[1,0,2]>(X)"
WITH_BATCH = f"{STEPS_FIRST} F = Shape(S) N = Gather(F, one)"
SIZES = {"one": [1], "width": [HIDDEN]}
PEEPHOLES = "W, R, B, , , , P"


def shapes_of(op_type: str, directions: int) -> dict[str, Shape]:
    """List the shapes of all weights of a node, and of initial states for a batch of `BATCH`."""
    width, state = GATES[op_type] * HIDDEN, (directions, BATCH, HIDDEN)
    return {
        "W": (directions, width, FEATURES),
        "R": (directions, width, HIDDEN),
        "B": (directions, 2 * width),
        "H0": state,
        "C0": state,
        "P": (directions, 3 * HIDDEN),
    }


def recurrent(
    op_type: str,
    name: str,
    attributes: str = "",
    operands: str = "W, R, B",
    *,
    outputs: str = "Y",
    before: str = STEPS_FIRST,
    after: str = "",
    directions: int = 1,
    weights: Mapping[str, Shape] | None = None,
    inputs: Mapping[str, Shape] | None = None,
    uses: str = "",
    **options: object,
) -> Case:
    """Make a row: `before` turns X into S, the node makes `outputs` of it, `after` Y of those.

    Weights have the names that `shapes_of` gives; those that only `before` names are in `uses`.
    """
    known = {**shapes_of(op_type, directions), **(weights or {})}
    named = {word.strip() for word in f"{operands}, {uses}".split(",")}
    used = {key: shape for key, shape in known.items() if key in named or key in (weights or {})}
    listed = f"hidden_size={HIDDEN}{attributes and ', '}{attributes}"
    text = f"{before} {outputs} = {op_type}<{listed}>(S, {operands}) {after}"
    return Case(name, op_type, text, inputs or TOKENS, used, **{"last": True, **options})


def each(name: str, *arguments: str, **options: object) -> list[Case]:
    """Make a row for each of the three operators."""
    return [recurrent(op_type, name, *arguments, **options) for op_type in GATES]


FORMS = (
    *each("plain"),
    *each("opset7", opset=7),
    *each("opset14", opset=14),
    *each("opset22", opset=22),
    *each("no_bias", "", "W, R"),
    *each("reverse", REVERSE),
    *each("both_directions", BOTH, directions=2),
    *each("clip", "clip=0.1"),
    *each("clip_of_both", f"clip=0.1, {BOTH}", directions=2),
    *each("dynamic_steps", before="S = Identity(X)"),
    *each("one_step", inputs={"X": (1, FEATURES)}),
)
LENGTHS_OF_SEQUENCES = (
    *each("lengths", "", "W, R, B, L", given={"L": LENGTHS}, batch=BATCH),
    *each("lengths_reverse", REVERSE, "W, R, , L, H0", given={"L": LENGTHS}, batch=BATCH),
    *each(
        "lengths_of_both",
        BOTH,
        "W, R, B, L, H0",
        directions=2,
        constants={"L": LENGTHS},
        batch=BATCH,
    ),
    *each(
        "length_zero",
        "",
        "W, R, B, L, H0",
        outputs="A, H",
        after="Y = Add(A, H)",
        constants={"L": WITH_ZERO},
        batch=BATCH,
    ),
)
INITIAL_STATES = (
    *each("initial", "", "W, R, B, , H0", batch=BATCH),
    *each("initial_of_both", BOTH, "W, R, , , H0", directions=2, batch=BATCH),
    *each(
        "initial_by_weights",
        "",
        "W, R, B, , I",
        before=f"{STEPS_FIRST} I = Unsqueeze(H, zero)",
        inputs={**TOKENS, "H": (HIDDEN,)},
        constants={"zero": [0]},
    ),
    *each(
        "initial_of_a_shape",
        "",
        "W, R, B, , I",
        before=f"{WITH_BATCH} T = Concat<axis=0>(one, N, width) I = ConstantOfShape(T)",
        constants=SIZES,
    ),
    *each(
        "initial_expanded",
        "",
        "W, R, B, , I",
        before=f"{WITH_BATCH} T = Concat<axis=0>(one, N, one) I = Expand(H1, T)",
        weights={"H1": (1, 1, HIDDEN)},
        constants={"one": [1]},
    ),
    *each(
        "initial_expanded_in_full",
        "",
        "W, R, B, , I",
        before=f"{WITH_BATCH} T = Concat<axis=0>(one, N, width) I = Expand(Z, T)",
        constants={**SIZES, "Z": np.full((1, 1, 1), 0.5, np.float32)},
    ),
)
OUTPUTS = (
    *each("last_state", outputs=", H", after="Y = Squeeze(H, zero)", constants={"zero": [0]}),
    *each("two_outputs", BOTH, outputs="A, H", after="Y = Add(A, H)", directions=2),
    *each(
        "flattened_states",
        BOTH,
        outputs=", H",
        after="T = Transpose<perm=[1,0,2]>(H) Y = Flatten(T)",
        directions=2,
    ),
    *each(
        "added_directions",
        BOTH,
        outputs="A",
        after="Y = ReduceSum<keepdims=0>(A, one)",
        directions=2,
        constants={"one": [1]},
    ),
    *each(
        "stacked",
        BOTH,
        outputs="A",
        after="T = Transpose<perm=[0,2,1,3]>(A) F = Reshape(T, flat)"
        f" Y = RNN<hidden_size={HIDDEN}>(F, W2, R2)",
        directions=2,
        weights={"W2": (1, HIDDEN, 2 * HIDDEN), "R2": (1, HIDDEN, HIDDEN)},
        constants={"flat": [0, 0, -1]},
    ),
    *each(
        "residual",
        outputs="A",
        after="F = Squeeze(A, one) E = MatMul(S, V) Y = Add(E, F)",
        weights={"V": (FEATURES, HIDDEN)},
        constants={"one": [1]},
    ),
)
AXES = (
    *each(
        "features_as_steps",
        outputs=", H",
        after="Y = Squeeze(H, zero)",
        constants={"zero": [0]},
        last=False,
    ),
    *(
        recurrent(
            op_type,
            "features_as_batch",
            "",
            "W, R, B, L",
            before="S = Transpose<perm=[2,1,0]>(X)",
            outputs="A",
            after="Y = ReduceSum<keepdims=0>(A, two)",
            weights={"W": (1, gates * HIDDEN, BATCH)},
            inputs={"X": (4, STEPS)},
            constants={"two": [2], "L": np.array([5, 2, 0, 3], np.int32)},
            batch=BATCH,
            last=False,
        )
        for op_type, gates in GATES.items()
    ),
)
WEIGHTS = (
    recurrent(
        "LSTM",
        "transposed_weights",
        "",
        "V, Q, D, , , , P",
        before=f"{STEPS_FIRST} V = Transpose<perm=[0,2,1]>(U) Q = Transpose<perm=[0,2,1]>(T)"
        " D = Concat<axis=1>(B1, B2)",
        weights={"U": (1, FEATURES, 24), "T": (1, HIDDEN, 24), "B1": (1, 24), "B2": (1, 24)},
    ),
    recurrent(
        "GRU",
        "unsqueezed_weights",
        "",
        "V, Q, D",
        before=f"{STEPS_FIRST} V = Unsqueeze(U, zero) Q = Unsqueeze(T, zero) D = Unsqueeze(E, zero)",
        weights={"U": (18, FEATURES), "T": (18, HIDDEN), "E": (36,)},
        constants={"zero": [0]},
    ),
    recurrent(
        "RNN",
        "one_weight_for_both",
        BOTH,
        "V, Q",
        before=f"{STEPS_FIRST} V = Concat<axis=0>(U, U) Q = Concat<axis=0>(T, T)",
        weights={"U": (1, HIDDEN, FEATURES), "T": (1, HIDDEN, HIDDEN)},
        directions=2,
    ),
    *each(
        "weights_of_this_run",
        "",
        "V, Q, B",
        before=f"{STEPS_FIRST} G = ReduceSum(X) V = Mul(W, G) Q = Mul(G, R)",
        uses="W, R",
        batch=BATCH,
    ),
)
LSTM = (
    recurrent("LSTM", "peepholes", "", PEEPHOLES),
    recurrent("LSTM", "peepholes_without_bias", "", "W, R, , , , , P"),
    recurrent("LSTM", "peepholes_of_both", BOTH, PEEPHOLES, directions=2),
    recurrent("LSTM", "peepholes_clip", "clip=0.1", PEEPHOLES),
    recurrent("LSTM", "input_forget", "input_forget=1", PEEPHOLES),
    recurrent("LSTM", "input_forget_off", "input_forget=0"),
    recurrent("LSTM", "initial_cell", "", "W, R, B, , H0, C0, P", batch=BATCH),
    recurrent("LSTM", "initial_cell_alone", REVERSE, "W, R, B, , , C0", batch=BATCH),
    recurrent(
        "LSTM",
        "everything",
        f"clip=0.5, input_forget=1, {BOTH}",
        "W, R, B, L, H0, C0, P",
        outputs="A, H, C",
        after="D = Add(H, C) Y = Add(A, D)",
        directions=2,
        constants={"L": WITH_ZERO},
        batch=BATCH,
    ),
    recurrent("LSTM", "all_outputs", outputs="A, H, C", after="D = Add(H, C) Y = Add(A, D)"),
    recurrent("LSTM", "last_cell", outputs=", , Y"),
    recurrent("LSTM", "last_hidden_and_cell", outputs=", H, C", after="Y = Concat<axis=2>(H, C)"),
    recurrent(
        "LSTM",
        "activations",
        'activations=["HardSigmoid","Elu","Softsign"], activation_alpha=[0.3], '
        "activation_beta=[0.6]",
        PEEPHOLES,
    ),
    recurrent(
        "LSTM",
        "activations_of_both",
        'activations=["HardSigmoid","Tanh","LeakyRelu","Sigmoid","ScaledTanh","Affine"], '
        f"activation_alpha=[0.3,0.2,0.9,0.5], activation_beta=[0.6,1.1,0.1], {BOTH}",
        directions=2,
    ),
    recurrent(
        "LSTM",
        "shared_initial_states",
        "",
        "W, R, B, , I, I",
        before=f"{WITH_BATCH} T = Concat<axis=0>(one, N, width) I = ConstantOfShape(T)",
        constants=SIZES,
    ),
)
GRU = (
    recurrent("GRU", "reset_after", "linear_before_reset=1"),
    recurrent("GRU", "reset_after_without_bias", "linear_before_reset=1", "W, R"),
    recurrent("GRU", "reset_after_of_both", f"linear_before_reset=1, {BOTH}", directions=2),
    recurrent(
        "GRU", "reset_after_clip", "linear_before_reset=1, clip=0.1", "W, R, B, , H0", batch=BATCH
    ),
    recurrent("GRU", "reset_before", "linear_before_reset=0", "W, R, B, , H0", batch=BATCH),
    recurrent("GRU", "activations", 'activations=["hardsigmoid","Softsign"]'),
    recurrent(
        "GRU",
        "activations_of_both",
        'activations=["Sigmoid","Tanh","HardSigmoid","LeakyRelu"], activation_alpha=[0.3,0.2], '
        f"activation_beta=[0.4], {BOTH}",
        directions=2,
    ),
)
RNN = tuple(
    recurrent("RNN", f"activation_{name.lower()}", f'activations=["{name}"]{numbers}')
    for name, numbers in {
        "Affine": ", activation_alpha=[0.7], activation_beta=[0.2]",
        "Elu": ", activation_alpha=[0.7]",
        "HardSigmoid": ", activation_alpha=[0.3], activation_beta=[0.4]",
        "LeakyRelu": ", activation_alpha=[0.2]",
        "Relu": "",
        "ScaledTanh": ", activation_alpha=[0.7], activation_beta=[2.0]",
        "Sigmoid": "",
        "Softplus": "",
        "Softsign": "",
        "Tanh": "",
        "ThresholdedRelu": ", activation_alpha=[0.1]",
    }.items()
)
CASES = (
    *FORMS,
    *LENGTHS_OF_SEQUENCES,
    *INITIAL_STATES,
    *OUTPUTS,
    *AXES,
    *WEIGHTS,
    *LSTM,
    *GRU,
    *RNN,
)
