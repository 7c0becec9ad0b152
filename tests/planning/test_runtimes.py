"""Widths for the runtime that a model is to run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from helpers import build
from onnx import numpy_helper
from small import assert_refused, invoke, saved

from obc_onnx import Budget, Scope, compress
from obc_onnx.errors import InfeasibleTargetError, RequestError
from obc_onnx.planning.scope import RUNTIMES

if TYPE_CHECKING:
    from pathlib import Path

NET = (
    "net (float[N,3,8,8] x) => (float[N,10,8,8] y)"
    "<float[48,3,3,3] a, float[48,1,3,3] b, float[64,48,1,1] c, float[40,64,1,1] d,"
    " float[64,52,3,3] e, float[10,64,1,1] f>"
    "{ h = Conv <pads = [1,1,1,1]> (x, a) i = Relu(h) j = Conv <group = 48, kernel_shape = [3,3], pads = [1,1,1,1]> (i, b)"
    " k = Conv(j, c) l = Relu(k) m = Conv(l, d) n = Concat <axis = 1> (l, m)"
    " o = Conv <group = 2, pads = [1,1,1,1]> (n, e) p = Relu(o) y = Conv(p, f) }"
)
"""A depthwise convolution, a concatenation, and a convolution of two blocks."""


def pruned(runtime: str, share: float = 0.6) -> tuple[onnx.ModelProto, dict[str, dict[str, list]]]:
    budget = Budget(target_macs=share, scope=Scope(runtime=runtime))
    result = compress(build(NET), budget=budget, latency=False)
    return result.model, dict(result.plan.initializers)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_widths_that_shrink_are_multiples_of_its_block(runtime: str) -> None:
    block = RUNTIMES[runtime]
    _, sliced = pruned(runtime)
    assert sliced
    for name, axes in sliced.items():
        for axis, kept in axes.items():
            assert len(kept) % block == 0, (name, axis)


def quantised(model: onnx.ModelProto) -> set[str]:
    """Name the convolutions that ModelOpt's INT8 quantiser takes, by what they give.

    Source: find_nodes_from_convs_to_exclude of modelopt/onnx/quantization/graph_utils.py, ModelOpt
    0.47. Channels that are read are those of a block; a kernel that the node does not tell is 1 x 1.
    """
    inputs = {port.name for port in model.graph.input}
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = set()
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        told = {own.name: onnx.helper.get_attribute_value(own) for own in node.attribute}
        group, kernel = told.get("group", 1), told.get("kernel_shape", [1, 1])
        out, ins = weights[node.input[1]].shape[:2]
        wide = out >= 16 and ins >= 16
        plain = group == 1 and (out % 8 == 0 or ins % 8 == 0) and len(set(kernel)) == 1
        large = max(out, ins) >= 16 or node.input[0] in inputs
        grouped = group > 1 and out % 8 == 0 and min(kernel) >= 3
        if wide or (plain and large) or grouped:
            found.add(node.output[0])
    return found


def test_what_modelopt_quantises_of_a_model_it_quantises_of_the_result() -> None:
    before = quantised(build(NET))
    assert len(before) == 6
    assert quantised(pruned("tensorrt-int8")[0]) == before


def test_modelopt_leaves_odd_widths_out() -> None:
    """Else the test above would hold of whatever is cut."""
    scope = Scope(round_to=1)
    odd = compress(build(NET), budget=Budget(target_macs=0.55, scope=scope), latency=False).model
    assert quantised(odd) < quantised(build(NET))


def test_a_runtime_is_not_given_up_for_a_target() -> None:
    with pytest.raises(InfeasibleTargetError):
        pruned("tensorrt-int8", 0.02)


def test_what_says_two_things_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"`Scope.runtime` says that widths are multiples of 16"):
        Scope(runtime="tensorrt-int8", round_to=8)
    with pytest.raises(RequestError, match="'abacus' is not known: choose from onnxruntime-cpu"):
        Scope(runtime="abacus")
    command = ("compress", saved(tmp_path), "-o", tmp_path / "s.onnx", "--round-to", "4")
    refused = invoke(*command, "--for", "openvino")
    assert_refused(refused, "--for says that widths are multiples of 8: leave --round-to out")
