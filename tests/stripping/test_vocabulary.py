"""Vocabularies that lose rows: which embeddings, what ids become of, and what outputs are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers import analyse, build, run_onnx
from hypothesis import given
from hypothesis import strategies as st

from obc_onnx.errors import DataError, ModelError, RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.run.strip import strip
from obc_onnx.samples.samples import Samples
from obc_onnx.stripping.options import Vocabulary
from obc_onnx.verification.same import check_same
from obc_onnx.verification.vocabulary import check_others, check_put_back, check_rows

if TYPE_CHECKING:
    from obc_onnx.report.stripping import Stripping

    Array = np.ndarray

ROWS, KEPT = 10, (1, 3, 4, 8)
LOWEST = np.finfo(np.float32).min
LOGITS = "net (int64[N,L] ids) => (float[N,L,10] y) <float[10,4] t>"
TIED = f"{LOGITS} {{ h = Gather(t, ids) u = Transpose<perm=[1,0]>(t) y = MatMul(h, u) }}"
BIASED = (
    "net (int64[N,L] ids) => (float[N,L,10] y) <float[10,4] t, float[10] b>"
    "{ h = Gather(t, ids) u = Transpose<perm=[1,0]>(t) z = MatMul(h, u) y = Add(z, b) }"
)
UNTIED = (
    "net (int64[N,L] ids) => (float[N,L,10] y) <float[10,4] t, float[4,10] w>"
    "{ h = Gather(t, ids) y = MatMul(h, w) }"
)
PLAIN = (
    "net (int64[N,L] ids) => (float[N,L,4] y) <float[10,4] t> { h = Gather(t, ids) y = Relu(h) }"
)
TWO_INPUTS = (
    "net (int64[N,L] words, int64[N,L] kinds) => (float[N,L,4] y) <float[10,4] t, float[6,4] k>"
    "{ a = Gather(t, words) b = Gather(k, kinds) y = Add(a, b) }"
)


def cut(
    model: str | Graph | onnx.ModelProto, ids: Any = KEPT, shape: Any = (2, 6), **options: Any
) -> tuple[Graph, Stripping]:
    """Cut the vocabulary of a model; inputs are of one shape."""
    graph = model if isinstance(model, Graph) else None
    if graph is None:
        graph = Graph.from_model(build(model) if isinstance(model, str) else model)
    sizes = {port.name: shape for port in graph.inputs}
    options.setdefault("inputs", ())
    return graph, strip(graph, vocabulary=Vocabulary(ids, **options), input_shape=sizes)


def draw(names: tuple[str, ...] = ("ids",), kept: Any = KEPT, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.choice(kept, (3, 5)).astype(np.int64) for name in names}


def test_the_rows_of_other_ids_go_and_outputs_stay_to_the_bit() -> None:
    graph, found = cut(PLAIN)
    table = graph.initializers["t"]
    np.testing.assert_array_equal(found.graph.initializers["t"], table[list(KEPT)])
    feed = draw()
    np.testing.assert_array_equal(
        run_onnx(found.graph, feed)["y"], np.maximum(table[feed["ids"]], 0)
    )
    assert found.graph.inputs == graph.inputs
    assert found.graph.outputs == graph.outputs
    assert found.report.vocabulary is not None
    (rows,) = found.report.vocabulary.tables
    assert (rows.name, rows.before, rows.after) == ("t", ROWS, len(KEPT))
    assert found.report.initializers["t"] == {"0": list(KEPT)}
    assert found.report.vocabulary.bytes_saved == 6 * 4 * 4 - ROWS * 8


def test_an_id_that_went_is_refused_when_the_model_runs() -> None:
    _, found = cut(PLAIN)
    for gone in sorted(set(range(ROWS)) - set(KEPT)):
        with pytest.raises(ModelError, match="out of data bounds"):
            run_onnx(found.graph, {"ids": np.array([[3, gone]])})


def test_an_id_that_went_is_taken_as_another_one() -> None:
    graph, found = cut(PLAIN, unknown=3)
    ids = np.arange(ROWS)[None]
    as_known = np.where(np.isin(ids, KEPT), ids, 3)
    expected = np.maximum(graph.initializers["t"][as_known], 0)
    np.testing.assert_array_equal(run_onnx(found.graph, {"ids": ids})["y"], expected)


def test_ids_below_zero_still_count_from_the_end() -> None:
    graph, found = cut(PLAIN, ids=[1, 9])
    expected = np.maximum(graph.initializers["t"][[[-1, 1]]], 0)
    np.testing.assert_array_equal(
        run_onnx(found.graph, {"ids": np.array([[-1, 1]])})["y"], expected
    )


@pytest.mark.parametrize("text", [TIED, BIASED])
def test_a_tied_head_goes_with_it_and_is_put_back(text: str) -> None:
    graph, found = cut(text)
    feed = draw()
    table, bias = graph.initializers["t"], graph.initializers.get("b", np.zeros(ROWS))
    expected = table[feed["ids"]] @ table.T + bias
    expected[..., [i for i in range(ROWS) if i not in KEPT]] = LOWEST
    np.testing.assert_allclose(run_onnx(found.graph, feed)["y"], expected, rtol=1e-5, atol=1e-6)
    assert found.graph.initializers["t"].shape == (len(KEPT), 4)
    assert found.graph.outputs == graph.outputs
    (head,) = found.report.vocabulary.heads
    assert (head.output, head.axis, head.tied, head.narrow) == ("y", 2, True, False)


def test_a_head_is_left_narrow_on_request() -> None:
    graph, found = cut(BIASED, narrow_head=True)
    feed = draw()
    table = graph.initializers["t"]
    expected = (table[feed["ids"]] @ table.T + graph.initializers["b"])[..., KEPT]
    np.testing.assert_allclose(run_onnx(found.graph, feed)["y"], expected, rtol=1e-5, atol=1e-6)
    assert found.graph.outputs[0].shape == ("N", "L", len(KEPT))
    assert {node.op_type for node in found.graph.nodes} == {node.op_type for node in graph.nodes}


def test_a_transposed_copy_of_the_table_is_a_tied_head() -> None:
    model = build(UNTIED)
    table, weight = model.graph.initializer
    copy = onnx.numpy_helper.to_array(table).T.copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(copy, weight.name))
    _, found = cut(model)
    assert found.graph.initializers["w"].shape == (4, len(KEPT))
    assert found.report.vocabulary.heads[0].tied


def test_an_untied_head_is_cut_on_request_alone() -> None:
    graph, found = cut(UNTIED)
    assert found.graph.initializers["w"].shape == (4, ROWS)
    np.testing.assert_array_equal(run_onnx(found.graph, draw())["y"], run_onnx(graph, draw())["y"])
    graph, found = cut(UNTIED, untied_head=True)
    assert found.graph.initializers["w"].shape == (4, len(KEPT))
    expected = run_onnx(graph, draw())["y"]
    expected[..., [i for i in range(ROWS) if i not in KEPT]] = LOWEST
    np.testing.assert_allclose(run_onnx(found.graph, draw())["y"], expected, rtol=1e-5, atol=1e-6)


def test_what_else_reads_an_output_reads_it_as_it_was_computed() -> None:
    """The second output is positions of the first one, each for itself."""
    text = (
        "net (int64[N,L] ids) => (float[N,L,10] y, float[N,L,10] p) <float[10,4] t>"
        "{ h = Gather(t, ids) u = Transpose<perm=[1,0]>(t) y = MatMul(h, u) p = Sigmoid(y) }"
    )
    graph, found = cut(text)
    before, after = run_onnx(graph, draw()), run_onnx(found.graph, draw())
    gone = [i for i in range(ROWS) if i not in KEPT]
    for name in ("y", "p"):
        np.testing.assert_allclose(after[name][..., KEPT], before[name][..., KEPT], rtol=1e-5)
        assert (after[name][..., gone] == LOWEST).all()


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        ("z = MatMul(h, u) y = Softmax(z)", "softmax|Softmax"),
        ("z = MatMul(h, u) y = LayerNormalization(z, ones, ones)", "mean and variance"),
        ("z = MatMul(h, u) m = ReduceSum(z, last) y = Sub(z, m)", "combines all positions"),
        ("z = MatMul(h, u) m = ReduceMean<axes=[2]>(z) y = Sub(z, m)", "ReduceMean"),
        ("z = MatMul(h, u) i = ArgMax<axis=2>(z) f = Cast<to=1>(i) y = Add(z, f)", "ArgMax"),
        ("z = MatMul(h, u) f = Gather<axis=2>(z, zero) y = Add(z, f)", "'f' holds positions"),
    ],
)
def test_a_head_that_mixes_the_vocabulary_keeps_all_of_it(behind: str, reason: str) -> None:
    text = f"{LOGITS} {{ h = Gather(t, ids) u = Transpose<perm=[1,0]>(t) {behind} }}"
    constants = {"last": [2], "zero": [0], "ones": np.ones(ROWS, np.float32)}
    model = build(text, {name: value for name, value in constants.items() if name in behind})
    with pytest.raises(RequestError, match=reason):
        cut(model)


def test_embeddings_that_read_the_same_ids_share_what_numbers_them() -> None:
    text = (
        "net (int64[N,L] ids) => (float[N,L,4] y) <float[10,4] t, float[10,4] k>"
        "{ a = Gather(t, ids) b = Gather(k, ids) y = Add(a, b) }"
    )
    graph, found = cut(text)
    assert sum(node.op_type == "Gather" for node in found.graph.nodes) == 3
    assert len(found.graph.initializers) == 3
    np.testing.assert_array_equal(run_onnx(found.graph, draw())["y"], run_onnx(graph, draw())["y"])


def test_the_input_of_a_vocabulary_is_named_where_several_may_hold_it() -> None:
    with pytest.raises(RequestError, match=r"'words' picks of 10 rows of 't'; input 'kinds'"):
        cut(TWO_INPUTS, ids=[1, 3])
    graph, found = cut(TWO_INPUTS, inputs=("words",))
    feed = {"words": draw()["ids"], "kinds": np.full((3, 5), 5)}
    np.testing.assert_array_equal(run_onnx(found.graph, feed)["y"], run_onnx(graph, feed)["y"])
    assert found.graph.initializers["k"].shape == (6, 4)
    with pytest.raises(RequestError, match="'masks' has no embedding"):
        cut(TWO_INPUTS, inputs=("masks",))


def test_an_embedding_without_a_row_for_an_id_is_not_of_the_vocabulary() -> None:
    _, found = cut(TWO_INPUTS, ids=[1, 8])
    assert found.report.vocabulary.inputs == ["words"]


def test_inputs_that_share_a_table_are_cut_together_or_not_at_all() -> None:
    text = (
        "net (int64[N,L] left, int64[N,L] right) => (float[N,L,4] y) <float[10,4] t>"
        "{ a = Gather(t, left) b = Gather(t, right) y = Add(a, b) }"
    )
    with pytest.raises(RequestError, match="the gathered axis of Gather 'b'"):
        cut(text, inputs=("left",))
    graph, found = cut(text, inputs=("left", "right"))
    feed = {**draw(("left",)), **draw(("right",), seed=1)}
    np.testing.assert_array_equal(run_onnx(found.graph, feed)["y"], run_onnx(graph, feed)["y"])
    assert len(found.graph.initializers) == 2


def test_ids_of_several_inputs_that_are_joined_are_named_together() -> None:
    text = (
        "net (int64[2,6] left, int64[2,6] right) => (float[2,12,4] y) <float[10,4] t>"
        "{ i = Concat<axis=1>(left, right) y = Gather(t, i) }"
    )
    with pytest.raises(RequestError, match="'t' is read by ids of input 'right' too"):
        cut(text, inputs=("left",))
    graph, found = cut(text, inputs=("left", "right"))
    rng = np.random.default_rng(0)
    feed = {name: rng.choice(KEPT, (2, 6)) for name in ("left", "right")}
    np.testing.assert_array_equal(run_onnx(found.graph, feed)["y"], run_onnx(graph, feed)["y"])


@pytest.mark.parametrize(
    "front",
    [
        "i = Cast<to=6>(ids)",
        "j = Cast<to=6>(ids) i = Identity(j)",
        "s = Shape(ids) i = Reshape(ids, s)",
        "j = Unsqueeze(ids, one) i = Squeeze(j, one)",
        "m = Equal(ids, three) i = Where(m, three, ids)",
        "i = Concat<axis=1>(ids, threes)",
        "i = Slice(ids, zero, two, one)",
    ],
)
def test_ids_are_followed_through_what_moves_them(front: str) -> None:
    output = "y = Relu(h)"
    text = f"net (int64[2,6] ids) => (float[2,k,4] y) <float[10,4] t> {{ {front} h = Gather(t, i) {output} }}"
    constants = {
        "one": [1],
        "zero": [0],
        "two": [2],
        "three": [3],
        "threes": np.full((2, 1), 3),
    }
    model = build(text, {name: v for name, v in constants.items() if f"{name}" in front})
    graph, found = cut(model, ids=[1, 8])
    constant = "three" in front
    assert found.report.vocabulary.ids == ([1, 3, 8] if constant else [1, 8])
    feed = {"ids": np.random.default_rng(0).choice([1, 8], (2, 6))}
    np.testing.assert_array_equal(run_onnx(found.graph, feed)["y"], run_onnx(graph, feed)["y"])


@pytest.mark.parametrize(
    ("front", "how"),
    [
        ("i = Add(ids, one)", "Add 'i'"),
        ("i = Clip(ids, one, two)", "Clip 'i'"),
        ("f = Cast<to=1>(ids) i = Cast<to=7>(f)", "Cast 'f'"),
        ("i = Gather(one, ids)", "Gather 'i'"),
        ("m = Mul(ids, one) i = Where(c, ids, m)", "Mul 'm'"),
    ],
)
def test_numbers_that_are_computed_of_ids_are_no_ids(front: str, how: str) -> None:
    text = f"net (int64[2,6] ids) => (float[2,6,4] y) <float[10,4] t> {{ {front} h = Gather(t, i) y = Relu(h) }}"
    constants = {"one": 1, "two": 2, "c": np.array([True])}
    if "Gather" in front:
        constants["one"] = np.arange(10)
    used = {
        name: np.asarray(v) for name, v in constants.items() if name in front.replace("Cast", "")
    }
    with pytest.raises(RequestError, match=f"no embedding whose vocabulary can be cut.*{how}"):
        cut(build(text, used))


def test_an_integer_type_that_cannot_hold_all_ids_is_refused() -> None:
    text = (
        "net (int64[2,6] ids) => (float[2,6,4] y) <float[300,4] t>"
        "{ j = Cast<to=3>(ids) i = Cast<to=7>(j) h = Gather(t, i) y = Relu(h) }"
    )
    with pytest.raises(RequestError, match="a type that ends at 127"):
        cut(text)


def test_a_table_that_a_subgraph_uses_stays() -> None:
    inner = onnx.parser.parse_graph("inner () => (float[N,L,4] z) { z = Gather(t, ids) }")
    other = onnx.parser.parse_graph("other () => (float[N,L,4] w) { w = Identity(h) }")
    graph = build(PLAIN).graph
    graph.input.append(onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, []))
    branches = {"then_branch": inner, "else_branch": other}
    graph.node[1].CopyFrom(onnx.helper.make_node("If", ["flag"], ["y"], **branches))
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    with pytest.raises(RequestError, match="cannot be cut: a subgraph of If 'y'"):
        strip(model, vocabulary=KEPT, input_shape={"ids": (2, 6)})


def test_a_table_along_another_axis_and_one_that_is_dequantised_lose_rows() -> None:
    across = "net (int64[N] ids) => (float[4,N] y) <float[4,10] t> { h = Gather<axis=1>(t, ids) y = Relu(h) }"
    graph, found = cut(across, shape=(5,))
    feed = {"ids": np.array([3, 8, 1])}
    np.testing.assert_array_equal(run_onnx(found.graph, feed)["y"], run_onnx(graph, feed)["y"])
    assert found.graph.initializers["t"].shape == (4, len(KEPT))
    rng = np.random.default_rng(0)
    stored = {
        "q": rng.integers(-99, 99, (10, 4)).astype(np.int8),
        "s": rng.uniform(0.1, 1, 10).astype(np.float32),
        "z": rng.integers(-9, 9, 10).astype(np.int8),
    }
    head = "net (int64[N,L] ids) => (float[N,L,4] y)"
    for body, names in (
        ("t = DequantizeLinear<axis=0>(q, s, z) y = Gather(t, ids)", ("q", "s", "z")),
        ("g = Gather(q, ids) y = DequantizeLinear(g, s0, z0)", ("q",)),
    ):
        constants = {**stored, "s0": np.float32(0.3), "z0": np.int8(1)}
        used = {
            n: np.asarray(a) for n, a in constants.items() if f"{n}," in body or f"{n})" in body
        }
        graph, found = cut(build(f"{head} {{ {body} }}", used))
        np.testing.assert_array_equal(
            run_onnx(found.graph, draw())["y"], run_onnx(graph, draw())["y"]
        )
        assert all(len(found.graph.initializers[name]) == len(KEPT) for name in names)


def test_a_table_of_half_precision_and_its_head_lose_rows() -> None:
    text = TIED.replace("float[", "float16[")
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    table = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "t"))
    del model.graph.value_info[:]
    _, found = cut(model)
    after = run_onnx(found.graph, draw())["y"]
    gone = [i for i in range(ROWS) if i not in KEPT]
    assert (after[..., gone] == np.finfo(np.float16).min).all()


def test_a_fused_embedding_of_onnx_runtime_loses_rows() -> None:
    text = (
        "net (int32[N,L] ids) => (float[N,L,4] y) <float[10,4] t, float[8,4] p, float[4] g, float[4] b>"
        "{ y, n = com.microsoft.EmbedLayerNormalization(ids, , t, p, , g, b) }"
    )
    graph, found = cut(text)
    feed = {"ids": draw()["ids"].astype(np.int32)}
    np.testing.assert_array_equal(run_onnx(found.graph, feed)["y"], run_onnx(graph, feed)["y"])
    assert found.graph.initializers["t"].shape == (len(KEPT), 4)
    assert found.graph.initializers["p"].shape == (8, 4)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("k = Concat<axis=0>(a, b) h = Gather(k, ids)", {}),
        ("i = Unsqueeze(ids, last) k = Identity(t) h = GatherND(k, i)", {"last": [-1]}),
        ("k = Mul(t, two) h = Gather(k, ids)", {"two": np.float32(2)}),
        ("i = Expand(ids, shape) h = GatherElements<axis=0>(t, i)", {"shape": [6, 4]}),
    ],
)
def test_tables_of_other_forms_lose_rows(body: str, constants: dict[str, Any]) -> None:
    weights = "float[7,4] a, float[3,4] b" if "Concat" in body else "float[10,4] t"
    shape = "6,1" if "GatherElements" in body else "2,6"
    output = "6,4" if "GatherElements" in body else "2,6,4"
    text = f"net (int64[{shape}] ids) => (float[{output}] y) <{weights}> {{ {body} y = Relu(h) }}"
    graph, found = cut(build(text, constants), shape=tuple(map(int, shape.split(","))))
    ids = np.random.default_rng(0).choice(KEPT, graph.inputs[0].shape)
    after = run_onnx(found.graph, {"ids": ids})["y"]
    np.testing.assert_array_equal(after, run_onnx(graph, {"ids": ids})["y"])
    tables = [a for n, a in found.graph.initializers.items() if n in {"a", "b", "t"}]
    assert sum(len(table) for table in tables) == len(KEPT)


def test_a_table_that_is_joined_keeps_a_row_of_each_part() -> None:
    text = (
        "net (int64[2,6] ids) => (float[2,6,4] y) <float[7,4] a, float[3,4] b>"
        "{ k = Concat<axis=0>(a, b) h = Gather(k, ids) y = Relu(h) }"
    )
    with pytest.raises(RequestError, match="joined of several tables, and one would lose every"):
        cut(text, ids=[1, 3])


def test_what_the_graph_puts_in_front_stays() -> None:
    """A token that begins every sentence, as often as there are sentences."""
    text = (
        "net (int64[N,6] ids) => (float[N,7,4] y) <float[10,4] t>"
        "{ s = Shape(ids) n = Slice(s, zero, one) c = Concat<axis=0>(n, one) b = Expand(first, c)"
        "  i = Concat<axis=1>(b, ids) h = Gather(t, i) y = Relu(h) }"
    )
    graph, found = cut(build(text, {"zero": [0], "one": [1], "first": [[2]]}))
    assert found.report.vocabulary.ids == [1, 2, 3, 4, 8]
    feed = {"ids": np.random.default_rng(0).choice(KEPT, (3, 6))}
    np.testing.assert_array_equal(run_onnx(found.graph, feed)["y"], run_onnx(graph, feed)["y"])


def test_a_vocabulary_that_saves_nothing_says_so() -> None:
    _, found = cut(TIED)
    assert any("takes 38 bytes more than before" in note for note in found.report.notes)
    _, found = cut(PLAIN)
    assert not found.report.notes


def test_segments_of_a_fused_embedding_lose_rows() -> None:
    text = (
        "net (int32[N,L] ids, int32[N,L] kinds) => (float[N,L,4] y)"
        "<float[10,4] t, float[8,4] p, float[6,4] k, float[4] g, float[4] b>"
        "{ y, n = com.microsoft.EmbedLayerNormalization(ids, kinds, t, p, k, g, b) }"
    )
    graph, found = cut(text, ids=[0, 3], inputs=("kinds",))
    shapes = {name: array.shape for name, array in found.graph.initializers.items()}
    assert (shapes["t"], shapes["p"], shapes["k"]) == ((10, 4), (8, 4), (2, 4))
    rng = np.random.default_rng(0)
    feed = {"ids": rng.integers(0, 10, (2, 5)), "kinds": rng.choice([0, 3], (2, 5))}
    feed = {name: array.astype(np.int32) for name, array in feed.items()}
    np.testing.assert_array_equal(run_onnx(found.graph, feed)["y"], run_onnx(graph, feed)["y"])


def test_what_is_said_of_the_node_of_a_head_stays() -> None:
    model = build(TIED)
    model.graph.node[-1].doc_string = "logits"
    _, found = cut(model)
    (said,) = (node for node in found.graph.written().graph.node if node.doc_string)
    assert (said.op_type, said.doc_string, list(said.output)) == ("MatMul", "logits", ["y.kept"])


def test_each_check_finds_its_mistake() -> None:
    graph, found = cut(TIED)
    names = [check.name for check in found.report.verification]
    assert {"kept rows to the bit", "other ids are refused", "'y' put back"} <= set(names)
    small, kept = found.graph, {"t": {0: np.array(KEPT)}}
    assert check_rows(graph, small, kept, {}).passed
    wrong = small.initializers["t"].copy()
    wrong[2, 1] = np.nextafter(wrong[2, 1], 9)
    assert not check_rows(graph, small.edit({"t": wrong}), kept, {}).passed
    strange, known = {"ids": np.array([[0, 9]])}, {"ids": np.array([[1, 3]])}
    assert check_others(small, strange, refused=True).passed
    assert not check_others(small, strange, refused=False).passed
    assert not check_others(small, known, refused=True).passed
    (head,) = found.report.vocabulary.heads
    assert check_put_back(small, known, head, np.array(KEPT)).passed
    high = small.edit({"y.lowest": np.float32(0)})
    assert not check_put_back(high, known, head, np.array(KEPT)).passed


def test_every_run_is_compared() -> None:
    """A row that the first inputs do not ask for is wrong."""
    graph = Graph.from_model(build(PLAIN))
    wrong = graph.initializers["t"].copy()
    wrong[8] = 5
    feeds = [{"ids": np.array([[1, 3]])}, {"ids": np.array([[1, 8]])}]
    coupling = analyse(graph, shapes={"ids": (1, 2)}).coupling
    assert check_same("same", graph, graph, feeds, coupling).passed
    result = graph.edit({"t": wrong})
    assert check_same("same", graph, result, feeds[:1], coupling).passed
    assert not check_same("same", graph, result, feeds, coupling).passed


def test_an_id_of_samples_below_zero_is_the_row_from_the_end() -> None:
    samples = Samples({"ids": np.array([[1, -1, 3, -10]])}, None, {})
    _, found = cut(PLAIN, ids=None, data=samples, shape=(1, 4))
    assert found.report.vocabulary.ids == [0, 1, 3, 9]


def test_dead_channels_go_too() -> None:
    text = (
        "net (int64[N,L] ids) => (float[N,L,2] y) <float[10,4] t, float[4,2] w>"
        "{ h = Gather(t, ids) y = MatMul(h, w) }"
    )
    graph = Graph.from_model(build(text))
    weight = graph.initializers["w"].copy()
    weight[2] = 0
    graph = graph.edit({"w": weight})
    _, found = cut(graph)
    assert found.graph.initializers["t"].shape == (len(KEPT), 3)
    assert found.report.initializers["t"] == {"0": list(KEPT), "1": [0, 1, 3]}


def test_ids_of_samples_stay_and_rare_ones_go() -> None:
    ids = np.array([[1, 3, 3, 8], [3, 1, 3, 9]])
    samples = Samples({"ids": ids}, None, {})
    _, found = cut(PLAIN, ids=None, data=samples, shape=(2, 4))
    assert found.report.vocabulary.ids == [1, 3, 8, 9]
    _, found = cut(PLAIN, ids=[0], data=samples, min_count=2, shape=(2, 4), unknown=0)
    assert found.report.vocabulary.ids == [0, 1, 3]
    seen = found.report.vocabulary.seen
    assert (seen.ids, seen.kept, seen.occurrences, seen.kept_occurrences) == (4, 2, 8, 6)
    wrong = Samples({"ids": ids * 5}, None, {})
    with pytest.raises(DataError, match="the samples hold id 15, but the embedding has 10 rows"):
        cut(PLAIN, ids=None, data=wrong, shape=(2, 4))


@pytest.mark.parametrize(
    ("ids", "options", "reason"),
    [
        ([], {}, "no id is to stay"),
        (None, {}, "no id is to stay"),
        ([1, 10], {}, "no embedding has a row for id 10"),
        ([-1, 2], {}, "id -1 is no row of embedding 't'"),
        ([1, 2], {"unknown": 0}, r"`Vocabulary\(unknown=0\)` is not one of the ids"),
        ([1, 2], {"min_count": 2}, "of samples"),
        ([1, 2], {"min_count": 0}, "1 or more"),
        ([1, 2], {"narrow_head": True}, "there is none"),
        (range(10), {}, "every row stays"),
    ],
)
def test_what_cannot_stay_is_refused(ids: Any, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        cut(PLAIN, ids=ids, **options)


def test_a_model_that_was_cut_says_so_when_it_is_cut_again() -> None:
    _, found = cut(PLAIN)
    with pytest.raises(RequestError, match=r"picks of 4 rows of 't', by way of Gather 'ids\.rows'"):
        cut(found.graph, ids=[1])


PARTS = st.sampled_from(["Relu(h)", "Sigmoid(h)", "Neg(h)", "Mul(h, h)"])


@given(
    rows=st.integers(2, 12),
    width=st.integers(1, 5),
    tables=st.integers(1, 3),
    head=st.sampled_from(["none", "tied", "biased"]),
    between=st.lists(PARTS, max_size=3),
    unknown=st.booleans(),
    narrow=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_graph_of_embeddings_computes_what_it_did(
    rows: int,
    width: int,
    tables: int,
    head: str,
    between: list[str],
    unknown: bool,
    narrow: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    body = " ".join(f"e{i} = Gather(t{i}, ids)" for i in range(tables))
    body += " h0 = Identity(e0)" + "".join(f" h{i} = Add(h{i - 1}, e{i})" for i in range(1, tables))
    value = f"h{tables - 1}"
    for place, part in enumerate(between):
        body += f" v{place} = {part.replace('(h', f'({value}').replace(' h)', f' {value})')}"
        value = f"v{place}"
    if head == "none":
        body, last = f"{body} y = Neg({value})", width
    else:
        last = rows
        body += f" u = Transpose<perm=[1,0]>(t0) z = MatMul({value}, u)"
        body += " y = Add(z, b)" if head == "biased" else " y = Identity(z)"
    weights = "".join(f"float[{rows},{width}] t{i}, " for i in range(tables))
    weights += f"float[{rows}] b" if head == "biased" else "float[1] unused"
    text = f"net (int64[N,L] ids) => (float[N,L,{last}] y) <{weights}> {{ {body} }}"
    graph = Graph.from_model(build(text, seed=seed))
    kept = np.sort(rng.permutation(rows)[: rng.integers(1, rows)])
    options = {"unknown": int(kept[0]) if unknown else None}
    options["narrow_head"] = narrow and head != "none"
    _, found = cut(graph, kept, **options)
    feed = {"ids": rng.choice(kept, (2, 7))}
    expected, after = run_onnx(graph, feed)["y"], run_onnx(found.graph, feed)["y"]
    if head != "none":
        expected = expected[..., kept]
        if not options["narrow_head"]:
            gone = np.delete(after, kept, -1)
            assert (gone == LOWEST).all()
            after = after[..., kept]
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
    assert all(len(found.graph.initializers[f"t{i}"]) == len(kept) for i in range(tables))
