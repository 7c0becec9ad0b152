"""Every way to change one thing in a model file, field by field."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message


class Mutation(NamedTuple):
    """One change.

    Attributes:
        where: The field, as `graph.node[2].op_type`.
        apply: Makes it, in a copy of the model that it was found in.
    """

    where: str
    apply: Callable[[onnx.ModelProto], None]


def mutations(model: onnx.ModelProto) -> Iterator[Mutation]:
    """Yield a change of each field, a turned order, and the loss of the last of each list."""
    yield from _of(model, "", lambda whole: whole)


def mutated(model: onnx.ModelProto, mutation: Mutation) -> onnx.ModelProto:
    """Return a changed copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    mutation.apply(copy)
    return copy


def _of(
    message: Message, path: str, find: Callable[[onnx.ModelProto], Message]
) -> Iterator[Mutation]:
    for field, value in message.ListFields():
        name = field.name
        where = f"{path}.{name}".lstrip(".")
        if isinstance(value, (str, bytes, int, float)):
            yield Mutation(where, _setter(find, name, _other(value)))
        elif not hasattr(value, "append"):
            yield from _of(value, where, _getter(find, name))
        else:
            yield Mutation(f"{where}[-1] is gone", _popper(find, name))
            if len(value) > 1 and isinstance(value[0], (str, int, float)) and value[0] != value[1]:
                yield Mutation(f"{where} is turned", _turner(find, name))
            for place, element in enumerate(value):
                inner = f"{where}[{place}]"
                if isinstance(element, (str, bytes, int, float)):
                    yield Mutation(inner, _item_setter(find, name, place, _other(element)))
                else:
                    yield from _of(element, inner, _item_getter(find, name, place))


def _other(value: str | bytes | float) -> str | bytes | float:
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, bytes):
        return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
    return value + 1


def _getter(find: Callable, name: str) -> Callable:
    return lambda whole: getattr(find(whole), name)


def _item_getter(find: Callable, name: str, place: int) -> Callable:
    return lambda whole: getattr(find(whole), name)[place]


def _setter(find: Callable, name: str, value: object) -> Callable:
    return lambda whole: setattr(find(whole), name, value)


def _item_setter(find: Callable, name: str, place: int, value: object) -> Callable:
    return lambda whole: getattr(find(whole), name).__setitem__(place, value)


def _popper(find: Callable, name: str) -> Callable:
    return lambda whole: getattr(find(whole), name).pop()


def _turner(find: Callable, name: str) -> Callable:
    def turn(whole: onnx.ModelProto) -> None:
        values = getattr(find(whole), name)
        values[0], values[1] = values[1], values[0]

    return turn
