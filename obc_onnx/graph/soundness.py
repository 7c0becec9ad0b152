"""What has to hold of a model's message before anybody looks into it.

onnx and onnx-graphsurgeon take a message at its word: a tensor of 16 elements may claim to hold
2^40, lie in a file that ends before it, or be of a type that nobody knows. Here each of those is
one sentence with the name of the node or tensor. What operators mean is for the checker.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from onnx import (
    AttributeProto,
    FunctionProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    defs,
    helper,
)
from onnx.external_data_helper import uses_external_data

from obc_onnx.errors import ModelError
from obc_onnx.graph.nested import all_nodes
from obc_onnx.graph.node import domain_of
from obc_onnx.graph.operators import (
    CHOICES,
    COUNTS_OUTPUTS,
    DIVIDING,
    LAST_CHOICES,
    READ_ANYWAY,
    WINDOWS,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import onnx
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

_Called = tuple[str, str, str]
"""What calls a local function: its domain, name and overload."""
_NAMES = frozenset(TensorProto.DataType.keys())
_KNOWN = frozenset(TensorProto.DataType.values())
"""Data types; 0 says of an input or output that it has none."""
_MOST_INLINED = 100_000
"""Nodes that local functions may stand for: each takes kilobytes, and calls multiply."""
_MOST_NESTED = 100
"""Calls of local functions in each other; onnx follows no more."""
_MOST_ELEMENTS = 2**58
"""Of an array, an axis of size 0 counting as one: numpy counts bytes in 63 bits."""
_LARGEST_DIVISOR = 2**31 - 1
_MOST_AXES = 2**31
"""No tensor has as many; ONNX Runtime takes some axes modulo twice that."""
_OPTIONAL = defs.OpSchema.FormalParameterOption.Optional
_SPARE_BYTES = 2**29
_MOST_GROWTH = 10
_PACKED: dict[int, int] = {
    TensorProto.INT4: 2, TensorProto.UINT4: 2, TensorProto.FLOAT4E2M1: 2,
    **{TensorProto.DataType.Value(name): 4 for name in ("INT2", "UINT2") if name in _NAMES},
}  # fmt: skip
"""Types of which a byte holds several elements, and how many."""
_PARTS: dict[int, int] = {TensorProto.COMPLEX64: 2, TensorProto.COMPLEX128: 2}
"""Types of which an element takes several numbers, and how many."""


def most_bytes(model_bytes: int) -> int:
    """Say how much memory what a model of some bytes describes may take while it is analysed."""
    return _MOST_GROWTH * model_bytes + _SPARE_BYTES


def check_sound(model: onnx.ModelProto, folder: Path | None = None) -> None:
    """Check texts, tensors and local functions of a message.

    Args:
        model: As it was parsed, without external data.
        folder: Where external data lies; None where it has been read.
    Raises:
        ModelError: One of them is malformed; the message names it.
    """
    for message, where in _messages(model, "the model"):
        if isinstance(message, TensorProto):
            _check_tensor(message, where, folder)
        elif isinstance(message, TypeProto.Tensor):
            _check_type(message.elem_type, where)
        elif isinstance(message, SparseTensorProto):
            _check_sparse(message, where, most_bytes(model.ByteSize()))
    check_nodes(model)
    _check_functions(model)


def check_nodes(model: onnx.ModelProto) -> None:
    """Check what the nodes of a model say, but for those in its local functions.

    Raises:
        ModelError: ONNX Runtime would compute nonsense with it, or end the process.
    """
    versions = {domain_of(entry.domain): entry.version for entry in model.opset_import}
    for node in all_nodes(model.graph):
        _check_divisors(node)
        _check_choices(node)
        _check_numbers(node)
        _check_axes(node)
        _check_gives(node)
        _check_given(node, versions.get(domain_of(node.domain), 1))


def element_bytes(data_type: int, count: int) -> int:
    """Return how many bytes elements of an ONNX type take; 0 for strings."""
    if data_type == TensorProto.STRING:
        return 0
    if data_type in _PACKED:
        return -(-count // _PACKED[data_type])
    return count * int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


@cache
def _parts_of(kind: Descriptor) -> tuple[tuple[FieldDescriptor, bool], ...]:
    """List the fields of a kind of message that hold text or messages, and whether there are many.

    Data of tensors is not among them: to look at it would copy it.
    """
    own = (field for field in kind.fields if field.message_type or field.type == field.TYPE_STRING)
    blank = GetMessageClass(kind)()
    return tuple((field, not _is_single(blank, field.name)) for field in own)


def _is_single(blank: Message, name: str) -> bool:
    return isinstance(getattr(blank, name), (str, Message))


def _messages(message: Message, where: str) -> Iterator[tuple[Message, str]]:
    """Yield a message and all in it, and how sentences call what each lies in.

    Raises:
        ModelError: A text is not UTF-8; protobuf gives its bytes.
    """
    waiting = [(message, where)]
    while waiting:
        top, place = waiting.pop()
        place = _named(top, place)
        inner: list[Message] = []
        for field, is_repeated in _parts_of(top.DESCRIPTOR):
            is_set = is_repeated or top.HasField(field.name)
            parts = getattr(top, field.name) if is_set else []
            parts = list(parts) if is_repeated else [parts] if is_set else []
            if field.message_type:
                inner += parts
            elif any(isinstance(text, bytes) for text in parts):
                raise _no_text(top, place)
        _check_text(top, place)
        yield top, place
        waiting += [(part, place) for part in reversed(inner)]


def _named(message: Message, where: str) -> str:
    """Return how sentences call a message: those that are not named are part of another one."""
    if isinstance(message, NodeProto):
        name = message.name or next(filter(None, message.output), "")
        return f"{_shown(message.op_type)} '{_shown(name)}'"
    if isinstance(message, TensorProto) and message.name:
        return f"tensor '{_shown(message.name)}'"
    if isinstance(message, SparseTensorProto) and message.values.name:
        return f"sparse tensor '{_shown(message.values.name)}'"
    if isinstance(message, ValueInfoProto):
        return f"value '{_shown(message.name)}'"
    if isinstance(message, FunctionProto):
        return f"function '{_shown(message.name)}'"
    return where


def _shown(name: str | bytes) -> str:
    """Write a name; protobuf gives bytes where it is not UTF-8."""
    return name if isinstance(name, str) else name.decode(errors="backslashreplace")


def _check_text(message: Message, where: str) -> None:
    """Decode what onnx declares as bytes, and everybody takes for text."""
    if isinstance(message, AttributeProto):
        try:
            for text in (message.s, *message.strings):
                text.decode()
        except UnicodeDecodeError as error:
            raise _no_text(message, where) from error


def _no_text(message: Message, where: str) -> ModelError:
    kind = message.DESCRIPTOR.name.removesuffix("Proto").lower()
    return ModelError(f"{where} holds text that is not UTF-8, in its {kind}")


def _check_tensor(tensor: TensorProto, where: str, folder: Path | None) -> None:
    _check_type(tensor.data_type or -1, where)
    if min(tensor.dims, default=0) < 0:
        raise ModelError(f"{where} has shape {tuple(tensor.dims)}: no size may be below 0")
    if math.prod(max(size, 1) for size in tensor.dims) > _MOST_ELEMENTS:
        raise ModelError(f"{where} has shape {tuple(tensor.dims)}, which no array can have")
    if tensor.HasField("segment"):
        raise ModelError(f"{where} is one segment of a tensor: write it whole")
    size = element_bytes(tensor.data_type, math.prod(tensor.dims))
    if uses_external_data(tensor):
        if folder is not None:
            _check_place(tensor, where, folder, size)
        return
    found, wanted = _held(tensor, size)
    if found != wanted:
        kind = TensorProto.DataType.Name(tensor.data_type)
        raise ModelError(
            f"{where} of shape {tuple(tensor.dims)} and type {kind} needs {wanted}, but holds "
            f"{found}"
        )


def _check_type(data_type: int, where: str) -> None:
    if data_type not in _KNOWN:
        raise ModelError(f"{where} has data type {max(data_type, 0)}, which ONNX does not know")


class _Amount(NamedTuple):
    """How much a tensor holds."""

    number: int
    unit: str

    def __str__(self) -> str:
        return f"{self.number} {self.unit}"


def _held(tensor: TensorProto, size: int) -> tuple[_Amount, _Amount]:
    """Return how much a tensor holds, and how much it should."""
    if tensor.HasField("raw_data"):
        return _Amount(len(tensor.raw_data), "bytes"), _Amount(size, "bytes")
    count, kind = math.prod(tensor.dims), tensor.data_type
    numbers = size if kind in _PACKED else count * _PARTS.get(kind, 1)
    held = len(getattr(tensor, helper.tensor_dtype_to_field(kind)))
    return _Amount(held, "numbers"), _Amount(numbers, "numbers")


def _check_place(tensor: TensorProto, where: str, folder: Path, size: int) -> None:
    """Check where a tensor lies in another file."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = folder / location
    if not location or not path.is_file():
        raise ModelError(f"{where} lies in file '{location}' beside the model, which is missing")
    texts = [entries.get("offset") or "0", entries.get("length") or str(size)]
    if not all(text.isdecimal() for text in texts):
        raise ModelError(f"{where} lies at {' of length '.join(texts)}: both are numbers of bytes")
    offset, length = map(int, texts)
    kind = TensorProto.DataType.Name(tensor.data_type)
    if length != size:
        raise ModelError(
            f"{where} of shape {tuple(tensor.dims)} and type {kind} needs {size} bytes, but "
            f"{length} of '{location}' are its own"
        )
    if offset + length > path.stat().st_size:
        raise ModelError(
            f"{where} ends at byte {offset + length} of '{location}', which has only "
            f"{path.stat().st_size}"
        )


def _check_sparse(sparse: SparseTensorProto, where: str, most: int) -> None:
    """Check that a sparse tensor can be made dense, which is how it is worked on."""
    if min(sparse.dims, default=0) < 0:
        raise ModelError(f"{where} has shape {tuple(sparse.dims)}: no size may be below 0")
    size = element_bytes(sparse.values.data_type, math.prod(sparse.dims))
    if size > most:
        raise ModelError(
            f"{where} of shape {tuple(sparse.dims)} takes {size} bytes when it is dense, which is "
            f"more than {most}"
        )


def _check_divisors(node: NodeProto) -> None:
    """Check numbers that are divided by, and the steps and sizes of windows."""
    for attribute in node.attribute:
        is_divisor = attribute.name in DIVIDING.get(node.op_type, ())
        numbers = [attribute.i] if is_divisor else []
        numbers += attribute.ints if attribute.name in WINDOWS else []
        for number in numbers:
            if not 0 < number <= _LARGEST_DIVISOR:
                raise ModelError(
                    f"{_named(node, '')} has {attribute.name} {number}: it goes from 1 to "
                    f"{_LARGEST_DIVISOR}"
                )


def _check_choices(node: NodeProto) -> None:
    choices = {} if domain_of(node.domain) else CHOICES.get(node.op_type, {})
    for attribute in node.attribute:
        known = choices.get(attribute.name)
        if known is not None and attribute.s.decode() not in known:
            raise ModelError(
                f"{_named(node, '')} has {attribute.name} '{attribute.s.decode()}': it is one of "
                f"{', '.join(known)}"
            )


def _check_numbers(node: NodeProto) -> None:
    """Check attributes that choose by a number, and those that count what a node has."""
    if domain_of(node.domain):
        return
    last, count = LAST_CHOICES.get(node.op_type, {}), COUNTS_OUTPUTS.get(node.op_type)
    for attribute in node.attribute:
        if attribute.name in last and not 0 <= attribute.i <= last[attribute.name]:
            raise ModelError(
                f"{_named(node, '')} has {attribute.name} {attribute.i}: it goes from 0 to "
                f"{last[attribute.name]}"
            )
        if attribute.name == count and attribute.i != len(node.output):
            raise ModelError(
                f"{_named(node, '')} has {attribute.name} {attribute.i} and {len(node.output)} "
                f"outputs: they are to agree"
            )


def _check_axes(node: NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name not in {"axis", "axes"} and not attribute.name.endswith("_axis"):
            continue
        for axis in (*attribute.ints, attribute.i):
            if not -_MOST_AXES < axis < _MOST_AXES:
                raise ModelError(
                    f"{_named(node, '')} has {attribute.name} {axis}, which is no axis of a tensor"
                )


def _check_gives(node: NodeProto) -> None:
    if not any(node.output):
        read = ", ".join(f"'{name}'" for name in node.input) or "nothing"
        raise ModelError(f"{_named(node, '')}, which reads {read}, gives no output")


def _check_given(node: NodeProto, version: int) -> None:
    """Check that inputs which an operator needs are given: ONNX Runtime would read what is not."""
    domain = domain_of(node.domain)
    for slot, called in READ_ANYWAY.get((domain, node.op_type), {}).items():
        if not any(node.input[slot : slot + 1]):
            raise ModelError(
                f"{_named(node, '')} has no input {slot}, '{called}', without which ONNX Runtime "
                f"would end the process: give it zeros"
            )
    if "" not in node.input or not defs.has(node.op_type, domain):
        return
    try:
        formal = defs.get_schema(node.op_type, version, domain).inputs
    except defs.SchemaError:  # the operator is newer than the opset, which the checker will say
        return
    for slot, name in enumerate(node.input):
        own = formal[min(slot, len(formal) - 1)] if formal else None
        if not name and own is not None and own.option != _OPTIONAL:
            raise ModelError(f"{_named(node, '')} lacks input {slot}, '{own.name}', which it needs")


def _check_functions(model: onnx.ModelProto) -> None:
    """Check that calls of local functions end, and how much they stand for."""
    functions = {_implements(f, f.name): f for f in model.functions}
    if len(functions) < len(model.functions):
        names = Counter(_implements(f, f.name) for f in model.functions)
        domain, name, _ = names.most_common(1)[0][0]
        raise ModelError(f"local function '{domain}.{name}' is there more than once")
    counts: dict[_Called, int] = {}
    if functions and _inlined(model.graph.node, functions, counts, ()) > _MOST_INLINED:
        raise ModelError(
            f"the calls of local functions stand for more than {_MOST_INLINED} nodes: inline them "
            f"in part, or leave some out"
        )


def _implements(one: FunctionProto | NodeProto, name: str) -> _Called:
    """Return what a local function is called by, or what a node calls."""
    return domain_of(one.domain), name, one.overload


def _inlined(
    nodes: Iterable[NodeProto],
    functions: dict[_Called, FunctionProto],
    counts: dict[_Called, int],
    calls: tuple[_Called, ...],
) -> int:
    """Count what nodes are when every call is replaced by its function.

    Args:
        nodes: What to count.
        functions: By what calls them.
        counts: What is known of functions; more is added.
        calls: The functions that the nodes are in.
    """
    total = 0
    for node in nodes:
        key = _implements(node, node.op_type)
        if key in calls:
            raise ModelError(f"function '{node.op_type}' calls itself, and would never end")
        if len(calls) > _MOST_NESTED:
            raise ModelError(
                f"the calls of local functions are nested more than {_MOST_NESTED} deep, as in "
                f"'{calls[0][1]}': inline some of them"
            )
        if key in functions and key not in counts:
            counts[key] = _inlined(functions[key].node, functions, counts, (*calls, key))
        total += counts.get(key, 1)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                total += _inlined(graph.node, functions, counts, calls)
    return total
