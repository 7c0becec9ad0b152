"""Every way to change one thing in a model file, field by field, or to add one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from google.protobuf.message import Message

    Change = Callable[[onnx.ModelProto], None]

WITH_BIAS = 3
"""Inputs of a product that has a bias."""


class Mutation(NamedTuple):
    """One change.

    Attributes:
        where: The field, as `graph.node[2].op_type`.
        apply: Makes it, in a copy of the model that it was found in.
    """

    where: str
    apply: Change


def mutations(model: onnx.ModelProto) -> Iterator[Mutation]:
    """Yield a change of each field, a turned order, and the loss of the last of each list."""
    yield from _of(model, "", lambda whole: whole)


def additions(model: onnx.ModelProto) -> Iterator[Mutation]:
    """Yield one more of each thing that a model may hold, none of which the model itself has."""
    node = next(node for node in model.graph.node if node.op_type in ("Conv", "Gemm"))
    value, place = node.output[0], list(model.graph.node).index(node)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name in node.input)
    if len(node.input) < WITH_BIAS:
        axis = 1 if any(a.name == "transB" for a in node.attribute) or node.op_type == "Conv" else 0
        bias = onnx.numpy_helper.from_array(np.full(weight.dims[1 - axis], 5, np.float32), "more")
        yield Mutation("a bias", _all(_adds("initializer", bias), _reads(place, "more")))
    more = onnx.numpy_helper.from_array(np.ones(3, np.float32), "more")
    yield Mutation("an initializer", _adds("initializer", more))
    yield Mutation("an input", _adds("input", _port("more", [3])))
    yield Mutation("an output", _adds("output", _port(value, None)))
    yield Mutation(
        "an initializer among the inputs", _adds("input", _port(weight.name, weight.dims))
    )
    unused = onnx.helper.make_node("Relu", [value], ["more"])
    yield Mutation("a node", _adds("node", unused))
    yield Mutation("an opset", _imports)
    yield Mutation("a device", lambda whole: _devices(whole.graph.node[place]))


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


def _port(name: str, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def _adds(kind: str, message: Message) -> Change:
    return lambda whole: getattr(whole.graph, kind).append(message)


def _reads(place: int, name: str) -> Change:
    return lambda whole: whole.graph.node[place].input.append(name)


def _imports(whole: onnx.ModelProto) -> None:
    whole.opset_import.add(domain="more", version=1)


def _devices(node: onnx.NodeProto) -> None:
    node.device_configurations.add(configuration_id="more")


def _all(*changes: Change) -> Change:
    def change(whole: onnx.ModelProto) -> None:
        for one in changes:
            one(whole)

    return change


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
