"""What rules are given, and what they record.

A rule never sees the whole graph: it sees one node with what is known of its inputs, states
equalities between axes, records the roles that operands play, and says of which axes the numbers
that the node spells out are the sizes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import helper

from obc_onnx.axes.expressions import product, take
from obc_onnx.axes.ties import MOST_POSITIONS
from obc_onnx.errors import ModelError
from obc_onnx.ops.base.value import Renumbering, Spelling, Value, Wanted, concrete

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim, Expr
    from obc_onnx.axes.unification import AxisSystem
    from obc_onnx.graph.node import Node
    from obc_onnx.graph.shapes import ElementTypes

    Shape = tuple[int, ...]


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
        bias: The slot of the bias that belongs to the operand.
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
class Lookup:
    """Positions of a table of constants that a node picks by numbers which others compute.

    Attributes:
        node: The node.
        table: The slot of the table.
        axis: Of the table, along which it picks.
        ids: The slot of the numbers.
    """

    node: Node
    table: int
    axis: int
    ids: int

    @property
    def place(self) -> tuple[str, int]:
        """The node's key and the slot of the table."""
        return self.node.key, self.table


@dataclass
class CoupleContext:
    """One node on its way through `Rule.couple`."""

    node: Node
    inputs: tuple[Value | None, ...]
    output_shapes: tuple[Shape | None, ...]
    system: AxisSystem
    roles: list[Role]
    arrays: tuple[NDArray[Any] | None, ...]
    """The initializer in each input slot, None where the input is computed or left out."""
    renumberings: list[Renumbering]
    lookups: list[Lookup]
    released: Container[tuple[str, int]] = ()
    """Tables whose ids are numbered again, by the node's key and their slot."""
    spellings: list[Spelling] = field(default_factory=list)
    written_dims: set[Expr] = field(default_factory=set)
    """Axes of outputs whose sizes the node itself spells out."""
    consulted: set[int] = field(default_factory=set)
    """Slots whose numbers the rule looked at: unless it spells them, they have to stay the same."""

    def value(self, slot: int) -> Value:
        """Return an input that the operator requires."""
        value = self.optional(slot)
        if value is None:
            raise ModelError(f"{self.node.label} lacks its input {slot}")
        return value

    def optional(self, slot: int) -> Value | None:
        """Return an input that may be left out."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def check_ranks(self, ranks: Mapping[int, int]) -> None:
        """Check that operands have as many axes as the operator wants, by input slot.

        Raises:
            ModelError: One has not; the message names it.
        """
        for slot, rank in ranks.items():
            value = self.optional(slot)
            if value is not None and len(value.axes) != rank:
                raise ModelError(
                    f"{self.node.label} takes {_axes(rank)} in its input {slot}, but "
                    f"'{self.node.inputs[slot]}' of shape {value.shape} has {len(value.axes)}"
                )

    def axis(self, slot: int, axis: int) -> int:
        """Return an axis of an input by its place from the front; it may count from the end.

        Raises:
            ModelError: The input has no such axis.
        """
        rank = len(self.value(slot).axes)
        if not -rank <= axis < rank:
            raise ModelError(
                f"{self.node.label} takes axis {axis} of its input {slot}, but "
                f"'{self.node.inputs[slot]}' has {_axes(rank)}"
            )
        return axis % rank

    def distinct_axes(self, slot: int, axes: Sequence[int]) -> list[int]:
        """Return axes of an input as `axis` does, each of which may be named once.

        Raises:
            ModelError: The input has no such axis, or one is named twice.
        """
        found = [self.axis(slot, axis) for axis in axes]
        if len(set(found)) < len(found):
            raise ModelError(f"{self.node.label} names an axis twice: {list(axes)}")
        return found

    def shape(self, slot: int = 0) -> Shape:
        """Return the concrete shape of an output."""
        shape = self.output_shapes[slot]
        if shape is None:
            raise ModelError(f"{self.node.label} has an output of unknown shape")
        return shape

    def numbers(self, slot: int) -> NDArray[Any] | None:
        """Return what an input holds, None unless it is the same whenever the model runs.

        The input has to stay what it is, unless the rule spells it.
        """
        value = self.optional(slot)
        if value is None or value.numbers is None:
            return None
        self.consulted.add(slot)
        return concrete(value.numbers, self.system)

    def integers(self, slot: int) -> tuple[int, ...] | None:
        """Return the elements of an integer input, None where they are computed as it runs."""
        numbers = self.numbers(slot)
        return None if numbers is None else tuple(int(number) for number in numbers.reshape(-1))

    def fixed(self, size: int, why: str) -> Expr:
        """Make a frozen axis."""
        return self.system.dim(size, f"{why} of {self.node.label}")

    def written(self, size: int, why: str) -> Expr:
        """Make a frozen axis whose size is written in the node: it is known before it runs."""
        axis = self.fixed(size, why)
        self.written_dims.add(axis)
        return axis

    def varying(self, size: int) -> Dim:
        """Make a frozen axis, the size of which is only known when the model runs."""
        axis = self.system.dim(size, f"a size that depends on data of {self.node.label}")
        self.system.open(axis)
        return axis

    def opaque(self, why: str, output: int = 0) -> Value:
        """Make an output of which every axis is frozen."""
        return Value(tuple(self.fixed(size, why) for size in self.shape(output)))

    def freeze(self, axes: Sequence[Expr], why: str) -> None:
        """Freeze axes, with the node named in the reason."""
        for axis in axes:
            self.system.freeze(axis, f"{why} of {self.node.label}")

    def mark_inexact(self, axes: Sequence[Expr], why: str) -> None:
        """Note that removing positions of axes changes more than masking them would."""
        for axis in axes:
            self.system.mark_inexact(axis, f"{why} in {self.node.label}")

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
        parts = self.system.cut(axis, ends, self.node.label)
        if parts is None:
            return [self.taken(axis, range(start, end)) for start, end in pairwise([0, *ends])]
        return parts

    def taken(self, axis: Expr, positions: range) -> Expr:
        """Take positions of an axis; so many that they would fill the memory are frozen instead."""
        if len(positions) <= MOST_POSITIONS:
            return take(axis, tuple(positions))
        self.freeze([axis], f"a range of more than {MOST_POSITIONS} positions")
        return self.fixed(len(positions), "a long range")

    def factored(self, axis: Expr, *sizes: int) -> tuple[Expr, ...]:
        """Write an axis as a product of new dims of these sizes, and return them."""
        factors = tuple(self.system.dim(size) for size in sizes)
        self.unify(axis, product(factors))
        return factors

    def spell(self, place: int | str, *wanted: Wanted, **options: Any) -> None:
        """Say of which axes the numbers in an input slot or an attribute are the sizes.

        Args:
            place: A slot, or the name of an attribute.
            wanted: For each number the axis whose size it is; None where it may be anything, such
                as the -1 of a Reshape; a number where it has to stay that one.
            options: Further fields of `Spelling`.
        """
        self.spellings.append(Spelling(self.node, place, wanted, **options))

    def pick(self, slot: int, axis: Expr, picked: Sequence[int]) -> Expr:
        """Take constant positions of an axis, which an input slot names, and return the new axis.

        Surgery numbers them again where positions of the axis are removed.
        """
        index = tuple(position % axis.size for position in picked)
        self.renumberings.append(Renumbering(self.node, slot, axis, index))
        return take(axis, index)

    def looks_up(self, table: int, axis: int, ids: int) -> None:
        """Record that numbers in a slot pick positions of a table along an axis, and freeze that.

        Whoever numbers them again releases it.
        """
        data, picked = self.value(table), self.value(ids)
        lookup = Lookup(self.node, table, axis, ids)
        if data.constant and not picked.constant:
            self.lookups.append(lookup)
        if lookup.place not in self.released:
            self.freeze([data.axes[axis]], "the gathered axis")

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
        tap: Tap | None,
        mixes: Sequence[Expr] = (),
        bias: int | None = None,
    ) -> None:
        """Record that an operand's axis makes channels of an output.

        `tap` is None where no output holds just what the operand and its bias make: then it cannot
        be scored there, and what reads and scales the units has to do.
        """
        self.roles.append(Role(self.node, slot, axis, "writes", tuple(mixes), bias, tap))

    def scales(
        self, slot: int, axis: int, tap: Tap | None = None, *, bias: int | None = None
    ) -> None:
        """Record that an operand acts position by position, and maybe a bias with it."""
        self.roles.append(Role(self.node, slot, axis, "scales", (), bias, tap))


def _axes(count: int) -> str:
    return "1 axis" if count == 1 else f"{count} axes"


@dataclass(frozen=True)
class ForwardContext:
    """One node on its way through `Rule.forward`.

    Attributes:
        node: The node.
        arrays: The initializers among its inputs, None for what is computed.
        input_shapes: Of each input, for the sizes that the model was analysed with; only ranks
            and the shapes of numbers stay what they are. None where that is not known.
        output_shape: Of its first output, likewise.
        types: Of all values of the graph.
    """

    node: Node
    arrays: tuple[NDArray[Any] | None, ...]
    input_shapes: tuple[Shape | None, ...]
    output_shape: Shape | None
    types: ElementTypes

    def data_type(self, slot: int) -> int:
        """Return the ONNX data type of an input."""
        return int(helper.np_dtype_to_tensor_dtype(self.types[self.node.inputs[slot]]))

    def rank(self, slot: int = 0) -> int:
        """Return the number of axes of an input."""
        shape = self.input_shapes[slot]
        if shape is None:
            raise ModelError(f"{self.node.label}: the rank of its input {slot} is not known")
        return len(shape)

    def integers(self, slot: int) -> tuple[int, ...] | None:
        """Return a constant integer input, None where it is computed or left out."""
        array = self.arrays[slot] if slot < len(self.arrays) else None
        if array is None or not np.issubdtype(array.dtype, np.integer):
            return None
        return tuple(int(value) for value in array.reshape(-1))

    def given(self, *slots: int) -> tuple[int, ...]:
        """Return those of `slots` that the node has."""
        return tuple(slot for slot in slots if self.node.has_input(slot))
