"""What an operator rule is, and the set of rules that the stages look operators up in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from obc_onnx.errors import InvariantError
from obc_onnx.ops.base.effect import NO_EFFECT, Effect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.context import CoupleContext, ForwardContext
    from obc_onnx.ops.base.value import Value

    Shape = tuple[int, ...]


EVERYWHERE = -math.inf, math.inf
"""Bounds of an operator whose outputs always change with its input."""


@dataclass(frozen=True)
class Call:
    """How the twin computes a node: `function(*inputs, **constants)`.

    Attributes:
        function: A module-level function over torch tensors, so that the twin prints and pickles.
        constants: Keyword arguments fixed by attributes or constant inputs.
        inputs: The input slots that are passed; a slot that is left out is passed as None.
        trains: Whether the function takes `training`, which follows the twin's mode.
        numbers: The input slots whose integers the function takes as an int or a tuple of ints,
            where the twin holds them so (see `host`), as well as in a tensor.
        makes: Whether the function takes `beside`, a tensor on the device where it makes another.
        order: The slots in the order in which the function takes them; None where each slot has
            its own place.
        prepared: For slots that are not passed as they are, what is passed instead.
        result: What is made of the output, which it takes first, before its own `order`.
        bodies: For control flow, the attributes that hold subgraphs, each with ONNX type and shape
            of its formal inputs. The function then makes a module, of the twins of the subgraphs.
    """

    function: Callable[..., Any]
    constants: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[int, ...] = (0,)
    trains: bool = False
    numbers: tuple[int, ...] = ()
    makes: bool = False
    order: tuple[int, ...] | None = None
    prepared: Mapping[int, Call] = field(default_factory=dict)
    result: Call | None = None
    bodies: Mapping[str, tuple[tuple[int, Shape], ...]] = field(default_factory=dict)


class Quantisation(NamedTuple):
    """Where the numbers lie that make stored integers real: (q - zero) * scale.

    Attributes:
        scale: A slot, None where a later node has it.
        zero: A slot.
        axis: Along which of the operand they lie, where they are several.
    """

    scale: int | None
    zero: int | None
    axis: int


class ChannelNorm(NamedTuple):
    """A norm of every channel alone: (x - mean) / sqrt(variance + epsilon) * scale + bias.

    Attributes:
        scale: A slot, as the next three.
        bias: What is added.
        mean: Of channels, which lie along axis 1.
        variance: Of channels.
        epsilon: Is added to variances.
        stored: Whether mean and variance are those in the slots, and not those of the run.
    """

    scale: int
    bias: int
    mean: int
    variance: int
    epsilon: float
    stored: bool


class Rule(ABC):
    """Everything that the project knows about a family of operators.

    Forget one of the abstract methods and the class cannot be instantiated. Functions that the twin
    calls import torch when they run, so that an analysis never loads it.
    """

    op_types: ClassVar[tuple[str, ...]]
    domains: ClassVar[tuple[str, ...]] = ("",)
    """Where the operators are defined; "" is the ONNX standard."""
    why: ClassVar[str] = ""
    """What stands in the way, where everything is frozen on purpose; said in front of "of NODE"."""
    repeats: ClassVar[bool] = True
    """Whether equal inputs always give equal outputs."""
    held: ClassVar[tuple[int, ...]] = ()
    """Input slots that are never learned, such as statistics and bounds: buffers in the twin."""
    effects: ClassVar[Mapping[str, Effect]] = {}
    """What the operators do to single numbers, by operator; what is left out has no effect."""
    ranks: ClassVar[Mapping[int, int]] = {}
    """How many axes input slots have, where the operator leaves no choice."""
    recodes: ClassVar[bool] = False
    """Whether outputs are the first input's numbers, rounded to multiples of the second's, or such
    multiples as numbers again; the third, where there is one, says which of them 0 is."""
    bias_slot: ClassVar[int | None] = None
    """The slot of a bias that a node may lack; None where there is none to add."""

    @abstractmethod
    def couple(self, context: CoupleContext) -> list[Value]:
        """State which axes are equal, which roles weights play, and which numbers are sizes.

        Returns:
            What is known of each output. Numbers that describe shapes are handed on; where they
            are not, those of the inputs have to stay what they are.
        """

    @abstractmethod
    def forward(self, context: ForwardContext) -> Call:
        """Say how torch computes the node."""

    def is_linear(self, node: Node) -> bool:  # noqa: ARG002
        """Say whether the output is a weight times an input, and a bias: repair solves for it.

        A rule that is derived from another one, and computes more, has to say so.
        """
        return False

    def is_scaled(self, node: Node) -> bool:  # noqa: ARG002
        """Say whether numbers of its own multiply weight or bias before both are added."""
        return False

    def converts_to(self, node: Node) -> int:  # noqa: ARG002
        """Return the ONNX data type that it converts to; 0 where it computes anything else."""
        return 0

    def changing(
        self,
        node: Node,  # noqa: ARG002
        numbers: Mapping[str, NDArray[Any]],  # noqa: ARG002
    ) -> tuple[float, float]:
        """Say between which numbers of the first input outputs change with it.

        Where the input is lower than the first, or higher than the second, the output at its
        position is what it is at that bound.

        Args:
            node: The node.
            numbers: Constants, by name.
        Returns:
            Both bounds, infinite where there is none that is known.
        """
        return EVERYWHERE

    def line(
        self,
        node: Node,  # noqa: ARG002
        numbers: Mapping[str, NDArray[Any]],  # noqa: ARG002
    ) -> tuple[float, float] | None:
        """Return the factor and the shift that make outputs of the first input, but for rounding.

        Args:
            node: The node.
            numbers: Constants, by name.
        Returns:
            None where there are no such numbers, or several.
        """
        return None

    def channel_norm(self, node: Node) -> ChannelNorm | None:  # noqa: ARG002
        """Return the slots of a norm that has statistics of channels; None where it is no such."""
        return None

    def normalised_axis(self, node: Node, rank: int) -> int | None:  # noqa: ARG002
        """Say along which axis outputs of some rank add up to 1, for an operator that `SHARES`.

        None where that is along several as one. An axis may count from the end.
        """
        return None

    def filters_of(self, node: Node, shape: Shape) -> NDArray[np.int64] | None:  # noqa: ARG002
        """Number the channel that each element of a convolution's weight makes.

        Args:
            node: A node that `is_linear`, with its weight in slot 1.
            shape: Of that weight.
        Returns:
            Numbers in a shape that broadcasts to the weight; None where it is no convolution.
        """
        return None

    def halves(
        self,
        node: Node,  # noqa: ARG002
        slot: int,  # noqa: ARG002
        shape: Shape,  # noqa: ARG002
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """Return the attributes of two nodes of this operator that may stand for one.

        What the first gives enters the second; the product of their weights is the weight of the
        one. The first adds nothing, the second what the one adds. Both weights have as many axes as
        the one, and the same one is contracted.

        Args:
            node: One of the operator.
            slot: Of its weight.
            shape: Of that.
        Returns:
            None where no such two are.
        """
        return None

    def patches(self) -> Callable[..., Any] | None:
        """Return what lays out inputs as the filters of a convolution meet them; else None.

        The function takes what that of `forward` takes, without a bias, and returns a tensor of
        shape [samples, *positions, inputs, *kernel], a view where it can.
        """
        return None

    def quantisation(self, node: Node, slot: int) -> Quantisation | None:  # noqa: ARG002
        """Say how the integers in a slot become real; None where they stand for themselves."""
        return None

    @abstractmethod
    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:
        """Count multiply-accumulates for concrete shapes; () stands for an input left out."""


class FreeOfMacs(Rule):
    """An operator that does not multiply and accumulate."""

    def macs(self, node: Node, inputs: list[Shape], outputs: list[Shape]) -> int:  # noqa: ARG002
        """Return 0: only contractions count."""
        return 0


class RuleSet:
    """An immutable table of rules by operator.

    Args:
        rules: Rule instances; no two may claim the same operator.
    Raises:
        InvariantError: An operator is claimed twice.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._table: dict[tuple[str, str], Rule] = {}
        for rule in rules:
            for key in product(rule.domains, rule.op_types):
                if key in self._table:
                    raise InvariantError(f"two rules for operator {key[1]} of '{key[0]}'")
                self._table[key] = rule

    def find(self, node: Node) -> Rule | None:
        """Look up the rule for a node; None where the operator is not known."""
        return self._table.get((node.domain, node.op_type))

    def effect(self, node: Node) -> Effect:
        """Say what a node does to single numbers."""
        rule = self.find(node)
        return NO_EFFECT if rule is None else rule.effects.get(node.op_type, NO_EFFECT)

    def changing(self, node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float]:
        """Say between which numbers of the first input outputs change with it, see `Rule`."""
        rule = self.find(node)
        return EVERYWHERE if rule is None else rule.changing(node, numbers)

    def line(self, node: Node, numbers: Mapping[str, NDArray[Any]]) -> tuple[float, float] | None:
        """Return factor and shift that make outputs of the first input, see `Rule`."""
        rule = self.find(node)
        return None if rule is None else rule.line(node, numbers)

    def channel_norm(self, node: Node) -> ChannelNorm | None:
        """Return the slots of a norm that has statistics of channels; None for other nodes."""
        rule = self.find(node)
        return None if rule is None else rule.channel_norm(node)

    def recodes(self, node: Node) -> bool:
        """Say whether a node quantises or dequantises its first input, see `Rule`."""
        rule = self.find(node)
        return rule is not None and rule.recodes

    def bias_slot(self, node: Node) -> int | None:
        """Return the slot of the bias of a node that multiplies by a weight; None for others."""
        rule = self.find(node)
        return rule.bias_slot if rule is not None and rule.is_linear(node) else None

    def extended(self, rules: Iterable[Rule]) -> RuleSet:
        """Return a set with more rules; they must be for operators that have none yet."""
        return RuleSet([*self.rules, *rules])

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule, once."""
        return tuple(dict.fromkeys(self._table.values()))

    @property
    def operators(self) -> tuple[tuple[str, str], ...]:
        """Every (domain, operator) that has a rule, sorted."""
        return tuple(sorted(self._table))
