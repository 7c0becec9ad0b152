"""Forms of the newest opset, which ONNX Runtime does not run: onnx's own evaluator does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from helpers import Analysed, analyse, assert_close, build, make_feed, random_keep
from onnx.reference import ReferenceEvaluator

from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.surgery.cut import remove_units
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.twin.build import build_twin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph

NEWEST = onnx.defs.onnx_opset_version()
CALLS = tuple(
    f'{op_type}<blocksize=2, mode="{mode}">'
    for op_type in ("DepthToSpace", "SpaceToDepth")
    for mode in ("DCR", "CRD")
)
each_call = pytest.mark.parametrize("call", CALLS)


def analysed(call: str) -> Analysed:
    """Analyse the call between two weights, for maps of 8 channels."""
    width = 2 if call.startswith("Depth") else 32
    text = f"p = Conv(x, a) q = {call}(p) y = Conv(q, b)"
    return analyse(
        build(
            f"net (float[N,3,4,6] x) => (float[N,5,H,W] y)"
            f"<float[8,3,1,1] a, float[5,{width},1,1] b> {{ {text} }}",
            opset=NEWEST,
        )
    )


def evaluate(graph: Graph, feed: dict[str, NDArray]) -> dict[str, NDArray]:
    (y,) = ReferenceEvaluator(graph.to_model()).run(None, feed)
    return {"y": y}


@each_call
def test_a_pruned_model_equals_the_masked_model(call: str, rng: np.random.Generator) -> None:
    graph, _, coupling = analysed(call)
    assert [group.size for group in coupling.groups] == [2 if call.startswith("Depth") else 8]
    feed = make_feed(graph, rng)
    keep = random_keep(coupling, rng)
    pruned = evaluate(remove_units(coupling, keep), feed)
    assert_close(pruned, evaluate(mask_reads(coupling, keep), feed))


@each_call
def test_the_twin_equals_the_evaluator(call: str, rng: np.random.Generator) -> None:
    graph, shapes, _ = analysed(call)
    feed = make_feed(graph, rng)
    with torch.no_grad():
        (y,) = build_twin(graph, shapes, DEFAULT_RULES)(torch.from_numpy(feed["x"]))
    assert_close({"y": y.numpy()}, evaluate(graph, feed))
