"""Models that are a few edits away from a valid one: still messages, and mostly no valid models."""

from __future__ import annotations

import importlib
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from graphs import BLOCKS, HEADS, build_net
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from small import chain

from obc_onnx.graph.node import domain_of
from obc_onnx.ops.catalogue import DEFAULT_RULES

if TYPE_CHECKING:
    from collections.abc import Callable

    from ops.cases import Case

SIZES = (-(2**63), -1, 0, 1, 2, 3, 7, 1024, 2**31, 2**33, 2**62, 2**63 - 1)
"""What sizes and integers are changed to."""
BESIDE, OFFSETS = "w.bin", ("0", "4", "-1", "one", "9" * 30)
"""The file beside a model that weights are said to lie in; where in it."""
NUMBERS = (0.0, -1.0, 1e-38, 1e38, float("inf"), float("nan"))
ROWS_SHARE, BYTES_SHARE = 0.7, 0.08
"""How many of the models have one operator in one form; of how many bytes are changed too."""
EDITS_SHARES = (0.6, 0.25, 0.15)
"""How many models get one edit, two and three: most edits leave nothing to analyse."""


@cache
def rows() -> tuple[Case, ...]:
    """Return the rows of the table of operators."""
    tables = sorted((Path(__file__).parents[1] / "ops").glob("cases_*.py"))
    return tuple(
        case for path in tables for case in importlib.import_module(f"ops.{path.stem}").CASES
    )


def draw_model(rng: np.random.Generator) -> onnx.ModelProto:
    """Draw a valid model."""
    model = onnx.ModelProto()
    if rng.random() < ROWS_SHARE:
        model.CopyFrom(rows()[rng.integers(len(rows()))].model)
    elif rng.random() < ROWS_SHARE:
        kinds = sorted(BLOCKS)
        steps = [
            (kinds[rng.integers(len(kinds))], int(rng.integers(3)), int(rng.integers(7)))
            for _ in range(rng.integers(1, 5))
        ]
        model.CopyFrom(build_net(steps, int(rng.integers(len(HEADS))), int(rng.integers(100))))
    else:
        model.CopyFrom(chain())
    return model


def mutated_model(rng: np.random.Generator) -> bytes:
    """Draw a model, and change it in a few places."""
    model = draw_model(rng)
    for _ in range(1 + int(rng.choice(len(EDITS_SHARES), p=EDITS_SHARES))):
        EDITS[rng.integers(len(EDITS))](model, rng)
    message = model.SerializeToString()
    return mutated_bytes(message, rng) if rng.random() < BYTES_SHARE else message


def mutated_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Change, leave out or repeat some bytes."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not changed:
            break
        place, length = int(rng.integers(len(changed))), int(rng.integers(1, 9))
        match rng.integers(5):
            case 0:
                changed[place] ^= 1 << int(rng.integers(8))
            case 1:
                changed[place : place + length] = rng.bytes(length)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
            case _:
                del changed[place:]
    return bytes(changed)


def _attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    held = [entry for node in model.graph.node for entry in node.attribute]
    if not held:
        return
    entry = held[rng.integers(len(held))]
    match entry.type:
        case AttributeProto.INT:
            entry.i = _size(rng)
        case AttributeProto.INTS:
            _change_list(entry.ints, rng, _size)
        case AttributeProto.FLOAT:
            entry.f = NUMBERS[rng.integers(len(NUMBERS))]
        case AttributeProto.STRING:
            entry.s = (b"", b"\xff\xfe", b"VALID", b"linear", b"a,b->c")[rng.integers(5)]
        case AttributeProto.TENSOR:
            _change_tensor(entry.t, rng)
        case _:
            entry.type = AttributeProto.INTS


def _no_attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if nodes:
        node = nodes[rng.integers(len(nodes))]
        del node.attribute[int(rng.integers(len(node.attribute)))]


def _input(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = model.graph.node[rng.integers(len(model.graph.node))]
    if not node.input:
        return
    slot = int(rng.integers(len(node.input)))
    names = [tensor.name for tensor in model.graph.initializer]
    names += [port.name for port in model.graph.input]
    names += [name for other in model.graph.node for name in other.output]
    match rng.integers(4):
        case 0:
            del node.input[slot]
        case 1:
            node.input[slot] = ""
        case 2:
            node.input.append(names[rng.integers(len(names))])
        case _:
            node.input[slot] = names[rng.integers(len(names))]


def _output(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = model.graph.node[rng.integers(len(model.graph.node))]
    match rng.integers(3):
        case 0:
            node.output.append("more")
        case 1 if node.output:
            node.output[0] = ""
        case _:
            model.graph.output[0].name = node.output[0] if node.output else "none"


def _operator(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Take any operator that has a rule, those that no row can hold too."""
    node = model.graph.node[rng.integers(len(model.graph.node))]
    others = DEFAULT_RULES.operators
    node.domain, node.op_type = others[rng.integers(len(others))]
    if all(domain_of(entry.domain) != node.domain for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(node.domain, 1))


def _function(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Let a node call a local function that holds it, or one that is not there."""
    node = model.graph.node[rng.integers(len(model.graph.node))]
    held = onnx.NodeProto()
    held.CopyFrom(node)
    slots = [list(filter(None, dict.fromkeys(names))) for names in (held.input, held.output)]
    function = helper.make_function("own", "f", *slots, [held], model.opset_import)
    if rng.random() < 0.9:
        model.functions.append(function)
    node.CopyFrom(helper.make_node("f", *slots, domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))


def _sparse(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Store a weight by some of its numbers and their places, which may lie outside."""
    tensors = [
        t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.raw_data
    ]
    if not tensors:
        return
    tensor = tensors[rng.integers(len(tensors))]
    size = min(max(math.prod(tensor.dims), 1), SIZES[-1] - 1)
    places = np.sort(rng.integers(-1 if rng.random() < 0.1 else 0, size + 1, 3))
    numbers = rng.standard_normal(3).astype(np.float32)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(numbers, tensor.name), numpy_helper.from_array(places), tensor.dims
    )
    model.graph.sparse_initializer.append(sparse)
    model.graph.initializer.remove(tensor)


def _nodes(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    nodes = model.graph.node
    place = int(rng.integers(len(nodes)))
    if rng.random() < 0.5 and len(nodes) > 1:
        del nodes[place]
    else:
        nodes.add().CopyFrom(nodes[place])


def _tensor(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    tensors = model.graph.initializer
    if tensors:
        _change_tensor(tensors[rng.integers(len(tensors))], rng)


def _change_tensor(tensor: TensorProto, rng: np.random.Generator) -> None:
    match rng.integers(9):
        case 0:
            _change_list(tensor.dims, rng, _size)
        case 1:
            tensor.data_type = int(rng.integers(0, 30))
        case 2:
            tensor.raw_data = tensor.raw_data[: int(rng.integers(len(tensor.raw_data) + 1))]
        case 3:
            tensor.data_location = TensorProto.EXTERNAL
            place = (BESIDE, BESIDE, BESIDE, "gone", "", "../w", "a\0b")[rng.integers(7)]
            tensor.external_data.add(key="location", value=place)
            if rng.random() < 0.5:
                key, value = ("offset", "length")[rng.integers(2)], OFFSETS[rng.integers(5)]
                tensor.external_data.add(key=key, value=value)
        case _:
            _change_numbers(tensor, rng)


def _change_numbers(tensor: TensorProto, rng: np.random.Generator) -> None:
    """Give a tensor that stays whole other numbers, or another shape."""
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32):
        return
    width = {TensorProto.INT64: 8}.get(tensor.data_type, 4)
    if len(tensor.raw_data) != width * math.prod(tensor.dims) or tensor.external_data:
        return
    array = numpy_helper.to_array(tensor).copy()
    if array.size and rng.random() < 0.6:
        place = int(rng.integers(array.size))
        if array.dtype.kind == "f":
            array.reshape(-1)[place] = NUMBERS[rng.integers(len(NUMBERS))]
        else:
            limits = np.iinfo(array.dtype)
            array.reshape(-1)[place] = np.clip(_size(rng), limits.min, limits.max)
    else:
        array = (array.reshape(-1), array[None], array[..., None], array.reshape(-1)[:1])[
            rng.integers(4)
        ]
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _port(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    ports = [*model.graph.input, *model.graph.output]
    port = ports[rng.integers(len(ports))]
    kind = port.type.tensor_type
    if rng.random() < 0.3 or not kind.shape.dim:
        kind.elem_type = int(rng.integers(0, 30))
        return
    dim = kind.shape.dim[rng.integers(len(kind.shape.dim))]
    match rng.integers(4):
        case 0:
            dim.dim_param = ("N", "", "M")[rng.integers(3)]
        case 1:
            kind.shape.dim.add(dim_value=_size(rng))
        case _:
            dim.dim_value = _size(rng)


def _version(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if rng.random() < 0.2:
        model.ir_version = int(rng.integers(1, 15))
    elif model.opset_import:
        model.opset_import[0].version = int(rng.integers(1, 28))


def _text(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = model.graph.node[rng.integers(len(model.graph.node))]
    strange = ("", "a" * 5000, "\0", "é\n", "../../x", "{}", "%s")[rng.integers(7)]
    match rng.integers(4):
        case 0:
            node.name = strange
        case 1:
            node.domain = strange
        case 2:
            model.graph.input[0].name = strange
        case _:
            model.graph.name = strange


def _size(rng: np.random.Generator) -> int:
    return SIZES[rng.integers(len(SIZES))]


def _change_list(
    held: list[int], rng: np.random.Generator, draw: Callable[[np.random.Generator], int]
) -> None:
    place = int(rng.integers(len(held) + 1))
    if place == len(held) or rng.random() < 0.2:
        held.append(draw(rng))
    elif rng.random() < 0.3:
        del held[place]
    elif rng.random() < 0.1:
        del held[:]
    else:
        held[place] = draw(rng)


EDITS = (
    *(_function, _sparse),
    *(_attribute, _attribute, _no_attribute, _input, _input, _output, _operator, _nodes),
    *(_tensor, _tensor, _tensor, _port, _version, _text),
)
"""Ways to change a model; common ones stand there more than once."""
