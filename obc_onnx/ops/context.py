"""What rules are given, and what they record.

A rule never sees the whole graph: it sees one node with what is known of its inputs, states
equalities between axes, and records the roles that operands play.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from obc_onnx.axes import concat, count, mask, take
from obc_onnx.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes import Dim, Expr
    from obc_onnx.graph import Node
    from obc_onnx.unification import AxisSystem

    Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fixed:
    """A number that is written down; `source` is the initializer position that holds it."""

    value: int
    source: tuple[str, int] | None = None


@dataclass(frozen=True)
class Size:
    """A number that is the size of an axis, read by Shape when the model runs."""

    axis: Expr


@dataclass(frozen=True)
class Computed:
    """A number that is computed from frozen sizes only, so pruning never changes it."""


Number = Fixed | Size | Computed


@dataclass(frozen=True)
class Value:
    """What coupling knows of a tensor.

    Attributes:
        axes: One expression per axis.
        numbers: The elements of a small integer tensor that may describe shapes, where followed.
        constant: Whether it depends on initializers only.
    """

    axes: tuple[Expr, ...]
    numbers: tuple[Number, ...] | None = None
    constant: bool = False

    @property
    def shape(self) -> Shape:
        """Concrete sizes."""
        return tuple(axis.size for axis in self.axes)

    @property
    def sizes(self) -> tuple[Expr, ...]:
        """The axes whose sizes the numbers are."""
        return tuple(number.axis for number in self.numbers or () if isinstance(number, Size))

    @property
    def sources(self) -> tuple[tuple[str, int], ...]:
        """The initializer positions that hold the numbers that are written down."""
        return tuple(
            number.source
            for number in self.numbers or ()
            if isinstance(number, Fixed) and number.source is not None
        )


@dataclass(frozen=True)
class Tap:
    """Where the gradient that scores an operand is read.

    Attributes:
        at: "input": the value entering `slot`, through this node only. "output": what the node puts
            out. "parameter": the operand in `slot`, broadcast to the output.
        axis: The axis of that value along which units lie; counted from the output's axes for a
            parameter.
    """

    at: Literal["input", "output", "parameter"]
    slot: int
    axis: int


@dataclass(frozen=True)
class Role:
    """One axis of one operand, and what the node does along it.

    Attributes:
        kind: "writes": the output side of a contraction; "reads": its contracted side; "scales":
            a parameter that acts position by position.
        mixes: The dims of the axis that a compressor or decompressor may recombine; empty where the
            operand is not dense along the axis.
        bias: The slot of the bias that belongs to a writing operand.
        tap: Where to score it; None where no tensor shows it.
    """

    node: Node
    slot: int
    axis: int
    kind: Literal["writes", "reads", "scales"]
    mixes: tuple[Expr, ...] = ()
    bias: int | None = None
    tap: Tap | None = None


@dataclass(frozen=True)
class CoupleContext:
    """One node on its way through `Rule.couple`."""

    node: Node
    inputs: tuple[Value | None, ...]
    output_shapes: tuple[Shape | None, ...]
    system: AxisSystem
    roles: list[Role]
    arrays: tuple[NDArray[Any] | None, ...]
    """The initializer in each input slot, None where the input is computed or left out."""
    claims: dict[tuple[str, int], Expr]
    """The axis whose size each spelled-out number sets, across all nodes."""
    claimed: set[tuple[str, int]] = field(default_factory=set)
    """The spelled-out numbers that this node claims."""

    def value(self, slot: int) -> Value:
        """Return an input that the operator requires."""
        value = self.inputs[slot] if slot < len(self.inputs) else None
        if value is None:
            raise ModelError(f"{self.node.label} lacks its input {slot}")
        return value

    def optional(self, slot: int) -> Value | None:
        """Return an input that may be left out."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def shape(self, slot: int = 0) -> Shape:
        """Return the concrete shape of an output."""
        shape = self.output_shapes[slot]
        if shape is None:
            raise ModelError(f"{self.node.label} has an output of unknown shape")
        return shape

    def integers(self, slot: int) -> tuple[int, ...] | None:
        """Return an integer input whose every element is written down, None otherwise."""
        value = self.optional(slot)
        if value is None or value.numbers is None:
            return None
        fixed = [number.value for number in value.numbers if isinstance(number, Fixed)]
        return tuple(fixed) if len(fixed) == len(value.numbers) else None

    def fixed(self, size: int, why: str) -> Expr:
        """Make a frozen axis."""
        return self.system.dim(size, f"{why} of {self.node.label}")

    def freeze(self, axes: Sequence[Expr], why: str) -> None:
        """Freeze axes, with the node named in the reason."""
        for axis in axes:
            self.system.freeze(axis, f"{why} of {self.node.label}")

    def unify(self, left: Expr, right: Expr) -> None:
        """State that two axes lose the same positions.

        Raises:
            ModelError: Their sizes differ, so the model is inconsistent.
        """
        if left.size != right.size:
            raise ModelError(
                f"{self.node.label} ties an axis of {left.size} positions to one of {right.size}: "
                f"the model is inconsistent"
            )
        self.system.unify(left, right, self.node.label)

    def cut(self, axis: Expr, ends: Sequence[int]) -> list[Expr]:
        """Cut an axis into consecutive parts that end at `ends`."""
        starts = [0, *ends[:-1]]
        parts: list[Expr] = [
            self.system.dim(end - start) for start, end in zip(starts, ends, strict=True)
        ]
        if self.system.can_cut(axis, ends[:-1]):
            self.unify(axis, concat(parts))
            return parts
        return [
            take(axis, tuple(range(start, end))) for start, end in zip(starts, ends, strict=True)
        ]

    def claim(self, number: Number, axis: Expr, slot: int) -> None:
        """State that a number in an integer input sets the size of an axis.

        Surgery can rewrite a number that is written down, and an axis's size follows by itself;
        nothing else may change, so the axis is frozen.
        """
        if isinstance(number, Size):
            self.unify(number.axis, axis)
        elif isinstance(number, Fixed) and number.source is not None:
            if self.arrays[slot] is None:  # reached through other nodes: one number, all its users
                self.claimed.add(number.source)
                self.unify(self.claims.setdefault(number.source, axis), axis)
        else:
            self.freeze([axis], "a size that is computed for input")

    def freeze_sizes(self, value: Value) -> None:
        """Freeze every axis whose size the integers in `value` depend on."""
        for axis in value.sizes:
            self.system.freeze(axis, f"its size is computed with in {self.node.label}")

    def reads(
        self, slot: int, axis: int, *, mixes: Sequence[Expr] = (), tap: Tap | None = None
    ) -> None:
        """Record that an operand's axis is contracted."""
        self.roles.append(Role(self.node, slot, axis, "reads", tuple(mixes), None, tap))

    def writes(
        self,
        slot: int,
        axis: int,
        *,
        out_axis: int,
        mixes: Sequence[Expr] = (),
        bias: int | None = None,
        mixed_output: bool = False,
    ) -> None:
        """Record that an operand's axis makes the channels of output 0.

        `mixed_output` says that the output holds more than what the operand and its bias make: it
        cannot be scored there, and what reads and scales the units has to do.
        """
        tap = None if mixed_output else Tap("output", 0, out_axis)
        self.roles.append(Role(self.node, slot, axis, "writes", tuple(mixes), bias, tap))

    def scales(self, slot: int, axis: int, tap: Tap) -> None:
        """Record that an operand acts position by position."""
        self.roles.append(Role(self.node, slot, axis, "scales", (), None, tap))


@dataclass(frozen=True)
class ForwardContext:
    """One node on its way through `Rule.forward`."""

    node: Node
    arrays: tuple[NDArray[Any] | None, ...]
    input_ranks: tuple[int | None, ...]

    def rank(self, slot: int = 0) -> int:
        """Return the number of axes of an input."""
        rank = self.input_ranks[slot]
        if rank is None:
            raise ModelError(f"{self.node.label}: the rank of its input {slot} is not known")
        return rank

    def integers(self, slot: int) -> tuple[int, ...] | None:
        """Return a constant integer input, None where it is computed or left out."""
        array = self.arrays[slot] if slot < len(self.arrays) else None
        if array is None or not np.issubdtype(array.dtype, np.integer):
            return None
        return tuple(int(value) for value in array.reshape(-1))

    def given(self, *slots: int) -> tuple[int, ...]:
        """Return those of `slots` that the node has."""
        return tuple(slot for slot in slots if self.node.has_input(slot))


@dataclass(frozen=True)
class ResizeContext:
    """One node on its way through `Rule.resize`; collects what must change.

    Attributes:
        axes: Resolved axis expressions by value name.
        keep: The units that stay, of each dim that loses some.
        inputs: What coupling knows of each input.
        arrays: The initializer in each input slot, None where the input is computed or left out.
    """

    node: Node
    axes: Mapping[str, tuple[Expr, ...]]
    keep: Mapping[Dim, NDArray[np.bool_]]
    inputs: tuple[Value | None, ...]
    arrays: tuple[NDArray[Any] | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    operands: dict[int, NDArray[Any]] = field(default_factory=dict)
    literals: dict[tuple[str, int], int] = field(default_factory=dict)

    def before(self, name: str, axis: int) -> int:
        """Return the size of an axis of a value before surgery."""
        return self.axes[name][axis].size

    def size(self, name: str, axis: int) -> int:
        """Return the size of an axis of a value after surgery."""
        return count(self.axes[name][axis], self.keep)

    def kept(self, name: str, axis: int) -> NDArray[np.bool_]:
        """Say which positions of an axis of a value stay."""
        return mask(self.axes[name][axis], self.keep)

    def set_attribute(self, name: str, value: Any) -> None:
        """Give the node another attribute value."""
        self.attributes[name] = value

    def set_sizes(self, slot: int, sizes: Sequence[int | None]) -> None:
        """Write sizes into an integer input; None leaves the number there as it is.

        An initializer is replaced for this node alone. A number that reaches the node through
        others is rewritten at its source, which `CoupleContext.claim` has made safe.
        """
        array, value = self.arrays[slot], self.inputs[slot]
        if array is not None:
            flat = array.reshape(-1).copy()
            for position, size in enumerate(sizes):
                if size is not None:
                    flat[position] = size
            self.operands[slot] = flat.reshape(array.shape)
            return
        for number, size in zip(value.numbers or () if value else (), sizes, strict=True):
            if size is not None and isinstance(number, Fixed) and number.source is not None:
                self.literals[number.source] = size
