"""Scores of models, samples and options that are out of the ordinary."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import analyse, build, run_onnx
from nets import Case, case_of, draw_samples, make_double, model_of

from obc_onnx.cli.main import cli
from obc_onnx.errors import DataError, RequestError
from obc_onnx.saliency.criteria import CRITERIA, make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.saliency.options import Scoring
from obc_onnx.saliency.scores import Scores, choose_criterion
from obc_onnx.twin.module import TorchTwin

if TYPE_CHECKING:
    from pathlib import Path

    from obc_onnx.samples.samples import Samples

SQUARE_ROOT = (
    "net (float[N,6] x) => (float[N,3] y) <float[6,5] a, float[5,4] b, float[4,3] c, int64[1] ax = {1}>"
    "{ h = MatMul(x, a) t = Tanh(h) g = MatMul(t, b) u = Tanh(g) s = Mul(u, u)"
    "  n = ReduceSum<keepdims=1>(s, ax) q = Sqrt(n) r = Add(u, q) y = MatMul(r, c) }"
)
TWO_AXES = (
    "net (float[N,3,4] x) => (float[N,2] y) <float[3,5] a, float[4,SIZE] b, float[5,SIZE,2] w>"
    '{ h = Einsum<equation = "nij,ip,jq->npq">(x, a, b) t = Tanh(h)'
    '  y = Einsum<equation = "npq,pqk->nk">(t, w) }'
)
ATTENTION = (
    "net (float[N,4,6] x) => (float[N,4,3] y)"
    "<float[6,5] wq, float[6,5] wk, float[6,7] wv, float[7,3] wo>"
    "{ q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose<perm=[0,2,1]>(k)"
    "  s = MatMul(q, kt) p = Softmax(s) o = MatMul(p, v) y = MatMul(o, wo) }"
)
OF_READS = ("activation", "variance", "apoz", "group-obs")


def score(
    case: Case, criterion: str, samples: Samples | None = None, **scoring: object
) -> dict[str, np.ndarray]:
    scene = Scene(case.coupling, samples, scoring=Scoring(**scoring))
    return make_criterion(criterion).score(scene, {})


def value(case: Case, samples: Samples, name: str) -> np.ndarray:
    model = case.graph.to_model()
    model.graph.output.add().name = name
    return run_onnx(type(case.graph).from_model(model), dict(samples.inputs))[name]


@pytest.mark.parametrize("criterion", ["jacobian", "taylor", "fisher", "taylor-group"])
def test_a_gradient_that_is_not_finite_is_an_error_and_no_score(criterion: str) -> None:
    """The root of zero: the loss is finite, its gradient is not."""
    case = case_of(build(SQUARE_ROOT))
    samples = draw_samples(case.graph, 8)
    samples.inputs["x"][3] = 0
    with pytest.raises(DataError, match=r"the score of unit \d of group '\w:1' is nan"):
        score(case, criterion, samples)


@pytest.mark.parametrize("criterion", ["jacobian", "taylor", "fisher"])
def test_a_loss_that_is_not_finite_is_an_error(criterion: str, tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text("def loss(outputs, labels):\n    return outputs['y'].sum(1) * float('nan')\n")
    case = case_of("gemm")
    with pytest.raises(DataError, match="not finite"):
        score(case, criterion, draw_samples(case.graph, 4), loss=f"{path}:loss")


@pytest.mark.parametrize("how", ["detach()", "round().to(torch.int64).to(torch.float32)"])
@pytest.mark.parametrize("criterion", ["jacobian", "taylor"])
def test_a_loss_without_a_gradient_is_refused(criterion: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / "loss.py"
    path.write_text(
        f"import torch\ndef loss(outputs, labels):\n    return outputs['y'].{how}.sum(1)\n"
    )
    case = case_of("gemm")
    with pytest.raises(RequestError, match="cannot be differentiated"):
        score(case, criterion, draw_samples(case.graph, 4), loss=f"{path}:loss")


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "jacobian"])
def test_a_model_without_groups_has_no_scores(criterion: str) -> None:
    text = "net (float[N,6] x) => (float[N,4] y) <float[4,6] w> { y = Gemm<transB=1>(x, w) }"
    case = case_of(build(text))
    assert score(case, criterion, draw_samples(case.graph, 2)) == {}


def quantised(model: onnx.ModelProto, tmp_path: Path, samples: Samples, form: str) -> Case:
    """Quantise as ONNX Runtime does, with one zero point and scale for each tensor."""
    quantization = pytest.importorskip("onnxruntime.quantization", reason="needs its quantiser")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter([dict(samples.inputs)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.feeds, None)

    plain, made = tmp_path / "plain.onnx", tmp_path / f"{form}.onnx"
    model.ir_version = 8
    onnx.save(model, plain)
    quantization.quantize_static(
        str(plain),
        str(made),
        Reader(),
        quant_format=quantization.QuantFormat[form],
        weight_type=quantization.QuantType.QUInt8,
        activation_type=quantization.QuantType.QUInt8,
    )
    return Case(*analyse(onnx.load(made)))


@pytest.mark.parametrize("criterion", ["l1", "l2", "whc", "fpgm"])
def test_stored_integers_count_as_what_they_stand_for(criterion: str, tmp_path: Path) -> None:
    """The zero point of eight bits is near 128, which would drown all weights."""
    model = model_of("dense")
    plain = Case(*analyse(model))
    samples = draw_samples(plain.graph, 16)
    rows = score(quantised(model, tmp_path, samples, "QOperator"), criterion)
    expected = score(plain, criterion)
    assert rows.keys() == {"w2_quantized:0"}  # elsewhere stored zeros are no real ones
    values = expected["w2:0"]
    np.testing.assert_allclose(rows["w2_quantized:0"], values, rtol=0.03)


@pytest.mark.parametrize("size", [6, 5])
def test_two_axes_that_one_operand_is_read_along_have_their_own_scores(size: int) -> None:
    case = case_of(make_double(build(TWO_AXES.replace("SIZE", str(size)))))
    samples = draw_samples(case.graph, 7)
    t, w = value(case, samples, "t"), np.abs(case.graph.initializers["w"])
    found = {criterion: score(case, criterion, samples) for criterion in OF_READS}
    for name, axis in (("a:1", 1), ("b:1", 2)):
        others = tuple(i for i in range(3) if i != axis)
        norms = np.sqrt((t**2).sum(others)) * w.sum(tuple(i - 1 for i in (*others[1:], 3)))
        np.testing.assert_allclose(found["activation"][name], norms, rtol=1e-6)
        np.testing.assert_allclose(found["variance"][name], t.var(others), rtol=1e-6)


def test_a_weight_that_is_used_twice_reads_what_both_uses_are_given() -> None:
    text = (
        "net (float[N,6] x) => (float[N,3] y) <float[6,5] a, float[5,3] w>"
        "{ h = MatMul(x, a) t = Relu(h) n = Neg(h) u = Relu(n) p = MatMul(t, w) q = MatMul(u, w)"
        "  y = Add(p, q) }"
    )
    case = case_of(make_double(build(text)))
    samples = draw_samples(case.graph, 9)
    seen = np.concatenate([value(case, samples, "t"), value(case, samples, "u")])
    weights = np.abs(case.graph.initializers["w"]).sum(1)
    norms = np.linalg.norm(seen, axis=0) * weights
    np.testing.assert_allclose(score(case, "activation", samples)["a:1"], norms, rtol=1e-6)
    np.testing.assert_allclose(score(case, "variance", samples)["a:1"], seen.var(0), rtol=1e-6)


def test_what_a_criterion_says_nothing_of_can_be_left_whole(tmp_path: Path) -> None:
    """Queries and keys meet each other and no weight."""
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    case = case_of(build(ATTENTION))
    case.graph.save(model)
    np.savez(data, **draw_samples(case.graph, 10).inputs)
    found = score(case, "variance", draw_samples(case.graph, 4))
    assert {"wv:1"} <= found.keys() < {group.name for group in case.coupling.groups}
    command = ["compress", str(model), "--data", str(data), "-o", str(tmp_path / "small.onnx")]
    command += ["--criterion", "variance", "--target-macs", "0.9"]
    refused = CliRunner().invoke(cli, command)
    assert refused.exit_code == 1
    assert "says nothing of group 'wq:1'" in refused.output
    assert CliRunner().invoke(cli, [*command, "--exclude", "wq"]).exit_code == 0


@pytest.mark.parametrize(
    ("shape", "tail"),
    [("float[N,5,4] y", "y = Relu(h)"), ("int64[N,4] y", "y = Cast<to=7>(h)")],
)
def test_answers_of_a_model_need_classes(shape: str, tail: str) -> None:
    text = "net (float[N,5,6] x) => (SHAPE) <float[6,4] a, float[4,4] b> { g = MatMul(x, a) h = MatMul(g, b) TAIL }"
    case = case_of(build(text.replace("SHAPE", shape).replace("TAIL", tail)))
    with pytest.raises(
        RequestError, match=r"shape \[batch, classes\]: use `Scoring\(objective='output'\)`"
    ):
        score(case, "jacobian", draw_samples(case.graph, 3), objective="pseudo")


def test_labels_alone_decide_only_where_they_say_all() -> None:
    text = (
        "net (float[N,6] x) => (float[N,4] y, float[N,3] box)"
        "<float[6,5] a, float[5,4] b, float[6,7] c, float[7,3] d>"
        "{ h = MatMul(x, a) y = MatMul(h, b) g = MatMul(x, c) box = MatMul(g, d) }"
    )
    case = case_of(build(text))
    samples = draw_samples(case.graph, 8, labelled=True)
    assert not score(case, "jacobian", samples, objective="labels")["c:1"].any()
    assert (score(case, "jacobian", samples)["c:1"] > 0).all()


@pytest.mark.parametrize("criterion", OF_READS)
def test_a_pass_that_ran_out_of_memory_counts_once(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("dense")
    samples = draw_samples(case.graph, 11)
    expected = score(case, criterion, samples, batch_size=8)
    whole = TorchTwin.__call__

    def cramped(twin: TorchTwin, *inputs: torch.Tensor) -> object:
        outputs = whole(twin, *inputs)
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs

    monkeypatch.setattr(TorchTwin, "__call__", cramped)
    for name, values in score(case, criterion, samples, batch_size=8).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


def test_a_loss_in_half_precision_is_summed_in_single() -> None:
    """A sum of 64 x 400 numbers of some hundreds is more than half precision holds."""
    text = (
        "net (float16[N,6] x) => (float16[N,400] y) <float16[6,5] a, float16[5,400] b, float16[1] k>"
        "{ h = MatMul(x, a) t = Tanh(h) g = MatMul(t, b) y = Mul(g, k) }"
    )
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 5), "b": (5, 400)}
    weights = {name: rng.standard_normal(s).astype(np.float16) for name, s in shapes.items()}
    model = build(text, {**weights, "k": np.array([300], np.float16)})
    case = case_of(model)
    samples = draw_samples(case.graph, 64)
    rows = score(case, "jacobian", samples, batch_size=64)
    assert all(np.isfinite(values).all() for values in rows.values())


def test_group_obs_lets_no_removed_unit_make_up_for_one_that_is_left() -> None:
    text = "net (float[N,6] x) => (float[N,3] y) <float[6,4] a, float[4,3] b> { h = MatMul(x, a) y = MatMul(h, b) }"
    model = build(text)
    first = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    first[:, 1] = first[:, 0]
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(first, "a"))
    case = case_of(model)
    (group,) = case.coupling.groups
    scene = Scene(case.coupling, draw_samples(case.graph, 30))
    whole = make_criterion("group-obs").score(scene, {})["a:1"]
    alone = make_criterion("group-obs").score(scene, {group.dim: np.array([1, 0, 1, 1], bool)})
    assert alone["a:1"][0] > 10 * whole[0]


def test_the_root_is_taken_before_scores_are_divided() -> None:
    case = case_of("residual")
    plain, shares = score(case, "l2"), score(case, "l2", normalizer="sum")
    for name, values in plain.items():
        np.testing.assert_allclose(shares[name], values / values.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    ("criterion", "field", "value"),
    [
        ("l2", "rows", "batch"),
        ("l1", "reduction", "coupled"),
        ("random", "normalizer", "max"),
        ("taylor-group", "reduction", "mean"),
        ("taylor", "rows", "batch"),
        ("variance", "objective", "output"),
    ],
)
def test_what_a_criterion_does_not_look_at_is_refused(
    criterion: str, field: str, value: object
) -> None:
    samples = draw_samples(case_of("gemm").graph, 2)
    assert choose_criterion(criterion, samples, Scoring()).name == criterion
    with pytest.raises(RequestError, match=f"'{criterion}' does not look at"):
        choose_criterion(criterion, samples, replace(Scoring(), **{field: value}))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_names_what_it_looks_at(criterion: str) -> None:
    known = {*Scoring.__dataclass_fields__, "coupled"}
    assert make_criterion(criterion).uses <= known


@pytest.mark.parametrize(
    "arrays",
    [
        {"a:1": np.array(["x"])},
        {"a:1": np.ones((2, 2))},
        {"a:1": np.ones(2, np.complex128)},
        {"a:1": np.ones(2, np.bool_)},
    ],
)
def test_scores_of_another_kind_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    Scores("0" * 64, "l2", 0, {}, arrays).save(path)
    with pytest.raises(RequestError, match="no file of scores"):
        Scores.load(path)


def test_scores_of_other_sizes_are_named() -> None:
    case = case_of("gemm")
    found = Scores(case.graph.sha256, "l2", 0, {}, {"w1:0": np.ones(1)})
    with pytest.raises(RequestError, match="the scores have 1 units for group 'w1:0'"):
        found.check(case.coupling)


@pytest.mark.parametrize("objective", ["output", "pseudo", "labels", "mixed"])
def test_rows_are_those_of_samples_where_nothing_is_said(objective: str) -> None:
    """The mean of random projections is one random projection: fewer rows, and nothing gained."""
    case = Case(*analyse(model_of("dense")))
    samples = draw_samples(case.graph, 9, labelled=True)
    found = score(case, "jacobian", samples, objective=objective)
    for rows, same in (("sample", True), ("batch", False)):
        asked = score(case, "jacobian", samples, objective=objective, rows=rows)
        assert all(np.array_equal(found[name], asked[name]) for name in found) == same


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    case = Case(*analyse(model_of("gemm")))
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    case.graph.save(model)
    samples = draw_samples(case.graph, 20, labelled=True)
    np.savez(data, **samples.inputs, labels=samples.labels)
    return str(model), str(data)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--samples", "4", "--batches", "2"], "leave out --samples"),
        (["--loss", "x.py:f", "--objective", "output"], "leave out --objective"),
        (["--device", "nonsense"], "cannot use device 'nonsense'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    files: tuple[str, str], tmp_path: Path, given: list[str], words: str
) -> None:
    model, data = files
    command = ["score", model, "--data", data, "-o", str(tmp_path / "s.npz"), *given]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 1
    assert words in result.output


def test_scores_that_are_there_are_not_scored_again(files: tuple[str, str], tmp_path: Path) -> None:
    model, _ = files
    scores = tmp_path / "scores.npz"
    assert CliRunner().invoke(cli, ["score", model, "-o", str(scores)]).exit_code == 0
    command = ["compress", model, "--scores", str(scores), "-o", str(tmp_path / "o.onnx")]
    result = CliRunner().invoke(cli, [*command, "--rows", "sample"])
    assert result.exit_code == 1
    assert "is in --scores already: leave out --rows" in result.output


def test_options_beside_a_preset_change_it(files: tuple[str, str], tmp_path: Path) -> None:
    model, data = files
    out = tmp_path / "s.npz"
    command = ["score", model, "--data", data, "-o", str(out), "--preset", "paper"]
    assert (
        CliRunner().invoke(cli, [*command, "--samples", "6", "--batch-size", "auto"]).exit_code == 0
    )
    found = Scores.load(out).scoring
    assert (found["samples"], found["batches"], found["batch_size"]) == (6, None, None)
