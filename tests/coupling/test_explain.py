"""What `inspect --explain` says of an axis."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest
from click.testing import CliRunner
from helpers import build, coupling_of

from obc_onnx.cli.main import cli
from obc_onnx.coupling.explain import explain
from obc_onnx.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

NET = (
    "net (float[N,3,8,8] x) => (float[N,4,H,W] y) <float[6,3,1,1] a, float[6,6,1,1] b,"
    " float[4,6,1,1] c, int64[5] to = {0,2,3,8,8}, int64[4] back = {0,6,8,8}>"
    "{ [first] p = Conv(x, a) [shape] q = Reshape(p, to) [act] r = Relu(q)"
    "  [unshape] s = Reshape(r, back) [inner] t = Conv(s, b) [sum] u = Add(t, s)"
    "  [last] y = Conv(u, c) }"
)


def test_a_path_leads_from_an_axis_to_every_other_that_holds_a_dim() -> None:
    (axis,) = explain(coupling_of(NET), "a:0")
    assert axis.place == "a axis 0"
    assert axis.expression == "a:0.0(2) x a:0.1(3)"
    blocks, inner = axis.dims
    assert (blocks.name, blocks.size, blocks.state) == ("a:0.0", 2, "free")
    assert (inner.name, inner.size, inner.state) == ("a:0.1", 3, "free")
    assert [(step.node, step.source, step.target) for step in blocks.steps[:3]] == [
        ("Conv 'first'", "a axis 0", "p axis 1"),
        ("Reshape 'shape'", "p axis 1", "q axis 1"),
        ("Relu 'act'", "q axis 1", "r axis 1"),
    ]
    assert {step.target for step in inner.steps} == {
        "p axis 1", "q axis 2", "r axis 2", "s axis 1", "b axis 1", "t axis 1", "u axis 1",
        "b axis 0", "c axis 1",
    }  # fmt: skip


def test_every_step_starts_where_an_earlier_one_ended() -> None:
    for axis in explain(coupling_of(NET), "u"):
        for dim in axis.dims:
            reached = {axis.place}
            for step in dim.steps:
                assert step.source in reached
                assert step.target not in reached
                reached.add(step.target)


def test_the_reason_of_a_frozen_axis_is_told() -> None:
    coupling = coupling_of(NET)
    states = [dim.state for axis in explain(coupling, "y") for dim in axis.dims]
    assert states[:2] == ["frozen: the batch", "frozen: graph output 'y'"]
    (channels,) = explain(coupling, "c:0")[0].dims
    assert channels.state == "frozen: graph output 'y'"
    assert [step.target for step in channels.steps] == ["y axis 1"]


def test_an_inexact_dim_says_why() -> None:
    coupling = coupling_of(
        "net (float[N,3,8,8] x) => (float[N,4,H,W] y) <float[6,3,1,1] a, float[4,6,1,1] c>"
        "{ p = Conv(x, a) [centre] m = ReduceMean<axes=[1]>(p) q = Sub(p, m) y = Conv(q, c) }"
    )
    assert explain(coupling, "a:0")[0].dims[0].state == "inexact: mean in ReduceMean 'centre'"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weight", "the model has no tensor 'weight'"),
        ("a:4", "tensor 'a' has 4 axes, so none with number 4"),
        ("a:first", "the model has no tensor 'a:first' whose axes are known: did you mean a?"),
    ],
)
def test_a_name_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("?", r"\?")):
        explain(coupling_of(NET), name)


def test_the_command_prints_paths_and_json(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(build(NET), path)
    run = CliRunner().invoke(cli, ["inspect", str(path), "--explain", "b:1"])
    assert run.exit_code == 0
    lines = run.output.splitlines()
    assert lines[0] == "b axis 1 = a:0.0(2) x a:0.1(3)"
    assert "      s axis 1   by Conv 'inner', from b axis 1" in lines
    run = CliRunner().invoke(cli, ["inspect", str(path), "--explain", "b:1", "--json"])
    (axis,) = json.loads(run.output)["explained"]
    assert [dim["name"] for dim in axis["dims"]] == ["a:0.0", "a:0.1"]
    run = CliRunner().invoke(cli, ["inspect", str(path), "--explain", "bb"])
    assert run.exit_code == 1
    assert "did you mean b?" in run.output
    assert "Traceback" not in run.output
