"""LSTM, GRU and RNN, in one direction or both.

The weights of all gates lie one after the other, and so do those of both directions: W is
[directions, gates x hidden, input], R [directions, gates x hidden, hidden], B [directions, 2 x
gates x hidden] and P [directions, 3 x hidden]. A hidden unit is a position of all of them and of
every state.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from obc_onnx.axes.expressions import product
from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.context import Tap
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.base.value import Value
from obc_onnx.ops.recurrent.forward import recur

if TYPE_CHECKING:
    from obc_onnx.axes.expressions import Expr
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.rule import Shape


class _Form(NamedTuple):
    """What the three operators differ in.

    Attributes:
        n_gates: How many blocks of hidden units W and R have.
        activations: The default functions of one direction.
        option: The attribute that changes how gates work together.
    """

    n_gates: int
    activations: tuple[str, ...]
    option: str


_FORMS = {
    "GRU": _Form(3, ("Sigmoid", "Tanh"), "linear_before_reset"),
    "LSTM": _Form(4, ("Sigmoid", "Tanh", "Tanh"), "input_forget"),
    "RNN": _Form(1, ("Tanh",), ""),
}
_X, _W, _R, _B, _LENGTHS, _INITIAL_H, _INITIAL_C, _P = range(8)
_NUMBERS: dict[str, dict[str, float | None]] = {
    "affine": {"activation_alpha": None, "activation_beta": None},
    "elu": {"activation_alpha": 1.0},
    "hardsigmoid": {"activation_alpha": 0.2, "activation_beta": 0.5},
    "leakyrelu": {"activation_alpha": 0.01},
    "relu": {},
    "scaledtanh": {"activation_alpha": None, "activation_beta": None},
    "sigmoid": {},
    "softplus": {},
    "softsign": {},
    "tanh": {},
    "thresholdedrelu": {"activation_alpha": None},
}
"""The numbers that an activation takes, with their defaults.

None stands where ONNX names no default, or ONNX Runtime takes another.
"""


class Recurrent(Rule):
    """A state that gates carry from step to step.

    A unit meets the others in the product with R alone: gates, peepholes, clips and activations act
    on each by itself. So it is gone where neither R nor any reader of the outputs sees it.
    """

    op_types = tuple(_FORMS)
    ranks: ClassVar = {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3, 7: 2}

    def couple(self, context: CoupleContext) -> list[Value]:
        """Tie the input axis to W, and the hidden axis of everything else; freeze the rest."""
        x, directions = context.value(_X), context.value(_W).axes[0]
        hidden = context.value(_R).axes[2]
        batch_first = context.node.integer("layout", 0)
        batch, sequence = x.axes[:2] if batch_first else x.axes[1::-1]
        context.freeze([sequence], "the sequence")
        context.freeze([directions], "the directions")
        state = (batch, directions, hidden) if batch_first else (directions, batch, hidden)
        beside = {_LENGTHS: (batch,), _INITIAL_H: state, _INITIAL_C: state}
        _tie(context, beside | self._weights(context, directions, hidden))
        _record(context)
        context.spell("hidden_size", hidden, scalar=True)
        y = (batch, sequence, *state[1:]) if batch_first else (sequence, *state)
        return [Value(axes) for axes in (y, state, state)[: len(context.node.outputs)]]

    def forward(self, context: ForwardContext) -> Call:
        """Unroll over time."""
        node = context.node
        direction = node.text("direction", "forward")
        n_directions = 2 if direction == "bidirectional" else 1
        constants = {
            "op_type": node.op_type,
            "activations": _activations(node, n_directions),
            "clip": node.number("clip", -1.0),
            "direction": direction,
            "batch_first": bool(node.integer("layout", 0)),
            "option": bool(node.integer(_FORMS[node.op_type].option, 0)),
            "n_outputs": len(node.outputs),
        }
        return Call(recur, constants, context.given(*range(_P + 1)))

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """At every step of every sequence, one product per element of W and of R."""
        return math.prod(inputs[_X][:2]) * (math.prod(inputs[_W]) + math.prod(inputs[_R]))

    @staticmethod
    def _weights(
        context: CoupleContext, directions: Expr, hidden: Expr
    ) -> dict[int, tuple[Expr, ...]]:
        """Return the axes of all weights by slot; gates cannot go one by one."""
        gates = context.fixed(_FORMS[context.node.op_type].n_gates, "the gates")
        written = product([gates, hidden])
        return {
            _W: (directions, written, context.value(_X).axes[2]),
            _R: (directions, written, hidden),
            _B: (directions, product([context.fixed(2, "the pairs of biases"), written])),
            _P: (directions, product([context.fixed(3, "the peepholes"), hidden])),
        }


def _tie(context: CoupleContext, expected: dict[int, tuple[Expr, ...]]) -> None:
    """State what the axes of inputs are, by slot; those that are left out have none."""
    for slot, axes in expected.items():
        value = context.optional(slot)
        for own, axis in zip(value.axes, axes, strict=True) if value is not None else ():
            context.unify(own, axis)


def _record(context: CoupleContext) -> None:
    """Record what weights do. No tensor shows what a gate makes, so only the input has a tap."""
    x, w, r = (context.value(slot) for slot in (_X, _W, _R))
    seen = w.constant and not x.constant
    context.writes(_W, 1, tap=None)
    context.reads(_W, 2, mixes=[w.axes[2]], tap=Tap("input", _X, 2) if seen else None)
    context.writes(_R, 1, tap=None)
    context.reads(_R, 2, mixes=[r.axes[2]])
    for slot in (_B, _P):
        if context.optional(slot) is not None:
            context.scales(slot, 1)


def _activations(node: Node, n_directions: int) -> tuple[tuple[Any, ...], ...]:
    """Read the function of each gate as its name and its numbers, which are consumed in order."""
    default = _FORMS[node.op_type].activations * n_directions
    lists = ("activation_alpha", "activation_beta")
    given = {attribute: iter(node.attributes.get(attribute, ())) for attribute in lists}
    found = []
    for name in node.attributes.get("activations", default):
        kind = name.lower()
        if kind not in _NUMBERS:
            raise UnsupportedOperatorError(f"{node.label}: activation '{name}' is not known")
        numbers = [next(given[key], default) for key, default in _NUMBERS[kind].items()]
        if None in numbers:
            raise UnsupportedOperatorError(
                f"{node.label}: activation '{name}' leaves out numbers that have no default"
            )
        found.append((kind, *numbers))
    return tuple(found)


RULES: tuple[Rule, ...] = (Recurrent(),)
