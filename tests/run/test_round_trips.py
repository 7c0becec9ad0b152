"""How often a model is copied and written on the way, and that its numbers go when unused."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from conftest import ROOT
from helpers import analyse, build, random_keep
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS, model_of
from small import invoke

import obc_onnx.graph.model as graph_module
from obc_onnx.coupling.members import Operands
from obc_onnx.errors import InvariantError
from obc_onnx.graph.model import Graph
from obc_onnx.measuring import noise
from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.surgery.cut import outline_cut, remove_units

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

MODELS = ROOT / "models"
RESNET = MODELS / "fashion_resnet20.onnx"
WIDE = "net (float[N,40] x) => (float[N,40] y) <float[40,40] w> { p = MatMul(x, w) y = Relu(p) }"
MOST_EXPORTS = 3
"""What is read back and checked, what is written, and one to spare."""
MOST_COPIES = 8
"""Of the graph that surgery works on: masks need one each, and so does what is read back."""


class Counted:
    """Counts calls that pass a test."""

    def __init__(self, function: Any, counts: Any = lambda *_: True) -> None:
        self.calls, self._function, self._counts = 0, function, counts

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += bool(self._counts(*args))
        return self._function(*args, **options)


def is_whole(_skeleton: Any, arrays: Mapping[str, NDArray], *others: Any) -> bool:
    """Say whether `export` is asked for large weights too."""
    left_out = others[3] if len(others) > 3 else ()
    return any(array.size > 1024 and name not in left_out for name, array in arrays.items())


@pytest.mark.parametrize("target", ["--target-macs", "--target-size"])
def test_a_compression_hardly_ever_writes_the_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    exports = Counted(graph_module.export, is_whole)
    copy = gs.Graph.copy
    copies: list[gs.Graph] = []
    monkeypatch.setattr(graph_module, "export", exports)
    monkeypatch.setattr(gs.Graph, "copy", lambda *args: copies.append(args[0]) or copy(*args))
    command = ("compress", RESNET, "-o", tmp_path / "small.onnx", "--no-latency", target, "0.6")
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    assert 1 <= exports.calls <= MOST_EXPORTS
    assert 1 <= len(copies) <= MOST_COPIES


def test_a_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = Counted(onnx.load)
    monkeypatch.setattr(onnx, "load", parsed)
    Graph.load(RESNET)
    assert parsed.calls == 1


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("net", [*NETS, *sorted(path.name for path in MODELS.glob("*.onnx"))])
def test_sizes_are_those_of_what_is_written(net: str, *, apart: bool) -> None:
    model = model_of(net) if net in NETS else onnx.load(MODELS / net)
    of = analyse(model).coupling
    for seed in range(3):
        keep = random_keep(of, np.random.default_rng(seed), 0.7)
        pruned = remove_units(of, keep)
        written = pruned.to_model() if apart else pruned.written()
        assert outline_cut(of, keep).size_bytes(apart=apart) == written.ByteSize()
        assert pruned.size_bytes(apart=apart) == len(written.SerializeToString())


@settings(max_examples=40, deadline=None)
@given(
    width=st.sampled_from([41, 63, 64, 127, 128, 129, 724, 725]),
    dtype=st.sampled_from([np.float32, np.float16, np.float64]),
    name=st.sampled_from(["w", "w" * 127, "w" * 128]),
    note=st.sampled_from(["", "said", "s" * 128]),
    ir_version=st.sampled_from([3, 8]),
)
def test_sizes_are_exact_where_lengths_take_another_byte(
    width: int, dtype: Any, name: str, note: str, ir_version: int
) -> None:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    tensor = onnx.numpy_helper.from_array(np.ones((width, width), dtype), name)
    tensor.doc_string = note
    ports = [onnx.helper.make_tensor_value_info(n, kind, ["N", width]) for n in ("x", "y")]
    listed = onnx.helper.make_tensor_value_info(name, kind, [width, width])
    inputs = [ports[0], listed] if ir_version == 3 else [ports[0]]
    node = onnx.helper.make_node("MatMul", ["x", name], ["y"])
    net = onnx.helper.make_graph([node], "net", inputs, [ports[1]], [tensor])
    graph = Graph.from_model(onnx.helper.make_model(net, ir_version=ir_version))
    assert graph.size_bytes() == graph.written().ByteSize()
    cut = graph.edit({name: np.ones((width, width - 40), dtype)})
    assert cut.size_bytes() == cut.written().ByteSize()


@pytest.mark.parametrize("apart", [False, True])
def test_sizes_above_the_limit_of_a_message_are_those_of_both_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, apart: bool
) -> None:
    of = analyse(onnx.load(RESNET)).coupling
    keep = random_keep(of, np.random.default_rng(0), 0.7)
    monkeypatch.setattr(graph_module, "MAX_PROTOBUF_BYTES", 1000)
    pruned = remove_units(of, keep)
    pruned.save(tmp_path / "model.onnx")
    written = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert outline_cut(of, keep).size_bytes() == written
    both = (graph.size_bytes(apart=apart) for graph in (outline_cut(of, keep), pruned))
    assert next(both) == next(both)


def test_a_size_is_asked_for_without_cutting_large_weights() -> None:
    of = analyse(onnx.load(RESNET)).coupling
    keep = random_keep(of, np.random.default_rng(0), 0.9)
    outlined, pruned = outline_cut(of, keep), remove_units(of, keep)
    large = of.kept_positions(keep).keys() & of.graph.left_out
    assert large
    for name, array in pruned.initializers.items():
        found = outlined.initializers[name]
        assert (found.shape, found.dtype) == (array.shape, array.dtype)
        assert found.any() == (name not in large and array.any())


def test_numbers_go_with_the_last_graph_that_holds_them_and_not_when_cycles_are_collected() -> None:
    graph = Graph.from_model(build(WIDE))
    gc.disable()
    try:
        rewired = graph.edit({"v": np.ones((40, 40), np.float32)}, None, {("p", 1): "v"})
        changed = graph.edit({"w": np.ones((40, 40), np.float32)})
        gone = [weakref.ref(g.initializers[n]) for g, n in ((rewired, "v"), (changed, "w"))]
        rewired.outline(), changed.outline()
        del rewired, changed
        assert [found() for found in gone] == [None, None]
    finally:
        gc.enable()


def test_other_numbers_do_not_copy_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph.from_model(build(WIDE))
    monkeypatch.setattr(gs.Graph, "copy", None)
    changed = graph.edit({"w": np.zeros((40, 30), np.float32)})
    assert changed.initializers["w"].shape == (40, 30)
    assert graph.initializers["w"].shape == (40, 40)
    (tensor,) = changed.to_model().graph.initializer
    assert list(tensor.dims) == [40, 30]


def test_a_structure_has_no_numbers_to_be_taken_for_those_of_a_graph() -> None:
    graph = Graph.from_model(build(WIDE))
    with pytest.raises(InvariantError, match="ask the graph"):
        _ = graph._structure._surgeon.tensors()["w"].values


def test_weights_are_moved_piece_by_piece_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph.from_model(build(WIDE))
    found = []
    for piece in (2**20, 7):
        monkeypatch.setattr(noise, "_AT_A_TIME", piece)
        moved = noise.disturbed(graph, np.random.default_rng(3)).initializers["w"]
        found.append(moved.tobytes())
    assert found[0] == found[1] != graph.initializers["w"].tobytes()


def test_weights_are_scored_one_at_a_time() -> None:
    """All of them in float64 would take twice the size of the model, and their squares again."""
    layers = "".join(f" a{i + 1} = MatMul(a{i}, w{i})" for i in range(12))
    weights = ", ".join(f"float[128,128] w{i}" for i in range(12))
    text = f"net (float[N,128] x) => (float[N,128] y) <{weights}> {{ a0 = Relu(x) {layers} "
    of = analyse(build(f"{text} y = Relu(a12) }}")).coupling
    make_criterion("l2").score(Scene(of), {})
    tracemalloc.start()
    make_criterion("l2").score(Scene(of), {})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 128 * 128 * 8


def test_each_look_at_a_weight_gives_an_array_of_its_own() -> None:
    of = analyse(model_of(next(iter(NETS)))).coupling
    operands = Operands(of, {})
    name = next(iter(operands))
    before = of.graph.initializers[name].copy()
    operands[name][...] = 0
    np.testing.assert_array_equal(operands[name], before.astype(np.float64))
    assert len(operands) == len(list(operands))
    assert "no such weight" not in operands
