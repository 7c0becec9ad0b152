"""Constants that a file stores without their zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import analyse, make_feed, run_onnx, run_twin
from onnx import TensorProto, helper, numpy_helper

from obc_onnx.errors import ModelError
from obc_onnx.graph.model import Graph
from obc_onnx.run.api import compress, verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
WEIGHT = np.where(RNG.random((12, 8)) < 0.7, 0, RNG.standard_normal((12, 8))).astype(np.float32)


def linear(array: NDArray) -> onnx.SparseTensorProto:
    places = np.flatnonzero(array)
    return sparse(array, places)


def by_axis(array: NDArray) -> onnx.SparseTensorProto:
    return sparse(array, np.argwhere(array))


def sparse(array: NDArray, indices: NDArray) -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(array[np.nonzero(array)], "w")
    values.doc_string = "pruned before"
    return helper.make_sparse_tensor(
        values, numpy_helper.from_array(indices.astype(np.int64), "i"), list(array.shape)
    )


def as_initializer(tensor: onnx.SparseTensorProto) -> onnx.ModelProto:
    model = network([])
    model.graph.sparse_initializer.append(tensor)
    return model


def as_constant(tensor: onnx.SparseTensorProto) -> onnx.ModelProto:
    return network([helper.make_node("Constant", [], ["w"], "named", sparse_value=tensor)])


def network(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    first, last = (RNG.standard_normal(s).astype(np.float32) for s in ((8, 6), (4, 12)))
    nodes = [
        *nodes,
        helper.make_node("Gemm", ["x", "v"], ["p"], transB=1),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Gemm", ["q", "w"], ["r"], transB=1),
        helper.make_node("Tanh", ["r"], ["s"]),
        helper.make_node("Gemm", ["s", "u"], ["y"], transB=1),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (("x", 6), ("y", 4))
    ]
    arrays = [numpy_helper.from_array(first, "v"), numpy_helper.from_array(last, "u")]
    graph = helper.make_graph(nodes, "net", ports[:1], ports[1:], arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


Holder = "Callable[[onnx.SparseTensorProto], onnx.ModelProto]"
HOLDERS = {"initializer": as_initializer, "Constant": as_constant}
SPELLINGS = {"linear": linear, "by axis": by_axis}


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("holder", HOLDERS)
def test_they_are_read_as_what_they_stand_for(holder: str, spelling: str) -> None:
    model = HOLDERS[holder](SPELLINGS[spelling](WEIGHT))
    graph = Graph.from_model(model)
    np.testing.assert_array_equal(graph.initializers["w"], WEIGHT)
    feed = make_feed(graph, np.random.default_rng(1))
    (expected,) = (
        session(as_initializer(linear(WEIGHT))).run(None, feed)
        if holder == "x"
        else (run_onnx(graph, feed)["y"],)
    )
    found = run_twin(graph, analyse(graph).shapes, feed)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("holder", HOLDERS)
def test_they_are_cut_and_written_sparse_again(holder: str) -> None:
    model = HOLDERS[holder](linear(WEIGHT))
    result = compress(model, budget=0.6, criterion="l2")
    written = result.model
    onnx.checker.check_model(written)
    assert "w" not in {tensor.name for tensor in written.graph.initializer}
    assert len(written.graph.sparse_initializer) == (holder == "initializer")
    kept = result.plan.initializers["w"]
    cut = WEIGHT[np.ix_(kept["0"], kept["1"])]
    np.testing.assert_array_equal(Graph.from_model(written).initializers["w"], cut)
    feed = make_feed(result.graph, np.random.default_rng(1))
    (found,) = session(written).run(None, feed)
    np.testing.assert_allclose(found, run_onnx(result.graph, feed)["y"], rtol=1e-5, atol=1e-6)
    checks = verify(model, Graph.from_model(written), result.plan)
    assert all(check.passed for check in checks)
    assert Graph.from_model(written).notes["w"].doc_string == "pruned before"


@pytest.mark.parametrize("holder", HOLDERS)
def test_one_that_has_been_filled_is_written_dense(holder: str) -> None:
    graph = Graph.from_model(HOLDERS[holder](linear(WEIGHT)))
    written = graph.edit({"w": WEIGHT + 1}).written()
    assert not written.graph.sparse_initializer
    assert {tensor.name for tensor in written.graph.initializer} == {"u", "v", "w"}
    assert all(node.op_type != "Constant" for node in written.graph.node)


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("indices", [[[0, 99]], [0, 10**6]], ids=["an axis", "linear"])
def test_indices_that_do_not_fit_are_refused(holder: str, indices: list) -> None:
    values = numpy_helper.from_array(np.ones(len(indices), np.float32), "w")
    places = numpy_helper.from_array(np.asarray(indices, np.int64), "i")
    tensor = onnx.SparseTensorProto(values=values, indices=places, dims=WEIGHT.shape)
    with pytest.raises(ModelError, match="sparse constant 'w' of shape"):
        Graph.from_model(HOLDERS[holder](tensor))
