"""Numbers that nodes spell out: which of them have to be written again once units are removed.

Rules say of which axes numbers are the sizes. A number that the graph computes from other sizes may
follow by itself, which is proven with polynomials. Any other is written as a constant: at the node,
or further up where its numbers are put together. Where a size that is only known when the model
runs stands in the way of that, the dims are frozen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from obc_onnx.axes.expressions import Dim, Joined, Product, Take
from obc_onnx.axes.sizes import (
    AxisSize,
    Sized,
    axes_of,
    polynomial,
    size_polynomial,
    value_of,
    with_axes,
)
from obc_onnx.coupling.patch import COPY, INFER, Patch
from obc_onnx.errors import InvariantError
from obc_onnx.ops.base.effect import Effect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from obc_onnx.axes.expressions import Expr
    from obc_onnx.axes.unification import AxisSystem
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.ops.base.value import Spelling, Value, Wanted


def find_patches(
    spellings: Sequence[Spelling],
    system: AxisSystem,
    graph: Graph,
    values: Mapping[str, Value],
    rules: RuleSet,
) -> tuple[Patch, ...]:
    """Find every place that surgery may have to write; freeze what it could not write.

    Args:
        spellings: From the rules.
        system: Settled; dims are frozen in it.
        graph: The model.
        values: What coupling knows of each value.
        rules: What is known of operators.
    """
    finder = _Finder(system, graph, values, rules)
    return tuple(patch for spelling in spellings for patch in finder.patches(spelling))


class _Finder:
    def __init__(
        self, system: AxisSystem, graph: Graph, values: Mapping[str, Value], rules: RuleSet
    ) -> None:
        self.system, self.graph, self.values, self.rules = system, graph, values, rules
        self.frozen_for: Node | None = None
        """Where set, what cannot be written is frozen on account of that node, and the rest is."""

    def patches(self, spelling: Spelling) -> list[Patch]:
        numbers = self._numbers(spelling)
        wanted = tuple(self.system.resolve(w) if _is_axis(w) else w for w in spelling.wanted)
        patch = Patch(
            spelling.node.key,
            spelling.place,
            numbers,
            wanted,
            wanted,
            tuple(self.system.resolve(axis) for axis in spelling.because),
            spelling.scalar,
            spelling.drops,
        )
        if numbers is None:
            return [patch]
        if not any(self._needs(n, w) for n, w in zip(numbers, wanted, strict=True)):
            return []
        found = self._place(patch, spelling)
        if found is None and isinstance(patch.place, int):
            self.frozen_for = spelling.node
            found = self._further_up(patch, patch.place, spelling.node)
            self.frozen_for = None
        if found is None:
            self._freeze(patch.numbers or (), patch.wanted, spelling.node)
            return []
        return found

    def _numbers(self, spelling: Spelling) -> tuple[Any, ...] | None:
        """Return what stands in a place, over resolved axes; None where it is left out."""
        node, place = spelling.node, spelling.place
        if isinstance(place, str):
            found = node.attributes.get(place)
            return None if found is None else tuple(np.asarray(found).reshape(-1).tolist())
        if not node.has_input(place):
            return None
        numbers = self.values[node.inputs[place]].numbers
        if numbers is None:
            raise InvariantError(f"{node.label} spells numbers that are not followed")
        return tuple(with_axes(number, self.system.resolve) for number in numbers.flat)

    def _needs(self, number: Any, wanted: Wanted) -> bool:
        """Say whether a number may become wrong: it cannot where nothing free is in it."""
        if wanted is None:
            return False
        axes = [*axes_of(number), *([wanted] if _is_axis(wanted) else axes_of(wanted))]
        if not any(self.system.is_free(axis) for axis in axes):
            return False
        return not self._follows(number, wanted)

    def _follows(self, number: Any, wanted: Wanted) -> bool:
        """Prove that a number is what it has to be, whatever is removed and whatever runs."""
        if not isinstance(number, Sized) or not _is_axis(wanted):
            return False
        found = polynomial(number, self._polynomial)
        return found is not None and found == self._polynomial(wanted)

    def _polynomial(self, axis: Expr) -> dict[Any, int]:
        return size_polynomial(axis, self._varies)

    def _varies(self, dim: Dim) -> bool:
        return self.system.reason(dim) is None or self.system.is_open(dim)

    def _place(self, patch: Patch, spelling: Spelling) -> list[Patch] | None:
        """Find where the numbers of one place can be written; None where that is nowhere.

        First choice is the place itself, then where single numbers come together. What stands for
        sizes that run with the model comes last, since it drops how they were computed.
        """
        written = self._written(patch)
        if written is None and isinstance(patch.place, int):
            found = self._further_up(patch, patch.place, spelling.node)
            if found is not None:
                return found
            written = self._written(patch, spelling.copied, infers=spelling.infers)
        return None if written is None else [replace(patch, written=written)]

    def _written(
        self, patch: Patch, copied: tuple[Expr, ...] = (), *, infers: bool = False
    ) -> tuple[Wanted, ...] | None:
        """Choose what to write for each number; None where one is only known as the model runs."""
        written: list[Wanted] = []
        for i, (number, wanted) in enumerate(zip(patch.numbers or (), patch.wanted, strict=True)):
            meant: Wanted = wanted
            if wanted is None or isinstance(wanted, (int, float)):
                meant = value_of(number)
            is_open = _is_axis(wanted) and self.system.is_open(wanted)
            if not isinstance(wanted, Sized):  # made by `_factor`, which leaves out what is open
                is_open |= any(self.system.is_open(axis) for axis in axes_of(number))
            if not is_open:
                written.append(meant)
            elif i < len(copied) and self.system.resolve(copied[i]) == wanted:
                written.append(COPY)
            elif infers and INFER not in written:
                written.append(INFER)
            else:
                return None
        return tuple(written)

    def _further_up(self, patch: Patch, slot: int, spelling: Node) -> list[Patch] | None:
        """Look for places where the numbers that reach an input slot can be written.

        Who else uses what lies between keeps the numbers that are there: surgery copies the nodes.
        """
        node = self.graph.producers.get(spelling.inputs[slot])
        if node is None:
            return None
        effect = self.rules.effect(node)
        above = replace(patch, route=(*patch.route, (spelling.key, slot)))
        if Effect.JOINS in effect:
            return self._pieces(node, range(len(node.inputs)), above)
        if Effect.IN_ORDER in effect:
            return self._pieces(node, range(1), above)
        if Effect.CHOOSES in effect:
            return self._choices(node, above)
        if Effect.MULTIPLIES in effect or Effect.DIVIDES in effect:
            return self._factor(node, above, product=Effect.MULTIPLIES in effect)
        return None

    def _pieces(self, node: Node, slots: range, patch: Patch) -> list[Patch] | None:
        """Write what comes together in a node, each at the slot that it comes from."""
        found, start = [], 0
        for slot in slots:
            numbers = self.values[node.inputs[slot]].numbers
            if numbers is None:
                return None
            span = slice(start, start + numbers.size)
            start += numbers.size
            own, wanted = (patch.numbers or ())[span], patch.wanted[span]
            if any(self._needs(n, w) for n, w in zip(own, wanted, strict=True)):
                pieces = self._at_slot(node, slot, patch, own, wanted)
                if pieces is None:
                    return None
                found += pieces
        return found

    def _choices(self, node: Node, patch: Patch) -> list[Patch] | None:
        """Write what a Where takes, as exporters put ones in place of -1 in front of an Expand."""
        takes, *operands = (self.values[name].numbers for name in node.inputs)
        if takes is None or any(isinstance(number, Sized) for number in takes.flat):
            return None
        found = []
        for slot, numbers in enumerate(operands, start=1):
            if numbers is None or not numbers.shape == takes.shape == (len(patch.wanted),):
                return None
            own = tuple(with_axes(number, self.system.resolve) for number in numbers)
            pairs = zip(patch.wanted, takes.tolist(), strict=True)
            wanted = tuple(due if taken == (slot == 1) else None for due, taken in pairs)
            if any(self._needs(n, w) for n, w in zip(own, wanted, strict=True)):
                pieces = self._at_slot(node, slot, patch, own, wanted)
                if pieces is None:
                    return None
                found += pieces
        return found

    def _at_slot(
        self,
        node: Node,
        slot: int,
        below: Patch,
        numbers: tuple[Any, ...],
        wanted: tuple[Wanted, ...],
    ) -> list[Patch] | None:
        patch = Patch(node.key, slot, numbers, wanted, wanted, route=below.route)
        written = self._written(patch)
        if written is not None:
            return [replace(patch, written=written)]
        found = self._further_up(patch, slot, node)
        if found is None and self.frozen_for is not None:
            self._freeze(numbers, wanted, self.frozen_for)
            return []
        return found

    def _factor(self, node: Node, patch: Patch, *, product: bool) -> list[Patch] | None:
        """Write a factor that is known in front of one that runs with the model, as `batch * 12`.

        What it has to be is a quotient: of the product and the other factor, or of the dividend
        and the result.
        """
        (wanted,) = patch.wanted if len(patch.wanted) == 1 else (None,)
        if not _is_axis(wanted):
            return None
        operands = [self.values[name].numbers for name in node.inputs]
        for slot in (0, 1) if product else (1,):
            other, own = operands[1 - slot], operands[slot]
            if other is None or own is None or other.size != 1 or own.size != 1:
                continue
            beside = with_axes(other.item(), self.system.resolve)
            size = AxisSize(wanted)
            due = size // beside if product else beside // size
            found = polynomial(due, self._polynomial)
            if found is not None and not self._runs(found):
                number = with_axes(own.item(), self.system.resolve)
                return self._at_slot(node, slot, patch, (number,), (due,))
        return None

    def _runs(self, found: dict[Any, int]) -> bool:
        """Say whether a polynomial holds a size that is only known when the model runs."""
        atoms = (atom for monomial in found for atom, _ in monomial)
        return any(self.system.is_open(atom) for atom in atoms)

    def _freeze(self, numbers: tuple[Any, ...], due: tuple[Wanted, ...], spelling: Node) -> None:
        reason = f"a size in {spelling.label} that cannot be written before the model runs"
        for number, wanted in zip(numbers, due, strict=True):
            if self._needs(number, wanted):
                for axis in (*axes_of(number), *([wanted] if _is_axis(wanted) else ())):
                    self.system.freeze(axis, reason)


def _is_axis(wanted: Wanted) -> TypeGuard[Expr]:
    return isinstance(wanted, (Dim, Product, Joined, Take))
