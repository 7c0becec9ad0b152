"""Families of graphs, each of any number of nodes: what an analysis may take a long time over.

Every family stretches one thing: a chain, what one value feeds, what one node takes, how deep
something is nested. `measure_growth.py` times them, and tests count what is done with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

OPSET, IR_VERSION = 17, 8
WIDTH, PART = 4, 2
"""Channels, where their number is not what grows: of a value, and of a part of one."""
_DEPTH = 12
"""Layers of a dense block."""
_OWN = "own"
"""The domain of local functions."""
_CALLS = 50
"""Functions in each other."""
_NESTED = 8
"""Subgraphs in each other: a protobuf message cannot nest many more."""


class _Net:
    """A graph in the making, of one input `x`: [N, width, 4, 4] or [N, width]."""

    def __init__(self, width: int = WIDTH, *, flat: bool = False) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.shape: list[int | str] = ["N", width] if flat else ["N", width, 4, 4]

    def constant(self, array: NDArray[Any] | Sequence[int]) -> str:
        name = f"w{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(np.ones(shape, np.float32))

    def node(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}"] + [f"v{len(self.nodes)}_{i}" for i in range(1, outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, **attributes))
        return names[0]

    def conv(self, value: str, width: int, out: int = WIDTH, group: int = 1) -> str:
        return self.node("Conv", value, self.weight(out, width // group, 1, 1), group=group)

    def model(self, *outputs: str) -> onnx.ModelProto:
        given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)]
        made_of = [_port(name, len(self.shape)) for name in outputs]
        graph = helper.make_graph(self.nodes, "family", given, made_of, self.tensors)
        opsets = [helper.make_opsetid("", OPSET)]
        if self.functions:
            opsets.append(helper.make_opsetid(_OWN, 1))
        made: onnx.ModelProto = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, functions=self.functions
        )
        return made


def convolutions(n: int) -> onnx.ModelProto:
    """Convolutions and activations, one behind the other."""
    net, last = _Net(), "x"
    for _ in range(n // 2):
        last = net.node("Relu", net.conv(last, WIDTH))
    return net.model(last)


def grouped(n: int) -> onnx.ModelProto:
    """Convolutions of one channel each, and those that mix them."""
    net, last = _Net(), "x"
    for _ in range(n // 2):
        last = net.conv(net.conv(last, WIDTH, group=WIDTH), WIDTH)
    return net.model(last)


def elementwise(n: int) -> onnx.ModelProto:
    """Activations and products with vectors, one behind the other."""
    net = _Net()
    last = net.conv("x", WIDTH)
    for _ in range(n // 2):
        last = net.node("Sigmoid", net.node("Mul", last, net.weight(WIDTH, 1, 1)))
    return net.model(net.conv(last, WIDTH))


def residual(n: int) -> onnx.ModelProto:
    """Blocks that are added to one stream."""
    net = _Net()
    last = net.conv("x", WIDTH)
    for _ in range(n // 3):
        last = net.node("Add", net.node("Relu", net.conv(last, WIDTH)), last)
    return net.model(net.conv(last, WIDTH))


def dense(n: int) -> onnx.ModelProto:
    """Convolutions of few channels, each of which is joined to all that was before it."""
    net, last = _Net(), "x"
    for layer in range(n // 2):
        last = net.node("Concat", last, net.conv(last, WIDTH + PART * layer, PART), axis=1)
    return net.model(net.conv(last, WIDTH + PART * (n // 2)))


def dense_blocks(n: int) -> onnx.ModelProto:
    """The same in blocks, as networks have them: each Concat takes all that its block has made."""
    net, last = _Net(), "x"
    for _ in range(n // (2 * _DEPTH + 1)):
        parts = [last]
        for layer in range(1, _DEPTH + 1):
            parts.append(net.conv(last, WIDTH + PART * (layer - 1), PART))
            last = net.node("Concat", *parts, axis=1)
        last = net.conv(last, WIDTH + PART * _DEPTH)
    return net.model(last)


def slices(n: int) -> onnx.ModelProto:
    """Slices of one value, each of few channels, that come together again."""
    net, parts = _sliced(PART * n, PART, [PART * i for i in range(n)])
    return net.model(net.conv(net.node("Concat", *parts, axis=1), PART * n))


def scattered_slices(n: int) -> onnx.ModelProto:
    """The same in an order that leaps to and fro."""
    starts = np.random.default_rng(0).permutation(n) * PART
    net, parts = _sliced(PART * n, PART, starts.tolist())
    return net.model(net.conv(net.node("Concat", *parts, axis=1), PART * n))


def windows(n: int) -> onnx.ModelProto:
    """Slices of one value that overlap, and are added up."""
    net, parts = _sliced(n + WIDTH, WIDTH, range(n))
    return net.model(net.conv(net.node("Sum", *parts), WIDTH))


def _sliced(width: int, part: int, starts: Sequence[int]) -> tuple[_Net, list[str]]:
    """Make a value and slices of it."""
    net, parts = _Net(), []
    value = net.conv("x", WIDTH, width)
    axis = net.constant(np.array([1]))
    for start in starts:
        bounds = net.constant(np.array([start])), net.constant(np.array([start + part]))
        parts.append(net.node("Slice", value, *bounds, axis))
    return net, parts


def slices_of_slices(n: int) -> onnx.ModelProto:
    """Slices of one another, each of which takes the first channel away."""
    net = _Net()
    last = net.conv("x", WIDTH, n + WIDTH)
    bounds = [net.constant(np.array([number])) for number in (1, 2**31 - 1, 1)]
    for _ in range(n):
        last = net.node("Slice", last, *bounds)
    return net.model(net.conv(last, WIDTH))


def split(n: int) -> onnx.ModelProto:
    """One value split into a few channels each, every part of which has a node of its own."""
    net = _Net()
    value = net.conv("x", WIDTH, PART * n)
    first = net.node("Split", value, outputs=n, axis=1)
    parts = [first, *(f"{first}_{i}" for i in range(1, n))]
    joined = net.node("Concat", *(net.node("Relu", part) for part in parts), axis=1)
    return net.model(net.conv(joined, PART * n))


def concat(n: int) -> onnx.ModelProto:
    """Convolutions of one value, all joined at once."""
    net = _Net()
    parts = [net.conv("x", WIDTH, PART) for _ in range(n)]
    return net.model(net.conv(net.node("Concat", *parts, axis=1), PART * n))


def sums(n: int) -> onnx.ModelProto:
    """Products of one value with matrices, all added at once."""
    net = _Net(flat=True)
    parts = [net.node("MatMul", "x", net.weight(WIDTH, WIDTH)) for _ in range(n)]
    return net.model(net.node("MatMul", net.node("Sum", *parts), net.weight(WIDTH, WIDTH)))


def heads(n: int) -> onnx.ModelProto:
    """One value with a layer for each of many outputs."""
    net = _Net(flat=True)
    value = net.node("MatMul", "x", net.weight(WIDTH, WIDTH))
    return net.model(*(net.node("MatMul", value, net.weight(WIDTH, 2)) for _ in range(n)))


def constants(n: int) -> onnx.ModelProto:
    """A Constant node in front of each layer, which reads it."""
    net, last = _Net(flat=True), "x"
    for _ in range(n // 2):
        tensor = numpy_helper.from_array(np.ones((WIDTH, WIDTH), np.float32))
        last = net.node("MatMul", last, net.node("Constant", value=tensor))
    return net.model(last)


def identities(n: int) -> onnx.ModelProto:
    """Nodes that copy, one behind the other, between two layers."""
    net = _Net()
    last = net.conv("x", WIDTH)
    for _ in range(n):
        last = net.node("Identity", last)
    return net.model(net.conv(last, WIDTH))


def shared_vector(n: int) -> onnx.ModelProto:
    """Convolutions that all have one tensor as their bias, as exporters merge equal ones."""
    net, last = _Net(), "x"
    bias = net.weight(WIDTH)
    for _ in range(n // 2):
        conv = net.node("Conv", last, net.weight(WIDTH, WIDTH, 1, 1), bias)
        last = net.node("Relu", conv)
    return net.model(last)


def shared_matrix(n: int) -> onnx.ModelProto:
    """One layer, applied again and again."""
    net, last = _Net(), "x"
    matrix, bias = net.weight(WIDTH, WIDTH, 1, 1), net.weight(WIDTH)
    for _ in range(n // 2):
        last = net.node("Relu", net.node("Conv", last, matrix, bias))
    return net.model(net.conv(last, WIDTH))


def layouts(n: int) -> onnx.ModelProto:
    """Values that are laid out again and again, as attention and channel shuffles do."""
    net = _Net()
    last = net.conv("x", WIDTH)
    parted, whole = (net.constant(np.array(s)) for s in ([0, 2, 2, 4, 4], [0, 4, 4, 4]))
    for _ in range(n // 3):
        turned = net.node("Transpose", net.node("Reshape", last, parted), perm=[0, 2, 1, 3, 4])
        last = net.node("Reshape", turned, whole)
    return net.model(net.conv(last, WIDTH))


def shuffles(n: int) -> onnx.ModelProto:
    """Halves of channels that change places, with a layer on one of them."""
    net = _Net()
    last = net.conv("x", WIDTH)
    for _ in range(n // 4):
        left = net.node("Split", last, outputs=2, axis=1)
        mixed = net.conv(left, WIDTH // 2, WIDTH // 2)
        last = net.node("Relu", net.node("Concat", f"{left}_1", mixed, axis=1))
    return net.model(net.conv(last, WIDTH))


def picks(n: int) -> onnx.ModelProto:
    """Channels that are reversed again and again by constant positions."""
    net = _Net()
    last = net.conv("x", WIDTH)
    places = net.constant(np.arange(WIDTH)[::-1].copy())
    for _ in range(n):
        last = net.node("Gather", last, places, axis=1)
    return net.model(net.conv(last, WIDTH))


def shape_arithmetic(n: int) -> onnx.ModelProto:
    """Targets of Reshapes that are put together from sizes."""
    net = _Net()
    last = net.conv("x", WIDTH)
    zero, one = net.constant(np.array([0])), net.constant(np.array([1]))
    rest = net.constant(np.array([16]))
    for _ in range(n // 6):
        shape = net.node("Shape", last)
        batch, width = net.node("Gather", shape, zero), net.node("Gather", shape, one)
        target = net.node("Concat", batch, width, rest, axis=0)
        flat = net.node("Reshape", last, target)
        back = net.node("Concat", batch, width, *[net.constant(np.array([4]))] * 2, axis=0)
        last = net.node("Reshape", flat, back)
    return net.model(net.conv(last, WIDTH))


def additions(n: int) -> onnx.ModelProto:
    """One size that is added to again and again, and ends as the shape of an Expand."""
    net = _Net(flat=True)
    one = net.constant(np.array([1]))
    number = net.node("Gather", net.node("Shape", "x"), net.constant(np.array([0])))
    for _ in range(n):
        number = net.node("Add", number, one)
    target = net.node("Concat", number, net.constant(np.array([WIDTH])), axis=0)
    return net.model(net.node("Expand", net.weight(1, WIDTH), target))


def subgraphs(n: int) -> onnx.ModelProto:
    """Ifs that lie in each other, in front of each layer."""
    net = _Net(flat=True)
    condition = net.constant(np.array(True))  # noqa: FBT003 - as numpy has it
    last = "x"
    for block in range(n // (_NESTED + 1)):
        matrix = net.node("MatMul", last, net.weight(WIDTH, WIDTH))
        body = helper.make_node("Relu", [matrix], [f"b{block}"])
        for depth in range(_NESTED):
            name = f"b{block}" if depth == 0 else f"b{block}_{depth - 1}"
            graph = helper.make_graph([body], "branch", [], [_port(name, 2)])
            branches = {"then_branch": graph, "else_branch": _copied(matrix, f"{name}_else")}
            body = helper.make_node("If", [condition], [f"b{block}_{depth}"], **branches)
        net.nodes.append(body)
        last = body.output[0]
    return net.model(last)


def functions(n: int) -> onnx.ModelProto:
    """Local functions, each of which calls the next one, half as deep as onnx follows."""
    net, last = _Net(flat=True), "x"
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_OWN, 1)]
    for first in range(0, n, _CALLS):
        for i in range(first, first + _CALLS):
            is_last = i == first + _CALLS - 1
            inner = [helper.make_node("Relu", ["a"], ["b" if is_last else "c"])]
            if not is_last:
                inner.append(helper.make_node(f"f{i + 1}", ["c"], ["b"], domain=_OWN))
            net.functions.append(helper.make_function(_OWN, f"f{i}", ["a"], ["b"], inner, opsets))
        product = net.node("MatMul", last, net.weight(WIDTH, WIDTH))
        last = net.node(f"f{first}", product, domain=_OWN)
    return net.model(net.node("MatMul", last, net.weight(WIDTH, WIDTH)))


def attention(n: int) -> onnx.ModelProto:
    """Blocks of attention with several heads, added to one stream."""
    net = _Net(WIDTH, flat=True)
    net.shape = ["N", 3, WIDTH]
    parted, whole = (net.constant(np.array(s)) for s in ([0, 3, 2, WIDTH // 2], [0, 3, WIDTH]))
    last = "x"
    for _ in range(n // 15):
        query, key, value = (
            net.node(
                "Transpose",
                net.node("Reshape", net.node("MatMul", last, net.weight(WIDTH, WIDTH)), parted),
                perm=perm,
            )
            for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
        )
        share = net.node("Softmax", net.node("MatMul", query, key))
        mixed = net.node("Transpose", net.node("MatMul", share, value), perm=[0, 2, 1, 3])
        joined = net.node("Reshape", mixed, whole)
        last = net.node("Add", last, net.node("MatMul", joined, net.weight(WIDTH, WIDTH)))
    return net.model(net.node("MatMul", last, net.weight(WIDTH, WIDTH)))


def _copied(value: str, name: str) -> onnx.GraphProto:
    node = helper.make_node("Identity", [value], [name])
    return helper.make_graph([node], "copy", [], [_port(name, 2)])


def _port(name: str, rank: int) -> onnx.ValueInfoProto:
    """Declare a value of which only the rank is known."""
    sizes = [f"{name}_{axis}" for axis in range(rank)]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)


FAMILIES: dict[str, Callable[[int], onnx.ModelProto]] = {
    function.__name__: function
    for function in (
        convolutions, grouped, elementwise, residual, attention, dense, dense_blocks, slices,
        scattered_slices, windows, slices_of_slices, split, concat, sums, heads, constants,
        identities, shared_vector, shared_matrix, layouts, shuffles, picks, shape_arithmetic,
        additions, subgraphs, functions,
    )
}  # fmt: skip
"""Makers of models, each of which takes about how many nodes the model is to have."""
