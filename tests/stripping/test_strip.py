"""Stripping: what is found dead, constant, equal or unread, what takes its place, and what stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import analyse, assert_close, build, make_feed, relative_error, run_onnx
from nets import draw_samples, model_of
from small import CHAIN

import obc_onnx
from obc_onnx.errors import RequestError, VerificationError
from obc_onnx.graph.model import Graph
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.run.strip import strip
from obc_onnx.stripping.find import Reason
from obc_onnx.stripping.strip import Stripped, strip_graph
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.training.options import Training, TrainingOptions
from obc_onnx.training.stage import sparsify
from obc_onnx.verification import same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Array = np.ndarray
    Shape = tuple[int, ...]
    Found = dict[tuple[str, Reason], tuple[int, ...]]

UNREAD, ZERO, CONSTANT, DUPLICATE = Reason
REORDERED = 5e-6
"""Largest error over RMS of sums in another order."""
BOTH = "float[4,3,1,1] w, float[4] b, float[5,4,3,3] v"


def planted(text: str, change: Callable[[dict[str, Array]], None]) -> Graph:
    """Build a model from ONNX text, with weights that are changed in place."""
    graph = Graph.from_model(build(text))
    arrays = {name: array.copy() for name, array in graph.initializers.items()}
    change(arrays)
    return graph.edit(arrays)


def stripped(graph: Graph, shapes: Mapping[str, Shape] | None = None) -> Stripped:
    """Strip a graph, and raise where it then computes something else on inputs of any size."""
    found = strip_graph(graph, shapes, DEFAULT_RULES, 0)
    for batch, size in ((1, 6), (3, 9)):
        rng = np.random.default_rng(batch)
        feed = {
            port.name: rng.standard_normal(
                [
                    known if isinstance(known, int) else batch if place == 0 else size
                    for place, known in enumerate(port.shape or ())
                ]
            ).astype(port.dtype)
            for port in graph.inputs
        }
        assert_close(run_onnx(found.graph, feed), run_onnx(graph, feed), REORDERED)
    return found


def first_found(found: Stripped) -> Found:
    """Return what the first look at a graph found."""
    rounds = found.rounds[0] if found.rounds else ()
    return {(own.group, own.reason): own.units for own in rounds}


def constant(arrays: dict[str, Array]) -> None:
    arrays["w"][1] = 0
    arrays["b"][1] = 0.7


def in_front(reader: str, weights: str = BOTH, size: str = "8,8", output: str = "N,5,a,b") -> str:
    """Write a convolution and a Relu in front of nodes that read it."""
    return (
        f"net (float[N,3,{size}] x) => (float[{output}] y) <{weights}>"
        f"{{ c = Conv(x, w, b) r = Relu(c) {reader} }}"
    )


def test_a_zero_unit_goes_even_in_front_of_padding() -> None:
    def zero(arrays: dict[str, Array]) -> None:
        arrays["w"][1], arrays["b"][1] = 0, -0.3  # which the Relu makes zero

    found = stripped(planted(in_front("y = Conv<pads=[1,1,1,1]>(r, v)"), zero))
    assert first_found(found) == {("w:0", ZERO): (1,)}
    assert found.graph.producers["y"].inputs == ("r", "v")


def test_a_constant_goes_into_a_bias_that_was_not_there() -> None:
    graph = planted(in_front("y = Conv(r, v)"), constant)
    found = stripped(graph)
    assert first_found(found) == {("w:0", CONSTANT): (1,)}
    bias = found.graph.initializers[found.graph.producers["y"].inputs[2]]
    np.testing.assert_allclose(bias, 0.7 * graph.initializers["v"][:, 1].sum((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("pads", ["pads=[1,1,1,1]", 'auto_pad="SAME_LOWER"', "pads=[0,0,0,1]"])
def test_a_constant_in_front_of_padding_stays(pads: str) -> None:
    found = stripped(planted(in_front(f"y = Conv<{pads}>(r, v)"), constant))
    assert not found.rounds


def test_a_constant_goes_where_no_weight_meets_the_padding() -> None:
    """Of several units, those go whose filters have their middle tap alone."""

    def alone(arrays: dict[str, Array]) -> None:
        arrays["w"][1:3], arrays["b"][1:3] = 0, (0.7, 0.4)
        middle = arrays["v"][:, 1, 1, 1].copy()
        arrays["v"][:, 1] = 0
        arrays["v"][:, 1, 1, 1] = middle

    found = stripped(planted(in_front("y = Conv<pads=[1,1,1,1]>(r, v)"), alone))
    assert first_found(found) == {("w:0", CONSTANT): (1,)}


def test_one_position_says_nothing_of_padding_where_sizes_are_open() -> None:
    text = in_front("y = Conv<pads=[1,1,1,1]>(r, v)", size="H,W")
    assert not stripped(planted(text, constant), {"x": (2, 3, 1, 1)}).rounds
    fixed = in_front("y = Conv<pads=[1,1,1,1]>(r, v)", size="1,1")
    assert first_found(stripped(planted(fixed, constant))) == {("w:0", CONSTANT): (1,)}


@pytest.mark.parametrize(("reduce", "goes"), [("ReduceMean", True), ("ReduceSum", False)])
def test_a_constant_that_depends_on_open_sizes_stays(reduce: str, *, goes: bool) -> None:
    nodes = f"p = {reduce}<keepdims=0>(r, axes) s = MatMul(p, m) y = Add(s, d)"
    text = in_front(nodes, "float[4,3,1,1] w, float[4] b, float[4,5] m, float[5] d", "H,W", "N,5")
    text = text.replace("{", "{ axes = Constant<value_ints=[2,3]>()", 1)
    text = '<ir_version: 10, opset_import: ["" : 18]>' + text
    found = stripped(planted(text, constant), {"x": (2, 3, 4, 4)})
    assert bool(found.rounds) == goes


def test_a_model_that_runs_at_one_size_alone_keeps_its_constants() -> None:
    """The sizes are open, but something inside has those that are given."""
    text = in_front("y = Conv(r, v)", f"{BOTH}, float[1,3,8,8] m", "H,W")
    text = text.replace("c = Conv(x", "a = Add(x, m) c = Conv(a")

    def both(arrays: dict[str, Array]) -> None:
        constant(arrays)
        arrays["w"][2], arrays["b"][2] = 0, -1

    result = strip(planted(text, both), input_shape={"x": (2, 3, 8, 8)})
    assert [own.reason for own in result.report.rounds[0]] == [ZERO]
    assert "runs at one size" in result.report.notes[-1]


def test_constants_go_into_the_sum_behind_a_product() -> None:
    text = (
        "net (float[N,S,6] x) => (float[N,S,5] y) <float[6,8] w, float[8] b, float[8,5] v, float[5] c>"
        "{ p = MatMul(x, w) q = Add(p, b) g = Erf(q) r = MatMul(g, v) y = Add(c, r) }"
    )

    def change(arrays: dict[str, Array]) -> None:
        arrays["w"][:, 3] = 0
        arrays["b"][3] = 0.4

    found = stripped(planted(text, change), {"x": (2, 7, 6)})
    assert first_found(found) == {("w:1", CONSTANT): (3,)}
    assert len(found.graph.nodes) == 5


def test_what_reads_constants_alone_is_constant_in_the_same_round() -> None:
    nodes = "s = Conv(r, v, d) t = Relu(s) y = Conv(t, u)"
    text = in_front(nodes, f"{BOTH}, float[5] d, float[3,5,1,1] u")

    def change(arrays: dict[str, Array]) -> None:
        constant(arrays)
        arrays["v"][2, [0, 2, 3]] = 0
        arrays["d"][2] = 9

    found = first_found(stripped(planted(text, change)))
    assert found[("v:0", CONSTANT)] == (2,)


def test_who_else_uses_a_bias_keeps_it() -> None:
    """Two products share a bias; only one of them reads a constant."""
    text = (
        "net (float[N,3] x) => (float[N,5] y, float[N,5] z)"
        "<float[4,3] w, float[4] b, float[5,4] v, float[5,3] u, float[1,5] c>"
        "{ h = Gemm<transB=1>(x, w, b) r = Relu(h) y = Gemm<transB=1>(r, v, c)"
        "  z = Gemm<transB=1>(x, u, c) }"
    )
    graph = planted(text, constant)
    assert first_found(stripped(graph)) == {("w:0", CONSTANT): (1,)}
    assert strip(graph).report.n_units == 1


def test_a_residual_stream_goes_only_where_all_that_write_it_are_zero() -> None:
    text = (
        "net (float[N,3,8,8] x) => (float[N,5,8,8] y)"
        "<float[4,3,1,1] w, float[4] b, float[4,4,3,3] v, float[4] c, float[5,4,1,1] u>"
        "{ a = Conv(x, w, b) p = Conv<pads=[1,1,1,1]>(a, v, c) r = Relu(p) s = Add(a, r)"
        "  y = Conv(s, u) }"
    )

    def some(*names: str) -> Callable[[dict[str, Array]], None]:
        def change(arrays: dict[str, Array]) -> None:
            for name in names:
                arrays[name][2] = 0

        return change

    assert first_found(stripped(planted(text, some("w", "b", "v", "c")))) == {("w:0", ZERO): (2,)}
    assert not stripped(planted(text, some("w", "b"))).rounds
    assert not stripped(planted(text, some("v", "c"))).rounds


def test_duplicates_are_merged_through_a_norm_and_a_padded_reader() -> None:
    text = in_front("y = Conv<pads=[1,1,1,1]>(r, v)").replace("Relu(c)", "Tanh(n)")
    text = text.replace(BOTH, f"{BOTH}, float[4] g, float[4] h, float[4] mean, float[4] var")
    text = text.replace("r =", "n = BatchNormalization(c, g, h, mean, var) r =")

    def same_rows(arrays: dict[str, Array]) -> None:
        for name in ("w", "b", "g", "h", "mean", "var"):
            arrays[name][3] = arrays[name][1]

    def other_norm(arrays: dict[str, Array]) -> None:
        same_rows(arrays)
        arrays["h"][3] += 1e-3

    found = stripped(planted(text, same_rows))
    assert first_found(found) == {("w:0", DUPLICATE): (3,)}
    assert found.rounds[0][0].equals == (1,)
    assert not stripped(planted(text, other_norm)).rounds


def test_what_one_round_leaves_is_found_in_the_next() -> None:
    """Rows of `v` differ only in what they read of a unit that goes."""
    text = in_front("s = Conv(r, v) t = Relu(s) y = Conv(t, u)", f"{BOTH}, float[3,5,1,1] u")

    def change(arrays: dict[str, Array]) -> None:
        arrays["w"][1], arrays["b"][1] = 0, 0
        arrays["v"][0] = 0
        arrays["v"][4] = arrays["v"][2]
        arrays["v"][4, 1] += 1

    found = stripped(planted(text, change))
    kinds = [{(own.group, own.reason) for own in findings} for findings in found.rounds]
    assert kinds == [{("w:0", ZERO), ("v:0", ZERO)}, {("v:0", DUPLICATE)}]
    assert {name: list(axes[0]) for name, axes in found.kept.items() if 0 in axes} == {
        "w": [0, 2, 3],
        "b": [0, 2, 3],
        "v": [1, 2, 3],
    }
    assert list(found.kept["v"][1]) == [0, 2, 3]


def test_a_weight_that_is_written_too_gets_no_columns() -> None:
    """`v` reads the channels of `w` in one product, and makes as many in another."""
    text = (
        "net (float[N,3] x, float[N,5] z) => (float[N,5] y, float[N,2] q)"
        "<float[4,3] w, float[4] b, float[5,4] v, float[4,2] u>"
        "{ h = Gemm<transB=1>(x, w, b) r = Tanh(h) y = Gemm<transB=1>(r, v)"
        "  p = MatMul(z, v) q = MatMul(p, u) }"
    )

    def change(arrays: dict[str, Array]) -> None:
        arrays["w"][3], arrays["b"][3] = arrays["w"][1], arrays["b"][1]
        arrays["v"][:, 3] = arrays["v"][:, 1]

    graph = planted(text, change)
    assert [group.name for group in analyse(graph).coupling.groups] == ["w:0"]
    found = strip_graph(graph, None, DEFAULT_RULES, 0)
    feed = make_feed(graph, np.random.default_rng(0))
    assert_close(run_onnx(found.graph, feed), run_onnx(graph, feed), REORDERED)


def test_a_layer_that_is_applied_twice_is_stripped_as_one() -> None:
    text = (
        "net (float[N,3,8,8] x, float[N,3,8,8] z) => (float[N,5,6,6] y, float[N,5,6,6] q)"
        f"<{BOTH}, float[5] d>"
        "{ c = Conv(x, w, b) r = Relu(c) y = Conv(r, v, d)"
        "  e = Conv(z, w, b) f = Relu(e) q = Conv(f, v, d) }"
    )

    def change(arrays: dict[str, Array]) -> None:
        constant(arrays)
        arrays["w"][3], arrays["b"][3] = arrays["w"][2], arrays["b"][2]

    found = stripped(planted(text, change))
    assert first_found(found) == {("w:0", CONSTANT): (1,), ("w:0", DUPLICATE): (3,)}
    assert found.graph.initializers["w"].shape[0] == 2


def test_a_weight_that_a_caller_may_set_tells_nothing() -> None:
    graph = planted(in_front("y = Conv(r, v)"), constant)
    model = graph.to_model()
    assert strip(model).report.n_units == 1
    for name in ("w", "b"):
        shape = graph.initializers[name].shape
        kind = onnx.TensorProto.FLOAT
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    assert strip(model).report.n_units == 0


def test_one_unit_is_left_where_all_are_zero() -> None:
    def zero(arrays: dict[str, Array]) -> None:
        arrays["w"][:], arrays["b"][:] = 0, 0

    found = stripped(planted(in_front("y = Conv(r, v, d)", f"{BOTH}, float[5] d"), zero))
    assert found.graph.initializers["w"].shape[0] == 1


def test_a_unit_that_random_inputs_never_wake_stays() -> None:
    """It is proven from weights, not seen in runs: a large input would wake it."""

    def sleeping(arrays: dict[str, Array]) -> None:
        arrays["b"][2] = -1e3

    assert not stripped(planted(in_front("y = Conv(r, v)"), sleeping)).rounds


def test_a_scale_of_zero_makes_a_constant_of_anything() -> None:
    text = in_front("y = Conv(m, v)", f"{BOTH}, float[4,1,1] g")
    text = text.replace("y = Conv", "m = Mul(g, r) y = Conv")

    def change(arrays: dict[str, Array]) -> None:
        arrays["g"][2] = 0

    assert first_found(stripped(planted(text, change))) == {("w:0", ZERO): (2,)}


@pytest.mark.parametrize(("bias", "goes"), [("h", True), ("z", False)])
def test_a_norm_of_scale_zero_is_its_bias_alone(bias: str, *, goes: bool) -> None:
    """Which may be computed, and then varies."""
    text = (
        "net (float[N,3,8,8] x, float[6] q) => (float[N,5,6,6] y)"
        f"<{BOTH}, float[4] g, float[4] h, float[6,4] m, float[4] mean, float[4] var>"
        f"{{ c = Conv(x, w, b) z = MatMul(q, m) n = BatchNormalization(c, g, {bias}, mean, var)"
        "  y = Conv(n, v) }"
    )

    def change(arrays: dict[str, Array]) -> None:
        arrays["g"][2] = 0

    graph = planted(text, change)
    found = strip_graph(graph, None, DEFAULT_RULES, 0)
    assert (("w:0", CONSTANT) in first_found(found)) == goes
    feed = make_feed(graph, np.random.default_rng(0))
    assert_close(run_onnx(found.graph, feed), run_onnx(graph, feed), REORDERED)


def test_what_is_found_is_what_brute_force_finds() -> None:
    """Units whose mask changes no output at all, in a chain with a tenth of its weights."""
    rng = np.random.default_rng(3)

    def sparse(arrays: dict[str, Array]) -> None:
        for name in ("a", "b", "c"):
            filters = rng.random((*arrays[name].shape[:2], 1, 1)) < 0.12
            arrays[name] *= filters

    text = (
        "net (float[N,3,6,6] x) => (float[N,4,6,6] y)"
        "<float[12,3,1,1] a, float[12,12,3,3] b, float[12,12,3,3] c, float[4,12,1,1] d>"
        "{ p = Conv(x, a) q = Tanh(p) r = Conv<pads=[1,1,1,1]>(q, b) s = Tanh(r)"
        "  t = Conv<pads=[1,1,1,1]>(s, c) u = Tanh(t) y = Conv(u, d) }"
    )
    graph = planted(text, sparse)
    found = stripped(graph)
    feed = make_feed(graph, rng)
    coupling = analyse(graph).coupling
    whole = run_onnx(graph, feed)
    dead = {}
    for group in coupling.groups:
        kept = [np.arange(group.size) != unit for unit in range(group.size)]
        masked = [mask_reads(coupling, {group.dim: mask}) for mask in kept]
        same_outputs = [
            run_onnx(one, feed)["y"].tobytes() == whole["y"].tobytes() for one in masked
        ]
        dead[group.name] = np.flatnonzero(same_outputs).tolist()
    gone = {
        f"{name}:0": sorted(set(range(12)) - set(axes[0].tolist()))
        for name, axes in found.kept.items()
        if 0 in axes
    }
    assert {reason for own in found.rounds for reason in [f.reason for f in own]} <= {UNREAD, ZERO}
    assert gone == {name: units for name, units in dead.items() if units}
    assert all(gone.values())


@pytest.mark.parametrize(
    "name", ["fashion_resnet20", "fashion_resnet20_folded", "fashion_mobilenet"]
)
def test_nothing_goes_from_a_dense_trained_network(name: str, models: Path) -> None:
    result = strip(models / f"{name}.onnx")
    assert result.report.rounds == []
    assert result.report.errors["logits"] == 0
    assert "nothing was found" in result.report.notes[-1]


def test_small_weights_go_where_that_is_asked_for_and_the_error_is_told() -> None:
    def small(arrays: dict[str, Array]) -> None:
        arrays["w"][1] *= 1e-5
        arrays["b"][1] = 2e-5

    graph = planted(in_front("y = Conv<pads=[1,1,1,1]>(r, v)"), small)
    assert strip(graph).report.n_units == 0
    result = strip(graph, below=1e-3)
    assert result.report.n_units == 1
    feed = make_feed(graph, np.random.default_rng(5), 4)
    measured = relative_error(run_onnx(result.graph, feed)["y"], run_onnx(graph, feed)["y"])
    assert 0 < result.report.errors["y"] < 1e-3
    assert 0.2 < result.report.errors["y"] / measured < 5
    assert f"{result.report.errors['y']:.3g}" in result.report.notes[-1]
    with pytest.raises(RequestError, match="`below`"):
        strip(graph, below=-1.0)


def test_a_wrong_result_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A constant that is forgotten is found, though it is small beside the outputs."""
    from obc_onnx.stripping.fold import Edits

    def change(arrays: dict[str, Array]) -> None:
        arrays["w"][1], arrays["b"][1] = 0, 1e-4

    graph = planted(in_front("y = Conv(r, v)"), change)
    strip(graph)
    monkeypatch.setattr(Edits, "apply", lambda _, graph: graph)
    with pytest.raises(VerificationError, match="same outputs"):
        strip(graph)


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_other_floats_are_stripped_to_their_own_precision(kind: str) -> None:
    text = (
        "net (float[N,6] x) => (float[N,5] y) <float[6,8] w, float[8] b, float[8,5] v>"
        "{ h = MatMul(x, w) s = Add(h, b) r = Relu(s) y = Gemm(r, v) }"
    )
    model = build(text)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(kind)
        if tensor.name in ("w", "b"):
            array[..., 3] = 0.7 if tensor.name == "b" else 0
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = model.graph.initializer[0].data_type
    result = strip(model)
    assert result.report.rounds[0][0].reason is CONSTANT
    if kind == "float64":
        assert result.report.errors["y"] < 1e-14


def test_a_constant_in_front_of_a_computed_weight_gets_a_bias_of_the_right_type() -> None:
    text = in_front("q = DequantizeLinear(v, scale) y = Conv(r, q)", "float[4,3,1,1] w, float[4] b")
    integers = np.random.default_rng(0).integers(-90, 90, (5, 4, 3, 3), np.int8)
    graph = Graph.from_model(build(text, {"v": integers, "scale": 0.02}))
    arrays = {name: graph.initializers[name].copy() for name in ("w", "b")}
    constant(arrays)
    found = stripped(graph.edit(arrays))
    assert first_found(found) == {("w:0", CONSTANT): (1,)}


@pytest.mark.parametrize(
    "drops",
    [
        "start = Constant<value_ints=[0]>() end = Constant<value_ints=[3]>() d = Slice(r, start, end, one)",
        "places = Constant<value_ints=[3, 0, 1]>() d = Gather<axis=1>(r, places)",
    ],
    ids=["Slice", "Gather"],
)
def test_what_nothing_takes_is_unread(drops: str) -> None:
    weights = "float[6,3,1,1] w, float[6] b, float[5,3,3,3] v"
    text = in_front(f"one = Constant<value_ints=[1]>() {drops} y = Conv(d, v)", weights)
    found = stripped(Graph.from_model(build(text)))
    ((findings),) = found.rounds
    assert {own.reason for own in findings} == {UNREAD}
    assert found.graph.initializers["w"].shape[0] < 6


def test_a_computed_factor_of_zero_is_not_called_unread() -> None:
    """Queries and keys of no width: the score of two values is a product without a weight."""
    text = (
        "net (float[N,5,6] x) => (float[N,5,5] y) <float[6,4] q, float[6,4] k>"
        "{ a = MatMul(x, q) b = MatMul(x, k) c = Transpose<perm=[0,2,1]>(b) y = MatMul(a, c) }"
    )

    def change(name: str) -> Callable[[dict[str, Array]], None]:
        def zero(arrays: dict[str, Array]) -> None:
            arrays[name][:, 2] = 0

        return zero

    for name in ("q", "k"):
        assert first_found(stripped(planted(text, change(name)))) == {("q:1", ZERO): (2,)}


def test_the_check_plants_mistakes_and_allows_a_few_roundings() -> None:
    graph, _, coupling = analyse(build(CHAIN))
    feed = make_feed(graph, np.random.default_rng(0), 4)
    check = same.check_same("same outputs", graph, graph, [feed], coupling)
    assert (check.planted, check.caught, check.error) == (3, 3, 0.0)
    assert check.tolerance < 1e-5


def test_the_same_file_twice_is_the_same_bytes(tmp_path: Path) -> None:
    graph = planted(in_front("y = Conv(r, v)"), constant)
    for name in ("one", "two"):
        strip(graph).save(tmp_path / f"{name}.onnx", tmp_path / f"{name}.json")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_an_old_model_that_lists_its_weights_is_stripped() -> None:
    """Before version 4 of the format every initializer is an input too, and none may be set."""
    model = planted(in_front("y = Conv(r, v)"), constant).to_model()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        port = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(port)
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", 8))
    result = obc_onnx.strip(model)
    assert result.report.n_units == 1
    onnx.checker.check_model(result.model)


def test_units_that_sparse_training_has_shrunk_go_for_free() -> None:
    graph, _, coupling = analyse(model_of("norm"))
    samples = draw_samples(graph, 40, labelled=True)
    options = TrainingOptions(epochs=0, sparse_epochs=80, batch_size=8, lr=0.02, sparse_reg=0.05)
    sparse, _ = sparsify(coupling, samples, Training(options, 0, "cpu"))
    assert strip(sparse).report.n_units == 0
    report = strip(sparse, below=1e-6).report
    assert report.n_units >= 4
    assert (report.macs.after or 0) < 0.6 * (report.macs.before or 0)
    assert report.errors["y"] < 1e-5
