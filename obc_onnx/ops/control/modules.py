"""If, Loop and Scan as torch modules that hold the twins of their subgraphs.

A subgraph uses values of the graph around it. They come as arguments behind the node's own inputs;
`captured` says which of them each subgraph takes, behind its formal inputs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from obc_onnx.ops.base.dtypes import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    Captured = Mapping[str, tuple[int, ...]]


class _Control(nn.Module):
    """The base.

    Args:
        bodies: The twin of each subgraph, by attribute.
        captured: Positions among the captured values that each takes.
        outputs: Shape and ONNX type of what each gives.
        n_inputs: How many inputs the node has, in front of the captured values.
        n_outputs: How many outputs it has.
    """

    def __init__(
        self,
        bodies: Mapping[str, nn.Module],
        captured: Captured,
        outputs: Mapping[str, tuple[tuple[tuple[int, ...], int], ...]],
        n_inputs: int,
        n_outputs: int,
    ) -> None:
        super().__init__()
        self.bodies = nn.ModuleDict(dict(bodies))
        self.captured, self.outputs = dict(captured), dict(outputs)
        self.n_inputs, self.n_outputs = n_inputs, n_outputs

    def forward(self, *values: Tensor | None) -> Any:
        """Run on the node's inputs and the captured values."""
        outputs = self.run(values[: self.n_inputs], values[self.n_inputs :])
        return outputs[0] if self.n_outputs == 1 else tuple(outputs)

    @abstractmethod
    def run(
        self, inputs: Sequence[Tensor | None], captured: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Return all outputs of the node."""

    def body(self, name: str, inputs: Sequence[Any], captured: Sequence[Any]) -> list[Tensor]:
        """Run a subgraph."""
        outer = (captured[place] for place in self.captured[name])
        return list(self.bodies[name](*inputs, *outer))


class If(_Control):
    """One of two subgraphs. Source: the ONNX operator page of If."""

    def run(
        self, inputs: Sequence[Tensor | None], captured: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Choose by the one input; both branches are traced where torch exports the module."""
        (condition,) = inputs
        branches = ("then_branch", "else_branch")
        if condition is None or not torch.compiler.is_exporting():
            return self.body(branches[not condition], (), captured)
        operands = tuple(x for x in captured if x is not None)

        def of(name: str) -> Callable[..., tuple[Tensor, ...]]:
            # a branch may give back what it was given, which torch does not allow
            return lambda *values: tuple(y.clone() for y in self.body(name, (), values))

        then, otherwise = map(of, branches)
        return list(torch.cond(condition.reshape(()), then, otherwise, operands))


class Loop(_Control):
    """A subgraph again and again. Source: the ONNX operator page of Loop.

    Inputs are a number of trips, a condition, and what is carried from trip to trip; the first two
    may be left out.
    """

    def run(
        self, inputs: Sequence[Tensor | None], captured: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Carry values, and stack what is handed out."""
        trips, condition, *rest = inputs
        carried = [x for x in rest if x is not None]
        handed: list[list[Tensor]] = [[] for _ in range(self.n_outputs - len(carried))]
        number, goes_on = 0, condition is None or bool(condition)
        where = next(x.device for x in (*inputs, *captured) if x is not None)
        while goes_on and (trips is None or number < int(trips)):
            counted = torch.tensor(number, device=where)
            going = torch.tensor(True, device=where)  # noqa: FBT003 - torch's own
            first, *made = self.body("body", (counted, going, *carried), captured)
            goes_on = bool(first)
            carried, out = made[: len(carried)], made[len(carried) :]
            for own, value in zip(handed, out, strict=True):
                own.append(value)
            number += 1
        kinds = self.outputs["body"][1 + len(carried) :]
        stacked = [
            torch.stack(own) if own else _nothing(shape, data_type, where)
            for own, (shape, data_type) in zip(handed, kinds, strict=True)
        ]
        return [*carried, *stacked]


class Scan(_Control):
    """A subgraph along an axis. Source: the ONNX operator page of Scan, from opset 9 on."""

    def __init__(
        self,
        *,
        axes: tuple[tuple[int, ...], tuple[int, ...]],
        backwards: tuple[tuple[bool, ...], tuple[bool, ...]],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.axes, self.backwards = axes, backwards
        """Of what is scanned, and of what is handed out."""

    def run(
        self, inputs: Sequence[Tensor | None], captured: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Carry states, and stack what is handed out."""
        n_scanned = len(self.axes[0])
        states = [x for x in inputs[: len(inputs) - n_scanned] if x is not None]
        scanned = [x for x in inputs[len(inputs) - n_scanned :] if x is not None]
        slices = [x.unbind(axis) for x, axis in zip(scanned, self.axes[0], strict=True)]
        slices = [s[::-1] if b else s for s, b in zip(slices, self.backwards[0], strict=True)]
        handed: list[list[Tensor]] = [[] for _ in self.axes[1]]
        for own in zip(*slices, strict=True):
            outputs = self.body("body", (*states, *own), captured)
            states, out = outputs[: len(states)], outputs[len(states) :]
            for kept, value in zip(handed, out, strict=True):
                kept.append(value)
        turned = zip(handed, self.backwards[1], strict=True)
        ordered = [own[::-1] if b else own for own, b in turned]
        return [*states, *map(torch.stack, ordered, self.axes[1])]


class BatchedScan(Scan):
    """A subgraph along an axis, sample by sample. Source: the page of Scan of opset 8."""

    def run(
        self, inputs: Sequence[Tensor | None], captured: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Scan every sample, and stack all outputs."""
        _, *own = inputs
        samples = zip(*(x.unbind(0) for x in own if x is not None), strict=True)
        found = [super(BatchedScan, self).run(sample, captured) for sample in samples]
        return [torch.stack(values) for values in zip(*found, strict=True)]


def _nothing(shape: tuple[int, ...], data_type: int, device: torch.device) -> Tensor:
    """Return what a loop without trips stacks."""
    return torch.zeros((0, *shape), dtype=torch_dtype(data_type), device=device)
