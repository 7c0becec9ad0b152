"""The torch twin: names, modes, types and gradients. Its values are tested per operator."""

from __future__ import annotations

import copy
import pickle
import re
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from helpers import analyse, assert_close, build, make_feed, run_onnx, run_twin
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from torch import fx, nn

from obc_onnx.errors import InvariantError, RequestError, UnsupportedOperatorError
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.surgery.cut import remove_units
from obc_onnx.twin.build import build_twin, check_device, derived_twin
from obc_onnx.twin.tensors import initializer_name, parameter_name, to_array, to_tensor
from obc_onnx.twin.weights import weights_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph

NET = (
    "net (float[N,3,5,5] x) => (float[N,4] y)"
    "<float[4,3,3,3] w, float[4] w_bias, float[4] scale, float[4] shift, float[4] mean,"
    " float[4] var, float[4,1,1] slope, float[4,36] fc, float[4] fc_bias>"
    "{ p = Conv(x, w, w_bias) q = BatchNormalization(p, scale, shift, mean, var)"
    "  r = PRelu(q, slope) s = Flatten(r) y = Gemm<transB=1>(s, fc, fc_bias) }"
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
AWKWARD = [
    "", "%", "%%", "%2E", "a.b", "a%2Eb", "training", "forward", "weight", "state_dict", "T_destination",
    "_parameters", "module/conv.weight", "onnx::Conv_12", 'say "hi"', "back\\slash", "new\nline", "{x}",
    "name with spaces", "1st", "é", "\u2028",
]  # fmt: skip


def twin_of(model: onnx.ModelProto | str) -> tuple[fx.GraphModule, Graph]:
    graph, shapes, _ = analyse(build(model) if isinstance(model, str) else model)
    return build_twin(graph, shapes, DEFAULT_RULES), graph


def image(batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, 5, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))


@given(name=NAMES)
def test_names_go_there_and_back(name: str) -> None:
    assert initializer_name(parameter_name(name)) == name
    assert "." not in parameter_name(name)


@given(names=st.sets(NAMES | st.sampled_from(AWKWARD)))
def test_different_names_stay_different(names: set[str]) -> None:
    assert len({parameter_name(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", [name for name in AWKWARD if name])
def test_a_weight_may_have_any_name(name: str) -> None:
    model = build("net (float[2,3] x) => (float[2,3] y) <float[3] weight> { y = Mul(x, weight) }")
    model.graph.initializer[0].name = model.graph.node[0].input[1] = name
    twin, graph = twin_of(model)
    assert [initializer_name(key) for key, _ in twin.named_parameters()] == [name]
    (y,) = pickle.loads(pickle.dumps(twin))(torch.ones(2, 3))
    np.testing.assert_array_equal(y.detach()[0].numpy(), graph.initializers[name])
    assert weights_of(twin, graph).keys() == {name}


@pytest.mark.parametrize("name", ["training", "x", "input_x", "self", "torch", "y"])
def test_values_may_have_names_that_torch_uses(name: str) -> None:
    model = build(
        "net (float[2,3] x) => (float[2,3] y) <float[3] a, float[3] b, float[3] c, float[3] var>"
        "{ z = Relu(x) y = BatchNormalization(z, a, b, c, var) }"
    )
    if name not in {"x", "y"}:
        model.graph.node[0].output[0] = model.graph.node[1].input[0] = name
    graph, shapes, _ = analyse(model)
    feed = make_feed(graph, np.random.default_rng(0))
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))


def test_two_inputs_may_differ_in_a_dot_only() -> None:
    model = build("net (float[2] x, float[2] z) => (float[2] y) { y = Sub(x, z) }")
    for slot, name in enumerate(("a.b", "a_b")):
        model.graph.input[slot].name = model.graph.node[0].input[slot] = name
    twin, _ = twin_of(model)
    (y,) = twin(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 2.0]))
    assert y.tolist() == [2.0, 1.0]


def test_a_twin_pickles() -> None:
    twin, graph = twin_of(NET)
    again = pickle.loads(pickle.dumps(twin))
    assert torch.equal(again(image())[0], twin(image())[0])
    assert again.code == twin.code
    for note in ("onnx", "slots", "value"):
        notes = [[n.meta.get(note) for n in module.graph.nodes] for module in (again, twin)]
        assert notes[0] == notes[1]
    for name, array in weights_of(twin, graph).items():
        np.testing.assert_array_equal(weights_of(again, graph)[name], array)


def test_a_pickled_twin_still_switches_modes() -> None:
    twin, _ = twin_of(NET)
    again = pickle.loads(pickle.dumps(twin))
    assert not again.training
    for mode in (True, False):
        torch.testing.assert_close(again.train(mode)(image())[0], twin.train(mode)(image())[0])
    torch.testing.assert_close(again.mean, twin.mean)
    assert pickle.loads(pickle.dumps(twin.train())).training


def test_a_copy_of_a_twin_is_independent() -> None:
    twin, _ = twin_of(NET)
    copied = copy.deepcopy(twin)
    with torch.no_grad():
        copied.w.zero_()
    assert twin.w.any()
    assert torch.equal(pickle.loads(pickle.dumps(copied))(image())[0], copied(image())[0])


def test_a_twin_prints_as_code_that_names_operators_and_weights() -> None:
    code = twin_of(NET)[0].code
    for word in (
        "def forward(self, input_x)",
        "conv(",
        "batch_norm(",
        "prelu(",
        "gemm(",
        "self.fc",
    ):
        assert word in code


def test_every_node_knows_its_onnx_node() -> None:
    twin, graph = twin_of(NET)
    keys = [node.meta["onnx"][0] for node in twin.graph.nodes if "onnx" in node.meta]
    assert keys == [node.key for node in graph.nodes]


def test_shapes_of_another_graph_are_refused() -> None:
    graph, shapes, coupling = analyse(build(NET))
    keep = {group.dim: np.arange(group.size) > 0 for group in coupling.groups}
    with pytest.raises(InvariantError, match="another graph"):
        build_twin(remove_units(coupling, keep), shapes, DEFAULT_RULES)
    assert derived_twin(graph, coupling)(image())[0].shape == (2, 4)


def test_weights_are_parameters_and_the_rest_are_buffers() -> None:
    twin, _ = twin_of(
        "net (float[N,3,5,5] x) => (float[N,4,5,5] y)"
        "<float[4,3,1,1] w, float[4] scale, float[4] shift, float[4] mean, float[4] var,"
        " float low = {-1.0}, float[1] factor = {2.0}, int64[4] to = {0,4,5,5}>"
        "{ p = Conv(x, w) q = BatchNormalization(p, scale, shift, mean, var) r = Clip(q, low)"
        "  s = Mul(r, factor) y = Reshape(s, to) }"
    )
    assert {name for name, _ in twin.named_parameters()} == {"w", "scale", "shift"}
    assert {name for name, _ in twin.named_buffers()} == {"mean", "var", "low", "factor"}


def test_training_updates_statistics_as_torch_does() -> None:
    twin, graph = twin_of(
        "net (float[N,3,5,5] x) => (float[N,3,5,5] y)"
        "<float[3] scale, float[3] shift, float[3] mean, float[3] var>"
        "{ y = BatchNormalization<momentum=0.8, epsilon=0.001>(x, scale, shift, mean, var) }"
    )
    norm = nn.BatchNorm2d(3, eps=0.001, momentum=1.0 - 0.8)
    names = {"weight": "scale", "bias": "shift", "running_mean": "mean", "running_var": "var"}
    state = {key: to_tensor(graph.initializers[name]) for key, name in names.items()}
    norm.load_state_dict(state, strict=False)
    for module in (twin, norm):
        module.train()
    for batch in (4, 6):
        torch.testing.assert_close(twin(image(batch))[0], norm(image(batch)))
    torch.testing.assert_close(twin.mean, norm.running_mean)
    torch.testing.assert_close(twin.var, norm.running_var)
    for module in (twin, norm):
        module.eval()
    torch.testing.assert_close(twin(image())[0], norm(image()))
    assert torch.equal(twin.mean, norm.running_mean)


def test_a_twin_starts_in_evaluation_mode_and_comes_back_to_it() -> None:
    graph, shapes, _ = analyse(build(NET))
    twin, feed = build_twin(graph, shapes, DEFAULT_RULES), image()
    expected = run_onnx(graph, {"x": feed.numpy()})
    assert_close({"y": twin(feed)[0].detach().numpy()}, expected)
    assert_close({"y": twin.train().eval()(feed)[0].detach().numpy()}, expected)


def test_dropout_drops_in_training_mode_only() -> None:
    twin, _ = twin_of("net (float[64] x) => (float[64] y) <float r = {0.5}> { y = Dropout(x, r) }")
    ones = torch.ones(64)
    assert torch.equal(twin(ones)[0], ones)
    assert set(twin.train()(ones)[0].tolist()) == {0.0, 2.0}


def test_one_error_lists_every_unknown_node() -> None:
    graph, shapes, _ = analyse(
        build(
            "net (float[N,3,5,5] x) => (float[N,3,5,5] y)"
            "{ [one] p = com.microsoft.SampleOp(x) q = Relu(p) [two] y = com.microsoft.SampleOp(q) }"
        )
    )
    with pytest.raises(UnsupportedOperatorError, match=r"2 nodes: SampleOp 'one', SampleOp 'two'"):
        build_twin(graph, shapes, DEFAULT_RULES)


@pytest.mark.parametrize(
    ("call", "opset"),
    [
        ("p, i = MaxPool<kernel_shape=[2,2]>(x) y = Cast<to=1>(i)", 17),
        ("a = Shape(x) b = Slice(a, k, l) c = Sub(b, one) s = Squeeze(x, c) y = Identity(s)", 17),
        ("r = Relu(scales) y = Resize(x, r)", 10),
    ],
)
def test_what_is_computed_as_the_model_runs_is_read_then(call: str, opset: int) -> None:
    constants = {"scales": [1.0, 1.0, 3.0, 3.0], "k": [0], "l": [1], "one": [1]}
    model = build(f"net (float[1,3,4,4] x) => (float y) {{ {call} }}", constants, opset=opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph, shapes, _ = analyse(model)
    feed = make_feed(graph, np.random.default_rng(0))
    assert_close(run_twin(graph, shapes, feed), run_onnx(graph, feed))


def test_untrained_weights_come_back_byte_for_byte() -> None:
    twin, graph = twin_of(NET)
    weights = weights_of(twin, graph)
    assert weights.keys() == set(graph.initializers)
    for name, array in weights.items():
        assert array.dtype == graph.initializers[name].dtype
        assert array.tobytes() == graph.initializers[name].tobytes()


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "bfloat16"])
def test_arrays_of_every_float_type_survive_the_trip(name: str) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(_onnx_name(name)))
    array: NDArray = np.linspace(-3, 3, 7).astype(dtype).reshape(7, 1)
    tensor = to_tensor(array)
    assert tensor.dtype == getattr(torch, name)
    back = to_array(tensor, array.dtype)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def _onnx_name(name: str) -> str:
    return {"float32": "FLOAT", "float64": "DOUBLE"}.get(name, name.upper())


def test_the_twin_does_not_share_memory_with_the_graph() -> None:
    twin, graph = twin_of(NET)
    before = graph.initializers["w"].copy()
    with torch.no_grad():
        twin.w.zero_()
    np.testing.assert_array_equal(graph.initializers["w"], before)
    assert not weights_of(twin, graph)["w"].any()


@pytest.mark.parametrize(
    ("name", "tolerance"), [("float64", 1e-5), ("float16", 1e-2), ("bfloat16", 1e-1)]
)
def test_a_model_of_any_float_type_has_a_twin_in_it(name: str, tolerance: float) -> None:
    data_type = onnx.TensorProto.DataType.Value(_onnx_name(name))
    model = build(NET, opset=22)  # the first in which all of its operators take bfloat16
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        cast = array.astype(helper.tensor_dtype_to_np_dtype(data_type))
        tensor.CopyFrom(onnx.numpy_helper.from_array(cast, tensor.name))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.elem_type = data_type
    twin, graph = twin_of(model)
    kind = getattr(torch, name)
    found = twin(image().to(kind))[0]
    assert found.dtype == kind
    assert {parameter.dtype for parameter in twin.parameters()} == {kind}
    expected = twin_of(NET)[0](image())[0]
    assert (found.float() - expected).abs().max() < tolerance * expected.abs().max()
    found.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == kind for p in twin.parameters())
    written = twin.write_to(graph)
    assert written.to_model().SerializeToString() == graph.to_model().SerializeToString()


def test_a_state_dict_moves_weights_between_twins() -> None:
    twin, other = twin_of(NET)[0], twin_of(NET)[0]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert not torch.equal(twin(image())[0], other(image())[0])
    other.load_state_dict(twin.state_dict())
    assert torch.equal(twin(image())[0], other(image())[0])


def test_a_double_twin_computes_in_double() -> None:
    twin, _ = twin_of(NET)
    single = twin(image())[0]
    (double,) = twin.double()(image().double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_those_of_finite_differences(training: bool) -> None:
    twin, _ = twin_of(NET)
    twin.double().train(training)
    names = [name for name, _ in twin.named_parameters()]
    frozen = {name: buffer.clone() for name, buffer in twin.named_buffers()}

    def run(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        buffers = {name: buffer.clone() for name, buffer in frozen.items()}
        state = dict(zip(names, weights, strict=True)) | buffers
        return torch.func.functional_call(twin, state, (x,))[0]

    x = image(dtype=torch.float64).requires_grad_()
    weights = [parameter.detach().clone().requires_grad_() for parameter in twin.parameters()]
    assert torch.autograd.gradcheck(run, (x, *weights), fast_mode=True)


def test_a_shared_weight_is_one_parameter_with_the_sum_of_gradients() -> None:
    twin, _ = twin_of(
        "net (float[2,3] x) => (float[2,3] y) <float[3,3] w> { p = MatMul(x, w) y = MatMul(p, w) }"
    )
    assert len(list(twin.parameters())) == 1
    x = torch.ones(2, 3)
    twin(x)[0].sum().backward()
    w = twin.w.detach().clone().requires_grad_()
    (x @ w @ w).sum().backward()
    torch.testing.assert_close(twin.w.grad, w.grad)


SIZES = (
    "net (float[N,6,8] x) => (float[N,S,4] y) <float[8,12] a, float[4,4] b, float[1,1,3,4] k,"
    " int64 zero = {0}, int64 one = {1}, int64 two = {2}, int64[1] lead = {0}, int64[1] four = {4},"
    " int64[1] three = {3}, int64[1] minus = {-1}, int64[2] pair = {2,0}, int64[1] last = {9}>"
    "{ h = MatMul(x, a) s = Shape(h) n = Gather(s, zero) t = Gather(s, one) w = Gather(s, two)"
    "  c = Div(w, three) d = Squeeze(c, lead) m = Mul(t, one) p = Unsqueeze(n, lead)"
    "  q = Unsqueeze(m, lead) e = Concat<axis=0>(p, q, three, c) r = Reshape(h, e)"
    "  l = Shape(e) o = ConstantOfShape<value = int64[1] {1}>(l) v = Mul(o, minus)"
    "  f = Equal(e, v) g = Where(f, o, e) u = Expand(k, g) z = Add(r, u)"
    "  i = Transpose<perm=[0,2,1,3]>(z) j = Gather(s, pair) aa = Slice(j, lead, last)"
    "  bb = ReduceProd<keepdims=1>(aa) cc = Div(bb, four) dd = Mul(t, three)"
    "  ff = Concat<axis=0>(p, dd, four) gg = Reshape(i, ff)"
    "  y = MatMul(gg, b) }"
)


def test_sizes_are_computed_by_python_and_not_by_torch() -> None:
    twin, _ = twin_of(SIZES)
    called = {node.target.__name__ for node in twin.graph.nodes if node.op == "call_function"}
    assert "read_shape" in called
    assert not called & {"as_tensor", "gather", "quotient", "mul", "join"}


def test_sizes_that_run_with_the_model_are_exported_and_compiled() -> None:
    twin, graph = twin_of(SIZES)
    samples = [torch.randn(n, 6, 8, generator=torch.Generator().manual_seed(n)) for n in (2, 5)]
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(twin, (samples[0],), dynamic_shapes=({0: batch},)).module()
    compiled = torch.compile(twin, backend="eager", fullgraph=True, dynamic=True)
    for x in samples:
        (expected,) = run_onnx(graph, {"x": x.numpy()}).values()
        for module in (twin, exported, compiled, pickle.loads(pickle.dumps(twin))):
            with torch.no_grad():
                (found,) = module(x)
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("text", [NET, SIZES])
def test_a_twin_runs_and_learns_under_autocast(text: str) -> None:
    twin, graph = twin_of(text)
    feed = make_feed(graph, np.random.default_rng(0))
    inputs = [torch.from_numpy(feed[port.name]) for port in graph.inputs]
    with torch.no_grad():
        expected = twin(*inputs)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = twin(*inputs)[0]
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()
    found.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in twin.parameters())


@pytest.mark.parametrize("device", ["meta", "cuda:99", "nonsense", "xpu:7", "vulkan", "hpu", ""])
def test_devices_that_cannot_compute_are_refused(device: str) -> None:
    with pytest.raises(RequestError, match=re.escape(f"cannot use device '{device}'")):
        check_device(device)


@pytest.mark.parametrize("name", ["lambda", "None", "class", "self", "in"])
def test_a_weight_may_be_called_as_a_word_of_python(name: str) -> None:
    model = build("net (float[2,3] x) => (float[2,3] y) <float[3] weight> { y = Mul(x, weight) }")
    model.graph.initializer[0].name = model.graph.node[0].input[1] = name
    twin, _ = twin_of(model)
    assert [initializer_name(key) for key, _ in twin.named_parameters()] == [name]
    assert twin(torch.ones(2, 3))[0].shape == (2, 3)


@pytest.mark.parametrize("where", ["initializer", "input", "cast"])
@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_the_share_that_is_dropped_is_what_the_node_says(where: str, ratio: float) -> None:
    source = {"initializer": "r", "input": "q", "cast": "c"}[where]
    more = ", float q" if where == "input" else ""
    model = build(
        f"net (float[20000] x{more}) => (float[20000] y) {{"
        f" c = Cast<to=1>(h) y = Dropout(x, {source}) }}",
        {"r": np.float32(ratio), "h": np.float16(ratio)},
    )
    twin = twin_of(model)[0].train()
    inputs = [torch.ones(20000), *([torch.tensor(ratio)] if where == "input" else [])]
    y = twin(*inputs)[0]
    assert abs(float((y == 0).float().mean()) - ratio) < 0.01
    assert y.isfinite().all()


def test_an_input_of_strings_is_refused() -> None:
    model = build(
        "net (string[N] s, float[N,6] x) => (float[N,4] y, string[N] t) <float[6,4] a>"
        "{ y = MatMul(x, a) t = Identity(s) }"
    )
    with pytest.raises(UnsupportedOperatorError, match="'s', which holds strings"):
        twin_of(model)
