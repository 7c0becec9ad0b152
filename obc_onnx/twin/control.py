"""Subgraphs of control flow as graphs of their own, and the module that runs their twins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto, helper

from obc_onnx.errors import ModelError, UnsupportedOperatorError
from obc_onnx.graph.foreign import inferable
from obc_onnx.graph.model import Graph
from obc_onnx.graph.nested import outer_names
from obc_onnx.graph.operators import CONSTANT
from obc_onnx.graph.shapes import infer_shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from torch import nn

    from obc_onnx.graph.node import Node
    from obc_onnx.graph.shapes import Shape
    from obc_onnx.ops.base.rule import Call

    Kind = tuple[np.dtype[Any], Shape]


_FLOATS = frozenset(
    [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE]
)


def control_module(
    graph: Graph,
    node: Node,
    call: Call,
    kind_of: Callable[[str], Kind],
    build: Callable[[Graph, dict[str, Shape]], nn.Module],
) -> tuple[nn.Module, tuple[str, ...]]:
    """Make the module of a node with subgraphs.

    Weights that only its subgraphs use do not learn: they would not be written back.

    Args:
        graph: The model.
        node: One of its nodes.
        call: How the node is computed.
        kind_of: Element type and shape of a value of the model; only its rank counts.
        build: Builds a twin from a graph and the shapes of its values.
    Returns:
        The module, and the values of the model that it takes behind the node's own inputs.
    Raises:
        UnsupportedOperatorError: The shapes in a subgraph cannot be found, or torch lacks one of
            its operators.
    """
    model, bodies, outputs = graph.outline().model, {}, {}
    used: dict[str, tuple[str, ...]] = {}
    for attribute, formal in call.bodies.items():
        try:
            body, used[attribute] = _body_of(
                model, node.key, attribute, formal, kind_of, graph.aside
            )
        except ModelError as error:
            raise UnsupportedOperatorError(f"{node.label}: {error}") from error
        inner = (*(shape for _, shape in formal), *(kind_of(n)[1] for n in used[attribute]))
        ports = (port.name for port in body.inputs)
        known = _shapes(body, dict(zip(ports, inner, strict=True)))
        bodies[attribute] = build(body, known)
        bodies[attribute].requires_grad_(False)  # noqa: FBT003 - torch's own
        outputs[attribute] = tuple(
            (known.get(port.name, ()), int(helper.np_dtype_to_tensor_dtype(port.dtype)))
            for port in body.outputs
        )
    captured = tuple(dict.fromkeys(name for own in used.values() for name in own))
    module: nn.Module = call.function(
        bodies=bodies,
        captured={key: tuple(map(captured.index, own)) for key, own in used.items()},
        outputs=outputs,
        n_inputs=len(node.inputs),
        n_outputs=len(node.outputs),
        **call.constants,
    )
    return module, captured


def _shapes(graph: Graph, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Find shapes; where sizes follow from numbers that only a run knows, at least ranks of floats.

    A twin looks at no size of theirs. Of whole numbers, which may describe shapes, it does.
    """
    try:
        return infer_shapes(graph, shapes)
    except ModelError:
        inferred = onnx.shape_inference.infer_shapes(inferable(graph.outline().declared())).graph
    known = {name: array.shape for name, array in graph.initializers.items()} | shapes
    for value in (*inferred.value_info, *inferred.output):
        kind = value.type.tensor_type
        sizes = [size.dim_value for size in kind.shape.dim]
        tells = kind.HasField("shape") and (all(sizes) or kind.elem_type in _FLOATS)
        if tells and value.name not in known:
            known[value.name] = tuple(size or 1 for size in sizes)
    return known


def _body_of(
    model: onnx.ModelProto,
    key: str,
    attribute: str,
    formal: tuple[tuple[int, Shape], ...],
    kind_of: Callable[[str], Kind],
    aside: Mapping[str, TensorProto],
) -> tuple[Graph, tuple[str, ...]]:
    """Cut a subgraph out of a model, with the constants that only subgraphs use.

    Returns:
        The subgraph, whose inputs are its formal ones and then what it uses of the graph around it;
        and the names of the latter.
    """
    node = next(node for node in model.graph.node if key in node.output)
    body = onnx.GraphProto()
    body.CopyFrom(next(entry.g for entry in node.attribute if entry.name == attribute))
    outer = set(outer_names(body))
    body.initializer.extend(aside[name] for name in sorted(outer & aside.keys()))
    used = tuple(sorted(outer - aside.keys()))
    ports = [(v.name, *kind) for v, kind in zip(body.input, formal, strict=True)]
    ports += [(n, helper.np_dtype_to_tensor_dtype(kind_of(n)[0]), kind_of(n)[1]) for n in used]
    del body.input[:]
    for name, data_type, shape in ports:
        body.input.append(helper.make_tensor_value_info(name, data_type, [None] * len(shape)))
    _let_outputs_be_computed(body)
    whole = helper.make_model(body, opset_imports=model.opset_import, ir_version=model.ir_version)
    return Graph.from_model(_with_types(whole)), used


def _with_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fill in the types of outputs, which a subgraph may leave out."""
    outputs = [value.name for value in model.graph.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    found = onnx.shape_inference.infer_shapes(inferable(model)).graph.output
    for value, inferred in zip(model.graph.output, found, strict=True):
        value.type.tensor_type.elem_type = inferred.type.tensor_type.elem_type
    return model


def _let_outputs_be_computed(graph: onnx.GraphProto) -> None:
    """Put an Identity behind outputs that no node computes: a graph has to have nodes."""
    made = {name for node in graph.node if node.op_type != CONSTANT for name in node.output}
    for place, value in enumerate(graph.output):
        if value.name not in made:
            fresh = f"{value.name}.{place}.out"
            graph.node.append(helper.make_node("Identity", [value.name], [fresh]))
            value.name = fresh
