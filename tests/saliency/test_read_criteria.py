"""Criteria that look at what weights read, against numpy on these values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from helpers import build
from nets import case_of, draw_samples, make_double
from scoring import score_by, tensor

from obc_onnx.cli.main import cli
from obc_onnx.saliency.criteria import make_criterion
from obc_onnx.saliency.criterion import Scene
from obc_onnx.twin.module import TorchTwin

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.mark.parametrize("size", [6, 5])
def test_two_axes_that_one_operand_is_read_along_have_their_own_scores(size: int) -> None:
    case = case_of(make_double(build(TWO_AXES.replace("SIZE", str(size)))))
    samples = draw_samples(case.graph, 7)
    t, w = tensor(case, "t", samples), np.abs(case.graph.initializers["w"])
    found = {criterion: score_by(criterion, case, samples) for criterion in OF_READS}
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
    seen = np.concatenate([tensor(case, "t", samples), tensor(case, "u", samples)])
    weights = np.abs(case.graph.initializers["w"]).sum(1)
    norms = np.linalg.norm(seen, axis=0) * weights
    np.testing.assert_allclose(score_by("activation", case, samples)["a:1"], norms, rtol=1e-6)
    np.testing.assert_allclose(score_by("variance", case, samples)["a:1"], seen.var(0), rtol=1e-6)


def test_what_a_criterion_says_nothing_of_can_be_left_whole(tmp_path: Path) -> None:
    """Queries and keys meet each other and no weight."""
    model, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    case = case_of(build(ATTENTION))
    case.graph.save(model)
    np.savez(data, **draw_samples(case.graph, 10).inputs)
    found = score_by("variance", case, draw_samples(case.graph, 4))
    assert {"wv:1"} <= found.keys() < {group.name for group in case.coupling.groups}
    command = ["compress", str(model), "--data", str(data), "-o", str(tmp_path / "small.onnx")]
    command += ["--criterion", "variance", "--target-macs", "0.9"]
    refused = CliRunner().invoke(cli, command)
    assert refused.exit_code == 1
    assert "says nothing of group 'wq:1'" in refused.output
    assert CliRunner().invoke(cli, [*command, "--exclude", "wq"]).exit_code == 0


@pytest.mark.parametrize("criterion", OF_READS)
def test_a_pass_that_ran_out_of_memory_counts_once(
    criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("dense")
    samples = draw_samples(case.graph, 11)
    expected = score_by(criterion, case, samples, batch_size=8)
    whole = TorchTwin.__call__

    def cramped(twin: TorchTwin, *inputs: torch.Tensor) -> object:
        outputs = whole(twin, *inputs)
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return outputs

    monkeypatch.setattr(TorchTwin, "__call__", cramped)
    for name, values in score_by(criterion, case, samples, batch_size=8).items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)


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
