"""Couple an operator as its plain counterpart, which takes the same operands in other slots.

An operator on quantised tensors has scales and zero points between its operands, and may have its
channels last. Along axes it does what the operator on floats does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from obc_onnx.ops.base.context import CoupleContext, ForwardContext, Role
    from obc_onnx.ops.base.rule import Call, Rule
    from obc_onnx.ops.base.value import Spelling, Value


def couple_as(
    plain: Rule,
    context: CoupleContext,
    slots: Sequence[int],
    *,
    channels_last: bool = False,
    opset: int | None = None,
) -> list[Value]:
    """Couple a node as another operator couples its own operands.

    Args:
        plain: The rule of the other operator.
        context: The node. Its attributes are those of the other operator.
        slots: Where the node has what the other operator takes in its slots 0, 1, ...
        channels_last: Whether the first operand and the output are [batch, *spatial, channels],
            for an operator whose channels come second.
        opset: Of the other operator, where the node's own says nothing of it.
    Returns:
        What is known of each output.
    """
    view = _view(context, slots, opset or context.node.opset)
    if channels_last:
        first, *others = view.inputs
        moved = None if first is None else replace(first, axes=_channels_second(first.axes))
        shapes = tuple(shape and _channels_second(shape) for shape in view.output_shapes)
        view = replace(view, inputs=(moved, *others), output_shapes=shapes)
    outputs = plain.couple(view)
    context.consulted.update(slots[slot] for slot in view.consulted)
    context.spellings.extend(_spelling(context, spelling, slots) for spelling in view.spellings)
    for role in view.roles:
        context.roles.append(_role(context, role, slots, channels_last=channels_last))
    if channels_last:
        return [replace(value, axes=_channels_behind(value.axes)) for value in outputs]
    return outputs


def forward_as(
    plain: Rule,
    context: ForwardContext,
    slots: Sequence[int],
    *,
    op_type: str | None = None,
    opset: int | None = None,
) -> Call:
    """Compute a node as another operator computes its own operands.

    Args:
        plain: The rule of the other operator.
        context: The node. Its attributes are those of the other operator.
        slots: Where the node has what the other operator takes in its slots 0, 1, ...
        op_type: The other operator, where its rule is one of several.
        opset: Of the other operator, where the node's own says nothing of it.
    """
    node = context.node
    names = tuple(node.read_at(slot) for slot in slots)
    own = replace(
        node,
        op_type=op_type or node.op_type,
        domain="",
        opset=opset or node.opset,
        inputs=names,
    )
    call = plain.forward(
        replace(
            context,
            node=own,
            arrays=tuple(context.arrays[s] if node.has_input(s) else None for s in slots),
            input_shapes=tuple(
                context.input_shapes[s] if node.has_input(s) else None for s in slots
            ),
        )
    )
    last = max(slot for slot in call.inputs if own.has_input(slot))
    return replace(
        call, order=tuple(slots[: last + 1]), numbers=tuple(slots[n] for n in call.numbers)
    )


def _view(context: CoupleContext, slots: Sequence[int], opset: int) -> CoupleContext:
    """Show a node as if its operands were in the first slots."""
    node = context.node
    names = tuple(node.read_at(slot) for slot in slots)
    return replace(
        context,
        node=replace(node, opset=opset, inputs=names),
        inputs=tuple(context.optional(slot) for slot in slots),
        arrays=tuple(context.arrays[s] if node.has_input(s) else None for s in slots),
        roles=[],
        spellings=[],
        consulted=set(),
    )


def _role(context: CoupleContext, role: Role, slots: Sequence[int], *, channels_last: bool) -> Role:
    """Translate a role back to the slots, and to the layout, that the node has."""
    axis, tap = role.axis, role.tap
    rank = len(context.value(slots[0]).axes)
    if channels_last and role.slot == 0:
        axis = _axis_behind(axis, rank)
    if tap is not None and channels_last and (tap.at == "output" or tap.slot == 0):
        tap = replace(tap, axis=_axis_behind(tap.axis, rank))
    if tap is not None and tap.at != "output":
        tap = replace(tap, slot=slots[tap.slot])
    bias = None if role.bias is None else slots[role.bias]
    return replace(role, node=context.node, slot=slots[role.slot], axis=axis, bias=bias, tap=tap)


def _spelling(context: CoupleContext, spelling: Spelling, slots: Sequence[int]) -> Spelling:
    place = spelling.place
    return replace(
        spelling, node=context.node, place=place if isinstance(place, str) else slots[place]
    )


def _channels_second(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reorder [batch, *spatial, channels] to [batch, channels, *spatial]."""
    return items[0], items[-1], *items[1:-1]


def _channels_behind(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Reorder [batch, channels, *spatial] to [batch, *spatial, channels]."""
    return items[0], *items[2:], items[1]


def _axis_behind(axis: int, rank: int) -> int:
    """Return where an axis of [batch, channels, *spatial] is in [batch, *spatial, channels]."""
    return _channels_second(tuple(range(rank)))[axis]  # type: ignore[no-any-return]
