"""Where the samples are: batches on any axis, states, numbers and tables that are given once."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import build as build_at
from helpers import one_channel, public_model

import obc_onnx
from obc_onnx.cli.main import cli
from obc_onnx.coupling.analysis import Clock, analyse, settled
from obc_onnx.errors import DataError, RequestError, ShapeError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import Budget
from obc_onnx.run.api import verify
from obc_onnx.run.sensitivity import measure_sensitivity
from obc_onnx.run.twin_program import TwinProgram
from obc_onnx.saliency.options import Scoring
from obc_onnx.samples.augmentation import Augmentation
from obc_onnx.samples.options import DataOptions
from obc_onnx.samples.placing import first_of, known_by, shapes_of
from obc_onnx.samples.read import check_samples, load_samples, open_samples
from obc_onnx.samples.samples import Samples
from obc_onnx.training.loading import Loader
from obc_onnx.training.loss import TrainingLoss
from obc_onnx.training.options import TrainingOptions

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import Axes

    Arrays = dict[str, NDArray[Any]]

N, T = 40, 5
GRU = """
net (float[T,N,6] x) => (float[T,N,3] y) <
  float[6,16] u, float[1,24,16] w, float[1,24,8] r, float[8,3] v, int64[1] one = {1}
> {
  a = MatMul(x, u) b = Relu(a)
  h = GRU<hidden_size = 8>(b, w, r)
  s = Squeeze(h, one)
  y = MatMul(s, v)
}"""
LSTM = """
net (float[N,6] x, float[2,N,8] state) => (float[N,3] y, float[2,N,8] next) <
  float[6,16] u, float[1,32,16] w, float[1,32,8] r, float[8,3] v, int64[1] zero = {0}
> {
  a = MatMul(x, u) b = Relu(a)
  t = Unsqueeze(b, zero)
  h, c = Split<axis = 0, num_outputs = 2>(state)
  o, hn, cn = LSTM<hidden_size = 8>(t, w, r, , , h, c)
  q = Squeeze(hn, zero)
  y = MatMul(q, v)
  next = Concat<axis = 0>(hn, cn)
}"""
SCALAR = """
net (float[N,6] x, float rate) => (float[N,3] y) <float[6,16] u, float[16,3] v> {
  m = Mul(x, rate) a = MatMul(m, u) b = Relu(a) y = MatMul(b, v)
}"""
TABLE = """
net (float[N,6] x, float[A,3] anchors) => (float[N,A,3] y) <
  float[6,16] u, float[16,3] v, int64[1] one = {1}
> {
  a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) d = Unsqueeze(c, one) y = Add(d, anchors)
}"""
WRITTEN = """
net (float[N,2,4] x) => (float[N,3] y) <
  float[8,16] u, float[16,3] v, int64[2] shape = {1, 8}
> {
  f = Reshape(x, shape) a = MatMul(f, u) b = Relu(a) y = MatMul(b, v)
}"""
FOLDED = """
net (float[N,8] x) => (float[N,3] y) <
  float[8,16] u, float[16,3] v, int64[3] shape = {1, -1, 8}, int64[1] one = {1}
> {
  f = Reshape(x, shape) m = ReduceMean<keepdims = 0>(f, one)
  a = MatMul(m, u) b = Relu(a) y = MatMul(b, v)
}"""

HEADS = """
net (float[N,4] x) => (float[N,3] y, float[M,8] scores) <
  float[4,16] u, float[16,16] m, float[16,3] v,
  int64[3] cut = {-1, 2, 8}, int64[2] fold = {-1, 8}
> {
  a = MatMul(x, u) b = Relu(a) c = MatMul(b, m) y = MatMul(c, v)
  h = Reshape(c, cut) t = Transpose<perm = [1, 0, 2]>(h) scores = Reshape(t, fold)
}"""
CONSTANT = """
net (float[N,6] x) => (float[N,3] y, float[16,3] w) <
  float[6,16] u, float[16,16] m, float[16,3] v
> {
  a = MatMul(x, u) b = Relu(a) c = MatMul(b, m) y = MatMul(c, v) w = Identity(v)
}"""


SUM = """
net (float[T,N,6] x) => (float[T,N,3] y) <float[6,16] u, float[16,3] v, int64 zero = {0}> {
  a = MatMul(x, u) b = Relu(a) c = CumSum(b, zero) y = MatMul(c, v)
}"""


class Net(NamedTuple):
    """A model, the axes that hold its samples, and how many a run takes."""

    text: str
    inputs: dict[str, int | None]
    outputs: dict[str, int | None]
    size: int | None = None


NETS = {
    "time-major GRU": Net(GRU, {"x": 1}, {"y": 1}),
    "sum over time": Net(SUM, {"x": 1}, {"y": 1}),
    "LSTM with its state": Net(LSTM, {"x": 0, "state": 1}, {"y": 0, "next": 1}),
    "a number": Net(SCALAR, {"x": 0, "rate": None}, {"y": 0}),
    "a table": Net(TABLE, {"x": 0, "anchors": None}, {"y": 0}),
    "heads before the batch": Net(HEADS, {"x": 0}, {"y": 0, "scores": None}),
    "an output of weights": Net(CONSTANT, {"x": 0}, {"y": 0, "w": None}),
    "a written batch": Net(WRITTEN, {"x": 0}, {"y": 0}, 1),
    "a folded batch": Net(FOLDED, {"x": 0}, {"y": 0}, 1),
}
RNG = np.random.default_rng(0)


def build(text: str) -> onnx.ModelProto:
    return build_at(text, opset=18)


def drawn(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


DATA: dict[str, Arrays] = {
    "time-major GRU": {"x": drawn(T, N, 6)},
    "sum over time": {"x": drawn(T, N, 6)},
    "LSTM with its state": {"x": drawn(N, 6), "state": drawn(2, N, 8)},
    "a number": {"x": drawn(N, 6), "rate": np.array(0.5, np.float32)},
    "a table": {"x": drawn(N, 6), "anchors": drawn(7, 3)},
    "heads before the batch": {"x": drawn(N, 4)},
    "an output of weights": {"x": drawn(N, 6)},
    "a written batch": {"x": drawn(N, 2, 4)},
    "a folded batch": {"x": drawn(N, 8)},
}
SHAPES = {
    "time-major GRU": {"x": (T, 1, 6)},
    "sum over time": {"x": (T, 1, 6)},
    "a table": {"anchors": (7, 3)},
}
each = pytest.mark.parametrize("name", NETS)


def graph_of(name: str) -> Graph:
    return Graph.from_model(build(NETS[name].text))


def samples_of(name: str) -> Samples:
    return Samples(DATA[name], None, {})


def of_sample(name: str, place: int) -> Arrays:
    """Cut one sample out by hand."""
    axes = NETS[name].inputs
    return {
        key: array if axes[key] is None else array.take([place], axes[key])
        for key, array in DATA[name].items()
    }


@each
def test_axes_are_found_without_data(name: str) -> None:
    found = settled(graph_of(name), SHAPES.get(name), {}).batch_axes
    net = NETS[name]
    assert (found.inputs, found.outputs, found.size) == (net.inputs, net.outputs, net.size)
    assert bool(found.note) == (net.size is not None)


@each
def test_axes_are_found_from_data(name: str) -> None:
    found = check_samples(samples_of(name), graph_of(name)).batch_axes
    assert found is not None
    net = NETS[name]
    assert (found.inputs, found.outputs, found.size) == (net.inputs, net.outputs, net.size)


@each
def test_samples_are_fed_as_the_model_takes_them(name: str) -> None:
    samples = check_samples(samples_of(name), graph_of(name))
    assert len(samples) == N
    for part, place in ((samples, 7), (samples.part(np.array([3, 9, 30])), 1)):
        fed = part.feed(slice(place, place + 1))
        expected = of_sample(name, 7 if part is samples else 9)
        for key, array in expected.items():
            assert fed[key].shape == array.shape
            np.testing.assert_array_equal(fed[key], array)


@each
def test_all_stages_run(name: str) -> None:
    model = build(NETS[name].text)
    result = obc_onnx.compress(
        model, data=samples_of(name), budget=0.7, training=TrainingOptions(epochs=1), latency=True
    )
    assert result.report.macs.after <= 0.7 * result.report.macs.before
    assert result.report.latency_ms.after is not None
    assert all(check.passed for check in result.report.verification)
    alone = [Session(result.graph).run(of_sample(name, place)) for place in range(3)]
    outputs = {port.name: port.shape for port in Graph.from_model(model).outputs}
    assert all(run.keys() == outputs.keys() for run in alone)
    assert (NETS[name].size is None) == (not any("run takes" in n for n in result.report.notes))


@each
def test_a_pruned_model_is_verified_without_data(name: str) -> None:
    model, shapes = build(NETS[name].text), SHAPES.get(name)
    result = obc_onnx.compress(model, budget=0.7, input_shape=shapes)
    checks = verify(model, result.model, result.plan, input_shape=shapes)
    assert checks
    assert all(check.passed for check in checks)


@each
def test_a_drop_is_measured_and_so_is_every_group(name: str) -> None:
    model = build(NETS[name].text)
    result = obc_onnx.compress(
        model, data=samples_of(name), budget=Budget(max_drop=5.0), recover="none"
    )
    assert result.report.macs.after < result.report.macs.before
    found = measure_sensitivity(model, data=samples_of(name), n_samples=6)
    assert found.n_samples == 6
    assert all(np.isfinite(point.error) for group in found.groups for point in group.points)


@each
def test_a_twin_is_built(name: str) -> None:
    program = TwinProgram.of(build(NETS[name].text), SHAPES.get(name))
    assert program.graph.batch_axes.inputs == NETS[name].inputs


@pytest.mark.parametrize("name", ["time-major GRU", "LSTM with its state"])
def test_an_exported_twin_takes_any_batch(name: str, tmp_path: Path) -> None:
    """Recurrent layers are unrolled, so that time has the length that they were traced with."""
    program = TwinProgram.of(build(NETS[name].text), SHAPES.get(name))
    note = program.save(tmp_path / "module.pt2")
    assert ("only inputs 'x' of 5x?x6" in note) == (name == "time-major GRU")
    module = torch.export.load(tmp_path / "module.pt2").module()
    axes = NETS[name].inputs
    for count in (3, 8):
        feed = {key: array.take(range(count), axes[key]) for key, array in DATA[name].items()}
        found = module(*(torch.from_numpy(feed[port.name]) for port in program.graph.inputs))
        expected = Session(program.graph).run(feed)
        for value, port in zip(found, program.graph.outputs, strict=True):
            np.testing.assert_allclose(value.detach().numpy(), expected[port.name], atol=1e-4)


def test_all_time_steps_count() -> None:
    found = obc_onnx.inspect(build(GRU), input_shape=SHAPES["time-major GRU"])
    assert found.macs == T * (6 * 16 + 24 * (16 + 8) + 8 * 3)
    data = obc_onnx.compress(build(GRU), data=samples_of("time-major GRU"), budget=0.99).report
    assert data.macs.before == found.macs


@pytest.mark.parametrize("net", [GRU, SUM], ids=["GRU", "sum"])
def test_scores_do_not_depend_on_where_samples_are(net: str) -> None:
    """The same network with its batch in front gives the oracle."""
    text = net.replace("float[T,N,6] x", "float[N,T,6] z").replace(
        " a = MatMul", " x = Transpose<perm = [1, 0, 2]>(z)\n  a = MatMul"
    )
    arrays = DATA["time-major GRU"]["x"]
    how = Scoring(objective="output", rows="sample")
    for batch_size in (7, 64):
        scoring = replace(how, batch_size=batch_size)
        found = obc_onnx.score(build(net), data=Samples({"x": arrays}, None, {}), scoring=scoring)
        data = Samples({"z": arrays.transpose(1, 0, 2)}, None, {})
        expected = obc_onnx.score(build(text), data=data, scoring=scoring)
        assert found.groups.keys() == expected.groups.keys() != set()
        for group, values in expected.groups.items():
            np.testing.assert_allclose(found.groups[group], values, rtol=1e-4)


def test_samples_on_a_later_axis_are_scored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from obc_onnx.saliency.taps import Taps

    sizes, rows = [], Taps.rows

    def watched(self: Taps, inputs: list[Any], loss: Any) -> Any:
        sizes.append(tuple(inputs[0].shape))
        return rows(self, inputs, loss)

    monkeypatch.setattr(Taps, "rows", watched)
    obc_onnx.score(
        build(SUM), data=samples_of("sum over time"), scoring=Scoring(objective="output")
    )
    assert sizes == [(T, 32, 6)]


def test_the_first_output_of_a_stateful_model_may_hold_classes() -> None:
    graph = graph_of("LSTM with its state")
    arrays = DATA["LSTM with its state"]
    runs = [
        Session(graph).run(of_sample("LSTM with its state", place))["y"][0] for place in range(N)
    ]
    labels = np.array(runs).argmax(-1)
    samples = check_samples(Samples(arrays, labels, {}), graph)
    assert accuracy(known_by(graph, samples), samples) == 1


@pytest.mark.parametrize("case", ["a folder", "a number for each", "shards"])
def test_samples_may_lie_in_files(tmp_path: Path, case: str) -> None:
    name = "LSTM with its state"
    graph, arrays = graph_of(name), dict(DATA[name])
    path = tmp_path / "data"
    if case == "a folder":
        path.mkdir()
        for key, array in arrays.items():
            np.save(path / f"{key}.npy", array)
    elif case == "shards":
        path = tmp_path / "data.tar"
        with tarfile.open(path, "w") as archive:
            for place in range(N):
                for key, array in (("x", arrays["x"][place]), ("state", arrays["state"][:, place])):
                    content = io.BytesIO()
                    np.save(content, array)
                    member = tarfile.TarInfo(f"{place:03}.{key}.npy")
                    member.size = content.tell()
                    content.seek(0)
                    archive.addfile(member, content)
    else:
        name, graph = "a number", graph_of("a number")
        path = tmp_path / "data.npz"
        np.savez(path, x=DATA[name]["x"], rate=np.full(N, 0.5, np.float32))
    samples = load_samples(path, graph)
    fed = samples.part(np.array([5, 11])).feed(slice(1, 2))
    for key, array in of_sample(name, 11).items():
        np.testing.assert_array_equal(fed[key], array)


def test_the_size_of_a_file_tells_the_axis(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "x.npy", DATA["time-major GRU"]["x"])
    samples = load_samples(tmp_path / "data", Graph.from_model(build(ONE_AT_A_TIME)))
    assert len(samples) == N
    fed = samples.feed(slice(4, 5))["x"]
    np.testing.assert_array_equal(fed, DATA["time-major GRU"]["x"][:, 4:5])


def test_losses_compare_samples_wherever_they_are() -> None:
    graph = known_by(
        graph_of("time-major GRU"),
        check_samples(samples_of("time-major GRU"), graph_of("time-major GRU")),
    )
    options, name = TrainingOptions(epochs=1, loss=(("cosine", 1.0),)), graph.outputs[0].name
    loss = TrainingLoss(options, graph, one_channel(name, (T, 3), 1.0, 1), labelled=False)
    found, wanted = torch.randn(2, T, N, 3, generator=torch.Generator().manual_seed(0))
    rows = (value.movedim(1, 0).reshape(N, -1) for value in (found, wanted))
    expected = 1 - torch.cosine_similarity(*rows, dim=1).mean()
    torch.testing.assert_close(loss([found], [wanted], None), expected)


def test_a_number_that_differs_gives_each_sample_its_own_run() -> None:
    graph, rates = graph_of("a number"), np.linspace(0, 1, N, dtype=np.float32)
    samples = check_samples(Samples({"x": DATA["a number"]["x"], "rate": rates}, None, {}), graph)
    assert known_by(graph, samples).batch == 1
    assert samples.feed(slice(7, 8))["rate"] == rates[7]


def test_measured_samples_lie_as_the_others_do() -> None:
    name = "LSTM with its state"
    few = {"x": drawn(2, 6), "state": drawn(2, 2, 8)}  # of which sizes tell nothing
    options = DataOptions(samples_of(name), evaluation=Samples(few, None, {}))
    used, held = open_samples(options, graph_of(name))
    assert used is not None
    assert held is not None
    np.testing.assert_array_equal(held.feed(slice(1, 2))["state"], few["state"][:, 1:])


def test_a_report_describes_one_sample_of_each_input() -> None:
    name = "LSTM with its state"
    fed = obc_onnx.compress(build(LSTM), data=samples_of(name), budget=0.7).report.fed
    assert {own.name: own.shape for own in fed} == {"x": [6], "state": [2, 8]}
    fed = obc_onnx.compress(build(TABLE), data=samples_of("a table"), budget=0.7).report.fed
    assert {own.name: own.shape for own in fed} == {"x": [6], "anchors": [7, 3]}


def test_pictures_are_changed_wherever_their_samples_are() -> None:
    text = """
    net (float[3,N,4,4] x, float[2,3,4,4] grid) => (float[3,N,4,4] y) { y = Relu(x) }"""
    arrays = {"x": drawn(3, 6, 4, 4), "grid": drawn(2, 3, 4, 4)}
    samples = check_samples(Samples(arrays, None, {}), Graph.from_model(build(text)))
    plain, changed = (
        next(Loader(samples, augmentation, 0, 0).batches(1, [np.arange(6)]))[1]
        for augmentation in (None, Augmentation(flip=True))
    )
    np.testing.assert_array_equal(plain["x"], arrays["x"])
    np.testing.assert_array_equal(changed["grid"], arrays["grid"])
    flipped = [
        not np.array_equal(changed["x"][:, place], arrays["x"][:, place]) for place in range(6)
    ]
    assert 0 < sum(flipped) < 6
    for place in np.flatnonzero(flipped):
        np.testing.assert_array_equal(changed["x"][:, place], arrays["x"][:, place, :, ::-1])


# Names and refusals.


def test_the_command_line_names_axes(tmp_path: Path) -> None:
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    onnx.save(build(ONE_AT_A_TIME), model)
    np.savez(data, x=drawn(T, N, 6))
    shape, named = ["--input-shape", f"x:{T}x1x6"], ["--batch-axis", "x:1"]
    small, plan = tmp_path / "small.onnx", tmp_path / "plan.json"
    cut = ["-o", str(small), "--plan-out", str(plan), "--data", str(data)]
    for arguments, said in [
        (["inspect", str(model), *shape], "change each other at GRU"),
        (["inspect", str(model), *shape, *named], "samples are on axis 1 of 'x'"),
        (["compress", str(model), *cut, *named], "samples are on axis 1 of 'x'"),
        (["verify", str(model), str(small), "--plan", str(plan), *shape, *named], "masked"),
        (["twin", str(model), "--print-code", *shape, *named], "def forward"),
        (["score", str(model), "-o", str(tmp_path / "s.npz"), "--data", str(data), *named], ""),
    ]:
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert said in " ".join(result.output.split())


@pytest.mark.parametrize("text", ["x", "x:", "x:-1", "x:two", ":1"])
def test_a_malformed_name_is_a_usage_error(tmp_path: Path, text: str) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "m.onnx"), "--batch-axis", text])
    assert result.exit_code == 2
    assert "is not of the form NAME:1 or NAME:none" in " ".join(result.output.split())


def test_counts_that_differ_are_refused_with_their_axes() -> None:
    arrays = {**DATA["LSTM with its state"], "state": drawn(2, N - 1, 8)}
    with pytest.raises(
        DataError, match=r"40 of 'x' on axis 0, 39 of 'state' on axis 1.*`batch_axes`"
    ):
        check_samples(Samples(arrays, None, {}), graph_of("LSTM with its state"))


ONE_AT_A_TIME = GRU.replace("float[T,N,6]", "float[T,1,6]").replace("float[T,N,3]", "float[T,1,3]")


def test_time_is_no_batch_where_no_other_axis_is_open() -> None:
    graph = Graph.from_model(build(ONE_AT_A_TIME))
    with pytest.raises(ShapeError, match=r"axis 0 is dynamic.*change each other at GRU"):
        analyse(graph, None, DEFAULT_RULES, Clock())
    coupling, _ = analyse(graph, {"x": (T, 1, 6)}, DEFAULT_RULES, Clock())
    assert coupling.macs({}) == T * (6 * 16 + 24 * (16 + 8) + 8 * 3)
    with pytest.raises(
        DataError, match=r"axis 0 of input 'x' change each other at GRU.*`batch_axes={'x': None}`"
    ):
        check_samples(Samples({"x": drawn(N, 1, 6)}, None, {}), graph)


@pytest.mark.parametrize(
    ("array", "named"),
    [(drawn(T, N, 6), {"x": 1}), (drawn(N, T, 1, 6), {"x": None}), (drawn(T, N, 6), {})],
    ids=["named", "one axis more", "told by its size"],
)
def test_samples_take_a_run_each_where_the_batch_is_one(
    array: NDArray[np.float32], named: Axes
) -> None:
    model, samples = build(ONE_AT_A_TIME), Samples({"x": array}, None, {})
    result = obc_onnx.compress(model, data=samples, budget=0.7, batch_axes=named, training=1)
    assert result.report.macs.before == T * (6 * 16 + 24 * (16 + 8) + 8 * 3)
    assert all(check.passed for check in result.report.verification)
    assert result.graph.batch_axes.outputs == {"y": 1}


def test_an_axis_that_is_named_stands() -> None:
    """Samples that touch each other take a run each."""
    graph = settled(graph_of("time-major GRU"), {"x": (1, 2, 6)}, {"x": 0})
    assert graph.batch_axes.inputs == {"x": 0}
    assert graph.batch == 1
    assert "GRU" in graph.batch_axes.note


@pytest.mark.parametrize(
    ("named", "words"),
    [({"z": 0}, "batch axis is given for 'z'"), ({"x": 3}, "x' has 3 axes")],
    ids=["no input", "no axis"],
)
def test_a_name_that_does_not_fit_is_refused(named: Axes, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        obc_onnx.inspect(build(GRU), input_shape={"x": (T, 1, 6)}, batch_axes=named)
    with pytest.raises(RequestError, match=words):
        check_samples(samples_of("time-major GRU"), graph_of("time-major GRU"), named=named)


def test_a_size_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(
        RequestError, match=r"cannot hold 2 samples on axis 0, but 1: a run takes one"
    ):
        obc_onnx.inspect(build(WRITTEN), input_shape={"x": (2, 2, 4)})


def test_a_batch_of_several_may_be_written_inside() -> None:
    text = WRITTEN.replace("{1, 8}", "{4, 8}").replace("net (", "net (")
    graph = settled(Graph.from_model(build(text)), None, {})
    assert graph.batch == 4
    result = obc_onnx.compress(build(text), data=samples_of("a written batch"), budget=0.7)
    assert any("a run takes 4 samples" in note for note in result.report.notes)


def test_pictures_of_one_batch_are_blended_only_on_first_axes() -> None:
    with pytest.raises(
        RequestError, match=r"`TrainingOptions.mixup` cannot blend input 'x': its samples are not"
    ):
        obc_onnx.compress(
            build(GRU),
            data=samples_of("time-major GRU"),
            training=TrainingOptions(epochs=1, mixup=0.2),
        )


def test_rounding_that_a_network_magnifies_is_no_touch() -> None:
    """Kernels add up otherwise for one sample than for two; a steep function shows it."""
    text = """
    net (float[N,999] x) => (float[N] y) <float k = {1e5}, int64[1] one = {1}> {
      a = ReduceSum<keepdims = 0>(x, one) b = Mul(a, k) y = Sin(b)
    }"""
    found = settled(Graph.from_model(build(text)), None, {}).batch_axes
    assert (found.inputs, found.size) == ({"x": 0}, None)


def test_a_number_of_samples_that_scales_outputs_is_noticed() -> None:
    text = """
    net (float[N,8] x) => (float[N,3] y) <float[8,16] u, float[16,3] v, int64 zero = {0}> {
      s = Shape(x) n = Gather(s, zero) f = Cast<to = 1>(n)
      a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) y = Div(c, f)
    }"""
    graph = settled(Graph.from_model(build(text)), None, {})
    assert graph.batch == 1
    assert "output 'y' of one depends on the other" in graph.batch_axes.note


@pytest.mark.parametrize(
    "nodes",
    [
        "m = ReduceMean<keepdims = 1>(c, zero) y = Sub(c, m)",
        "m = ReduceMean<keepdims = 1>(c) p = Less(m, none) f = Cast<to = 1>(p) y = Mul(c, f)",
    ],
    ids=["a mean", "a condition"],
)
def test_samples_that_share_a_statistic_take_a_run_each(nodes: str) -> None:
    """Their order does not matter, so that it is no time."""
    text = f"""
    net (float[N,8] x) => (float[N,3] y) <
      float[8,16] u, float[16,3] v, int64[1] zero = {{0}}, float none = {{0}}
    > {{ a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) {nodes} }}"""
    model, arrays = build(text), {"x": np.concatenate([drawn(N // 2, 8), drawn(N // 2, 8) + 3])}
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(N)
        samples = check_samples(
            Samples({"x": arrays["x"][order]}, None, {}), Graph.from_model(model)
        )
        assert samples.batch_axes is not None
        assert samples.batch_axes.inputs == {"x": 0}


def test_a_result_keeps_the_batch_that_samples_have_shown() -> None:
    """Random inputs would find that samples of different signs share a condition."""
    text = """
    net (float[N,8] x) => (float[N,3] y) <float[8,16] u, float[16,3] v, float none = {0}> {
      m = ReduceMean<keepdims = 0>(x) p = Less(m, none) f = Cast<to = 1>(p)
      a = MatMul(x, u) b = Relu(a) c = MatMul(b, v) y = Mul(c, f)
    }"""
    model = build(text)
    assert settled(Graph.from_model(model), None, {}).batch == 1
    samples = Samples({"x": -np.abs(drawn(N, 8))}, None, {})
    assert obc_onnx.compress(model, data=samples, budget=0.6).graph.batch is None


def test_constants_among_the_outputs_have_no_samples() -> None:
    """They are scored beside others, as one channel."""
    text = """
    net (float[N,8] x) => (float[N,3] y, float[2,3] anchors) <float[8,16] u, float[16,3] v> {
      anchors = Constant<value = float[2,3] {0, 1, 2, 3, 4, 5}>()
      a = MatMul(x, u) b = Relu(a) y = MatMul(b, v)
    }"""
    result = obc_onnx.compress(build(text), data=Samples({"x": drawn(N, 8)}, None, {}), budget=0.6)
    assert result.graph.batch_axes.outputs == {"y": 0, "anchors": None}
    errors = {output.name: output.error for output in result.report.outputs}
    assert errors["y"] > errors["anchors"] == 0


@pytest.mark.parametrize(("front", "size"), [(1, 1), (2, 2), ("N", None)])
def test_open_sizes_of_pictures_are_no_batch(front: int | str, size: int | None) -> None:
    text = f"net (float[{front},3,H,W] x) => (float[{front},2,H,W] y) <float[2,3,3,3] w> {{"
    model = build(text + "y = Conv<pads = [1, 1, 1, 1]>(x, w) }")
    found = settled(Graph.from_model(model), {"x": (size or 2, 3, 8, 8)}, {}).batch_axes
    assert (found.inputs, found.size) == ({"x": 0}, size)
    samples = Samples({"x": drawn(N, 3, 8, 8)}, None, {})
    placed = check_samples(samples, Graph.from_model(model)).batch_axes
    assert placed is not None
    assert (placed.inputs, placed.size) == ({"x": 0}, size)


def test_minus_one_is_an_open_size() -> None:
    model = build(SCALAR)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert Graph.from_model(model).batch_axes.inputs["x"] == 0
    assert Graph.from_model(model).batch is None


@pytest.mark.parametrize(
    ("file", "shapes", "axes", "size"),
    [
        ("silero-vad/silero_vad_half.onnx", {"input": (N, 576)}, {"input": 0, "state": 1}, None),
        (
            "silero-vad/silero_vad.onnx",
            {"input": (N, 512)},
            {"input": 0, "state": 1, "sr": None},
            None,
        ),
        (
            "silero-vad/silero_vad_openvino_16k.onnx",
            {"input": (N, 576)},
            {"input": 0, "state": 1},
            1,
        ),
        ("magika/model.onnx", {"bytes": (N, 2048)}, {"bytes": 0}, None),
    ],
)
def test_public_models_take_data(
    file: str, shapes: dict[str, tuple[int, ...]], axes: Axes, size: int | None
) -> None:
    graph = Graph.load(public_model(file))
    arrays: Arrays = {name: drawn(*shape) for name, shape in shapes.items()}
    arrays |= {"state": np.zeros((2, N, 128), np.float32), "sr": np.array(16000)}
    arrays = {port.name: arrays[port.name] for port in graph.inputs}
    if "bytes" in arrays:
        arrays["bytes"] = RNG.integers(0, 256, (N, 2048)).astype(np.int32)
    samples = check_samples(Samples(arrays, None, {}), graph)
    found = known_by(graph, samples)
    assert (found.batch_axes.inputs, found.batch) == (axes, size)
    coupling, _ = analyse(found, shapes_of(samples), DEFAULT_RULES, Clock(), feed=first_of(samples))
    assert coupling.shapes.keys() >= {port.name for port in graph.outputs}


def test_inputs_without_sizes_are_no_hindrance() -> None:
    model = build(SCALAR)
    onnx.helper.make_tensor_value_info("x", 1, None)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    samples = check_samples(samples_of("a number"), Graph.from_model(model))
    assert len(samples) == N


def test_a_constant_that_is_an_output_holds_no_samples() -> None:
    text = (
        "net (float[N,6] x) => (float[N,4] y, float[6] a) <float[6,4] w, float[6] a>"
        "{ y = MatMul(x, w) }"
    )
    batch = settled(Graph.from_model(build_at(text)), None, {}).batch_axes
    assert (batch.inputs, batch.outputs) == ({"x": 0}, {"y": 0, "a": None})


APART = """
net (float[2,3] x, float[4,5] z) => (float[2,4] y, float[4,5] u) <float[6,3] w, float[4,6] v> {
  a = Gemm<transB=1>(x, w) b = Relu(a) y = Gemm<transB=1>(b, v) u = Relu(z)
}"""


def test_static_sizes_that_contradict_each_other_count_no_samples() -> None:
    found = obc_onnx.inspect(build(APART))
    assert found.batch == ["'x' and 'z': no axis holds samples"]
    result = obc_onnx.compress(build(APART), budget=0.6)
    assert all(check.passed for check in result.report.verification)
    assert [group.kept for group in result.report.groups] < [6]
