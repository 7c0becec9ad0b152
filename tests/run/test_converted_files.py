"""Files as ONNX Runtime's converter to float16 writes them: with casts, and nodes in any order."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import build
from onnxruntime.transformers.float16 import convert_float_to_float16

from obc_onnx import Samples, compress, verify

if TYPE_CHECKING:
    from pathlib import Path

NET = (
    "net (float[N,3,8,8] x) => (float[N,5] y) <float[16,3,3,3] a, float[16] k, float[16] s,"
    " float[16] o, float[16] m, float[16] var, float[24,16,3,3] b, float[24,5] c>"
    "{ h = Conv <pads = [1,1,1,1]> (x, a, k) n = BatchNormalization(h, s, o, m, var) r = Relu(n)"
    " g = Conv <pads = [1,1,1,1]> (r, b) t = Relu(g)"
    " p = ReduceMean <axes = [2,3], keepdims = 0> (t) y = MatMul(p, c) }"
)


def converted(*, keeps: bool, blocked: tuple[str, ...] = ()) -> onnx.ModelProto:
    model = onnx.shape_inference.infer_shapes(build(NET))
    return convert_float_to_float16(model, keep_io_types=keeps, op_block_list=list(blocked))


def samples(dtype: type) -> Samples:
    x = np.random.default_rng(0).standard_normal((100, 3, 8, 8)).astype(dtype)
    return Samples({"x": x}, None, {})


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("blocked", [(), ("ReduceMean", "BatchNormalization")])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_converted_file_is_pruned_and_repaired(
    keeps: bool, blocked: tuple[str, ...], data: bool, tmp_path: Path
) -> None:
    onnx.save(converted(keeps=keeps, blocked=blocked), tmp_path / "half.onnx")
    dtype = np.float32 if keeps else np.float16
    source = samples(dtype) if data else None
    result = compress(
        tmp_path / "half.onnx", data=source, budget=0.5, recover_minutes=0.01, latency=False
    )
    result.save(tmp_path / "small.onnx")
    checks = verify(tmp_path / "half.onnx", tmp_path / "small.onnx", result.plan)
    assert all(check.passed for check in checks), [c for c in checks if not c.passed]
    assert result.report.macs.after < result.report.macs.before
    kinds = [
        {t.name: t.data_type for t in onnx.load(tmp_path / name).graph.initializer}
        for name in ("half.onnx", "small.onnx")
    ]
    assert kinds[0] == kinds[1]
    if data:
        assert any(step.kept for step in result.report.recovery)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (y,) = session.run(None, {"x": np.ones((2, 3, 8, 8), dtype)})
    assert y.dtype == dtype


def test_the_converter_writes_nodes_in_another_order() -> None:
    """Or else the tests above show less than they seem to."""
    known = {"x"} | {t.name for t in converted(keeps=True).graph.initializer}
    is_sorted = True
    for node in converted(keeps=True).graph.node:
        is_sorted &= known.issuperset(node.input)
        known.update(node.output)
    assert not is_sorted
