"""Which operators end the process when onnx infers shapes behind what it does not know."""

from __future__ import annotations

import faulthandler
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from onnx import AttributeProto, TensorProto, ValueInfoProto, defs, helper, shape_inference

from obc_onnx.graph.node import domain_of
from obc_onnx.graph.operators import READING_UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

MOST_INPUTS = 8
BODY = helper.make_graph([], "body", [], [])
VALUES: dict[Any, object] = {
    AttributeProto.INT: 1, AttributeProto.INTS: [1], AttributeProto.FLOAT: 1.0,
    AttributeProto.FLOATS: [1.0], AttributeProto.STRING: b"a", AttributeProto.STRINGS: [b"a"],
    AttributeProto.TENSOR: helper.make_tensor("t", TensorProto.FLOAT, [1], [1.0]),
    AttributeProto.GRAPH: BODY,
}  # fmt: skip
"""What attributes of each type are set to."""


def forms(schema: defs.OpSchema) -> Iterator[bytes]:
    """Yield models in which all inputs of an operator come from one that nobody knows."""
    known = {n: VALUES[a.type] for n, a in schema.attributes.items() if a.type in VALUES}
    needed = {name: known[name] for name in known if schema.attributes[name].required}
    for attributes in (needed, known, *({**needed, name: known[name]} for name in known)):
        for count in {schema.min_input, min(schema.max_input, MOST_INPUTS)}:
            yield model_of(schema, count, attributes).SerializeToString()


def model_of(
    schema: defs.OpSchema, n_inputs: int, attributes: dict[str, object]
) -> onnx.ModelProto:
    inputs = [f"u{i}" for i in range(n_inputs)]
    outputs = [f"y{i}" for i in range(min(max(schema.min_output, 1), MOST_INPUTS))]
    nodes = [helper.make_node("Unknown", ["x"], [name], domain="own") for name in inputs]
    node = helper.make_node(schema.name, inputs, outputs, domain=schema.domain, **attributes)
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])]
    results = [ValueInfoProto(name=name) for name in outputs]
    versions = {"own": 1, "": defs.onnx_opset_version(), schema.domain: schema.since_version}
    return helper.make_model(
        helper.make_graph([*nodes, node], "net", ports, results),
        opset_imports=[helper.make_opsetid(*entry) for entry in versions.items()],
    )


def ends_the_process(schema: defs.OpSchema) -> bool:
    """Infer shapes of every form in a process of its own."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # which pytest turns on
        for form in forms(schema):
            for strict in (False, True):
                try:
                    shape_inference.infer_shapes(form, strict, strict, strict)
                except (shape_inference.InferenceError, RuntimeError):
                    continue
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork")
def test_the_operators_that_end_the_process_are_those_that_are_kept_from_it() -> None:
    schemas = defs.get_all_schemas_with_history()
    found = {(domain_of(s.domain), s.name) for s in schemas if ends_the_process(s)}
    assert len(schemas) > 500
    assert found == READING_UNKNOWN
