"""What LSTM, GRU and RNN compute, unrolled over time.

The product with W is taken of all steps at once. torch's fused kernels are not used: they know
neither peepholes nor clips nor other activations, and torch does not count what their LSTM
multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Function = Callable[[Tensor], Tensor]
    States = tuple[Tensor, ...]
    Step = Callable[[Tensor, States], States]


@dataclass(frozen=True)
class _Cell:
    """What one direction needs in every step.

    Attributes:
        r: Shape [gates x hidden, hidden].
        bias: Of the product with `r`, shape [gates x hidden], or None.
        peepholes: Shape [3 x hidden], or None.
        functions: The activations.
        clip: The bound of what enters the gates; negative where there is none.
        option: Whether gates work together in the other way that the operator has.
    """

    r: Tensor
    bias: Tensor | None
    peepholes: Tensor | None
    functions: list[Function]
    clip: float
    option: bool

    def gate(self, which: int, x: Tensor) -> Tensor:
        return self.functions[which](x if self.clip < 0.0 else x.clamp(-self.clip, self.clip))


def recur(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
    *,
    op_type: str,
    activations: tuple[tuple[Any, ...], ...],
    clip: float,
    direction: str,
    batch_first: bool,
    option: bool,
    n_outputs: int,
) -> Any:
    """Compute LSTM, GRU or RNN.

    Args:
        x: Shape [sequence, batch, input], or [batch, sequence, input] where `batch_first`; states
            and Y follow it.
        w: Shape [directions, gates x hidden, input].
        r: Shape [directions, gates x hidden, hidden].
        b: Shape [directions, 2 x gates x hidden].
        lengths: How many steps each sequence has, shape [batch].
        initial_h: Shape [directions, batch, hidden].
        initial_c: The same, of an LSTM.
        peepholes: Shape [directions, 3 x hidden].
        op_type: The operator.
        activations: Names in lower case and numbers, those of the second direction last.
        clip: The bound of what enters the gates; negative where there is none.
        direction: "forward", "reverse" or "bidirectional".
        batch_first: Whether the batch is the first axis of `x`.
        option: `input_forget` of an LSTM, `linear_before_reset` of a GRU.
        n_outputs: How many outputs are asked for.
    Returns:
        Y, or a tuple of Y, the last hidden state and the last cell state.
    Source: the ONNX operator pages of LSTM, GRU and RNN. What they leave open is as in ONNX
        Runtime: cell states are not clipped, and a sequence of length 0 ends in zeros.
    """
    import torch
    from torch.nn import functional

    given = [initial_h, initial_c] if op_type == "LSTM" else [initial_h]
    if batch_first:
        x = x.transpose(0, 1)
        given = [state if state is None else state.transpose(0, 1) for state in given]
    zeros = x.new_zeros(len(w), x.shape[1], r.shape[2])
    initial = [zeros if state is None else state for state in given]
    functions = [_function(*activation) for activation in activations]
    outputs, ends = [], []
    for i in range(len(w)):
        w_bias, r_bias = (None, None) if b is None else b[i].chunk(2)
        own = functions[i * len(functions) // len(w) :]
        beside = None if peepholes is None else peepholes[i]
        step = _STEPS[op_type](_Cell(r[i], r_bias, beside, own, clip, option))
        inputs = functional.linear(x, w[i], w_bias).unbind()
        states = tuple(state[i] for state in initial)
        backward = direction == "reverse" or i == 1
        output, states = _unroll(step, inputs, states, lengths, backward=backward)
        outputs.append(output)
        ends.append(states)
    y = torch.stack(outputs, 1)
    last = [torch.stack(states) for states in zip(*ends, strict=True)]
    if batch_first:
        y, last = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in last]
    return (y, *last)[:n_outputs] if n_outputs > 1 else y


def _unroll(
    step: Step,
    inputs: tuple[Tensor, ...],
    states: States,
    lengths: Tensor | None,
    *,
    backward: bool,
) -> tuple[Tensor, States]:
    """Run one direction.

    Args:
        step: Makes the next states.
        inputs: What enters each step, shape [batch, gates x hidden].
        states: The first ones, shape [batch, hidden].
        lengths: Later steps of a sequence leave its states as they are, and put out zeros.
        backward: Whether the last step comes first.
    Returns:
        The hidden state of every step, shape [sequence, batch, hidden], and the last states.
    """
    import torch

    outputs = []
    times = range(len(inputs))
    for time in reversed(times) if backward else times:
        following = step(inputs[time], states)
        if lengths is None:
            states = following
            outputs.append(states[0])
        else:
            runs = (time < lengths).unsqueeze(1)
            pairs = zip(following, states, strict=True)
            states = tuple(torch.where(runs, new, old) for new, old in pairs)
            outputs.append(torch.where(runs, states[0], 0.0))
    if lengths is not None:
        ran = (lengths > 0).unsqueeze(1)
        states = tuple(torch.where(ran, state, 0.0) for state in states)
    return torch.stack(outputs[::-1] if backward else outputs), states


def _rnn_step(cell: _Cell) -> Step:
    from torch.nn import functional

    def step(inputs: Tensor, states: States) -> States:
        return (cell.gate(0, inputs + functional.linear(states[0], cell.r, cell.bias)),)

    return step


def _gru_step(cell: _Cell) -> Step:
    """Gates are update, reset, hidden. The option resets the product and not what enters it."""
    import torch
    from torch.nn import functional

    hidden = cell.r.shape[1]
    sizes = [2 * hidden, hidden]
    r_gates, r_hidden = torch.split(cell.r, sizes)
    b_gates, b_hidden = (None, None) if cell.bias is None else torch.split(cell.bias, sizes)

    def step(inputs: Tensor, states: States) -> States:
        (h,) = states
        x_gates, x_hidden = torch.split(inputs, sizes, -1)
        both = cell.gate(0, x_gates + functional.linear(h, r_gates, b_gates))
        update, reset = both.chunk(2, -1)
        if cell.option:
            seen = reset * functional.linear(h, r_hidden, b_hidden)
        else:
            seen = functional.linear(reset * h, r_hidden, b_hidden)
        return ((1.0 - update) * cell.gate(1, x_hidden + seen) + update * h,)

    return step


def _lstm_step(cell: _Cell) -> Step:
    """Gates are input, output, forget, cell. The option forgets what the input does not fill."""
    from torch.nn import functional

    beside = None if cell.peepholes is None else cell.peepholes.chunk(3)

    def step(inputs: Tensor, states: States) -> States:
        h, c = states
        gates = inputs + functional.linear(h, cell.r, cell.bias)
        enter, leave, keep, new = gates.chunk(4, -1)
        if beside is not None:
            enter, keep = enter + beside[0] * c, keep + beside[2] * c
        enter = cell.gate(0, enter)
        keep = 1.0 - enter if cell.option else cell.gate(0, keep)
        c = keep * c + enter * cell.gate(1, new)
        if beside is not None:
            leave = leave + beside[1] * c
        return cell.gate(0, leave) * cell.functions[2](c), c

    return step


def _function(kind: str, alpha: float = 0.0, beta: float = 0.0) -> Function:
    """Return an activation; those that take fewer numbers do not look at the others."""
    import torch
    from torch.nn import functional

    functions: dict[str, Function] = {
        "affine": lambda x: alpha * x + beta,
        "elu": lambda x: functional.elu(x, alpha),
        "hardsigmoid": lambda x: (alpha * x + beta).clamp(0.0, 1.0),
        "leakyrelu": lambda x: functional.leaky_relu(x, alpha),
        "relu": torch.relu,
        "scaledtanh": lambda x: alpha * torch.tanh(beta * x),
        "sigmoid": torch.sigmoid,
        "softplus": functional.softplus,
        "softsign": functional.softsign,
        "tanh": torch.tanh,
        "thresholdedrelu": lambda x: x * (x >= alpha),
    }
    return functions[kind]


_STEPS = {"GRU": _gru_step, "LSTM": _lstm_step, "RNN": _rnn_step}
