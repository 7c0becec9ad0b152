"""Models with nodes that ONNX Runtime does not know, and their cut-out parts, by code of their own."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
import onnxruntime
from helpers import IR_VERSION, OPSET, fill_weights
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    Shape = tuple[int | str, ...]

PLUGINS = {
    "EfficientNMS_TRT",
    "BatchedNMSDynamic_TRT",
    "MultiscaleDeformableAttnPlugin_TRT",
    "GridSampler3D",
    "Normalise",
}
"""Operators of the graphs below that ONNX Runtime cannot run."""


class Row(NamedTuple):
    """One model.

    Attributes:
        text: Without its header.
        values: Shapes of what plugins give, as value_info says them.
        pruned: Initializers of which something has to go.
        unrun: Outputs that plugins give.
    """

    text: str
    values: Mapping[str, Shape] = {}
    pruned: tuple[str, ...] = ("a",)
    unrun: tuple[str, ...] = ()


NMS = 'num, box, score, class = EfficientNMS_TRT <background_class = -1, plugin_version = "1">'
HEADS = (
    "<float[16,3,3,3] a, float[16] k, float[16,16,3,3] b, float[4,16,1,1] d, float[6,16,1,1] e>"
    "{ h = Conv <pads = [1,1,1,1]> (x, a, k) r = Relu(h) i = Conv <pads = [1,1,1,1]> (r, b)"
    " s = Relu(i) u = Conv(s, d) v = Conv(s, e) w = Sigmoid(v) "
)
PORTS = (
    "(float[N,3,8,8] x) => (int32[N,1] num, float[N,9,4] box, float[N,9] score, int32[N,9] class)"
)
FRONT = "h = Conv <pads = [1,1,1,1]> (x, a) r = Relu(h) c = Conv(r, b)"
BACK = "e = Conv(p, d) f = Relu(e) y = Conv(f, g)"
WEIGHTS = "float[16,3,3,3] a, float[8,16,1,1] b, float[16,8,1,1] d, float[4,16,1,1] g"
INPUT, OUTPUT = "(float[N,3,8,8] x)", "(float[N,4,8,8] y)"
GIVEN = {"p": ("N", 8, 8, 8)}

ROWS = {
    "detections at the tail": Row(
        f"net {PORTS} {HEADS} {NMS} (u, w) }}",
        pruned=("a", "b"),
        unrun=("num", "box", "score", "class"),
    ),
    "an attribute that its signature lacks": Row(
        f"net {PORTS} {HEADS} {NMS.replace('<', '<class_agnostic = 1, ')} (u, w) }}",
        unrun=("num", "box", "score", "class"),
    ),
    "a tail and an output beside it": Row(
        f"net (float[N,3,8,8] x) => (float[N,4,8,8] u, int32[N,1] num, float[N,9,4] box) {HEADS}"
        "num, box, score, class = BatchedNMSDynamic_TRT <keepTopK = 9> (u, w) }",
        unrun=("num", "box"),
    ),
    "in the middle": Row(
        f"net {INPUT} => {OUTPUT} <{WEIGHTS}, float[7,7] o> {{ {FRONT} "
        f"p = trt.plugins.MultiscaleDeformableAttnPlugin_TRT (c, o) {BACK} }}",
        GIVEN,
        ("a", "d"),
    ),
    "two in a row": Row(
        f"net {INPUT} => {OUTPUT} <{WEIGHTS}> {{ {FRONT} q = trt.plugins.GridSampler3D (c) "
        f"p = trt.plugins.Normalise (q, c) {BACK} }}",
        GIVEN,
        ("a", "d"),
    ),
    "parallel branches": Row(
        f"net {INPUT} => (float[N,5] z, float[N,4,8,8] y) <{WEIGHTS}, float[16,16] l, float[16,5] m>"
        f"{{ {FRONT} p = trt.plugins.GridSampler3D (c) {BACK} t = ReduceMean <axes = [2,3], "
        "keepdims = 0> (r) n = MatMul(t, l) o = Relu(n) z = MatMul(o, m) }",
        GIVEN,
        ("a", "d", "l"),
    ),
    "a shortcut over it": Row(
        f"net {INPUT} => {OUTPUT} <{WEIGHTS}> {{ {FRONT} q = trt.plugins.GridSampler3D (c) "
        f"p = Add(q, c) {BACK} }}",
        {"q": ("N", 8, 8, 8)},
        ("a", "d"),
    ),
    "what it gives is an output too": Row(
        f"net {INPUT} => (float[N,8,8,8] p, float[N,4,8,8] y) <{WEIGHTS}> {{ {FRONT} "
        f"p = trt.plugins.GridSampler3D (c) {BACK} }}",
        {},
        ("a", "d"),
        ("p",),
    ),
    "at the start": Row(
        f"net (uint8[N,20,20,3] x) => {OUTPUT} <{WEIGHTS}> {{ i = trt.plugins.Normalise (x) "
        f"{FRONT.replace('(x, a)', '(i, a)')} p = Relu(c) {BACK} }}",
        {"i": ("N", 3, 8, 8)},
        ("a", "d"),
    ),
    "a weight that it shares": Row(
        f"net {INPUT} => {OUTPUT} <{WEIGHTS}> {{ {FRONT} p = trt.plugins.GridSampler3D (c, d) "
        f"{BACK} }}",
        GIVEN,
        ("a",),
    ),
    "inside of a branch": Row(
        f"net (float[N,3,8,8] x, bool o) => {OUTPUT} <{WEIGHTS}> {{ {FRONT} p = If(o) <"
        "then_branch = yes () => (float[N,8,8,8] i) { i = trt.plugins.GridSampler3D (c) }, "
        f"else_branch = no () => (float[N,8,8,8] j) {{ j = Identity(c) }}> {BACK} }}",
        GIVEN,
        ("a", "d"),
    ),
    "behind an operator of ONNX Runtime": Row(
        f'net {INPUT} => {OUTPUT} <{WEIGHTS}> {{ r = com.microsoft.FusedConv <activation = "Relu", '
        "pads = [1,1,1,1]> (x, a) c = Conv(r, b) p = trt.plugins.GridSampler3D (c) "
        f"{BACK} }}",
        GIVEN,
        ("a", "d"),
    ),
}


def plugin_model(row: Row, *, described: bool = True) -> onnx.ModelProto:
    """Build a model; `described` says whether it tells the shapes of what plugins give."""
    domains = '"trt.plugins" : 1, "com.microsoft" : 1'
    header = f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}, {domains}]>'
    model = onnx.parser.parse_model(header + row.text)
    fill_weights(model, np.random.default_rng(0))
    for name, shape in row.values.items() if described else ():
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def is_plugin(node: onnx.NodeProto) -> bool:
    inner = [own for entry in node.attribute for own in entry.g.node]
    return node.op_type in PLUGINS or any(map(is_plugin, inner))


def read_by(node: onnx.NodeProto) -> set[str]:
    inner = [own for entry in node.attribute for own in entry.g.node]
    return {*node.input, *(name for own in inner for name in own.input)}


def run_parts(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run all but the plugins: give what they read, and what does not come from them.

    Args:
        model: With plugins.
        feed: Its inputs, and what plugins give.
    """
    rest = deepcopy(model)
    plugins = [node for node in model.graph.node if is_plugin(node)]
    given = {name for node in plugins for name in node.output}
    made = {name for node in model.graph.node for name in node.output} - given
    outputs = [port.name for port in model.graph.output if port.name in made]
    outputs += sorted(name for node in plugins for name in read_by(node) & made)
    for field in (rest.graph.node, rest.graph.output, rest.graph.value_info):
        del field[:]
    rest.graph.node.extend(node for node in model.graph.node if not is_plugin(node))
    rest.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(outputs))
    read = {name for node in rest.graph.node for name in node.input}
    fed = {name: array for name, array in feed.items() if name in read}
    known = {port.name for port in rest.graph.input}
    for name in fed.keys() - known:
        kind = helper.np_dtype_to_tensor_dtype(fed[name].dtype)
        rest.graph.input.append(helper.make_tensor_value_info(name, kind, None))
    for port in [port for port in rest.graph.input if port.name not in read]:
        rest.graph.input.remove(port)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(rest.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed), strict=True))


def feed_of(model: onnx.ModelProto, row: Row, batch: int = 3) -> dict[str, np.ndarray]:
    """Draw inputs and what plugins give."""
    rng = np.random.default_rng(1)
    shapes = dict(row.values)
    for port in (*model.graph.input, *model.graph.output):
        kind = port.type.tensor_type
        shapes[port.name] = tuple(dim.dim_value or batch for dim in kind.shape.dim)
    sized = {n: [s if isinstance(s, int) else batch for s in shape] for n, shape in shapes.items()}
    feed = {n: rng.standard_normal(size).astype(np.float32) for n, size in sized.items()}
    for port in model.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(port.type.tensor_type.elem_type)
        feed[port.name] = (feed[port.name] > 0 if kind == np.bool_ else feed[port.name]).astype(
            kind
        )
    return feed


def masked(
    model: onnx.ModelProto, initializers: Mapping[str, Mapping[str, list[int]]]
) -> onnx.ModelProto:
    """Return the model with zeros wherever a plan removes positions of weights."""
    result = deepcopy(model)
    for tensor in result.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        for axis, kept in initializers.get(tensor.name, {}).items():
            gone = np.setdiff1d(np.arange(array.shape[int(axis)]), kept)
            np.moveaxis(array, int(axis), 0)[gone] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return result
