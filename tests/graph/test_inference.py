"""Sizes of values, against onnx's own inference with all of its data propagation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from conftest import ROOT
from helpers import build

from obc_onnx.graph.inference import infer_sizes

if TYPE_CHECKING:
    from pathlib import Path

SHAPED = (
    "net (float[2,12] x) => (float[a,b,c] y)"
    "{ s = Shape(x) n = Gather(s, zero) t = Concat<axis=0>(n, three, four) r = Reshape(x, t)"
    "  u = Shape(r) m = Gather(u, one) v = Add(m, m) w = ConstantOfShape(v) k = Shape(w)"
    "  q = Expand(r, big) y = Neg(q) }"
)
CONSTANTS = {"zero": [0], "one": [1], "three": [3], "four": [4], "big": [2, 3, 4]}


def all_of_onnx(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Infer with data propagation, as onnx has it."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    kinds = {port.name: port.type.tensor_type for port in (*graph.value_info, *graph.output)}
    return {
        name: tuple(dim.dim_value for dim in kind.shape.dim)
        for name, kind in kinds.items()
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim)
    }


def assert_infers_as_onnx(model: onnx.ModelProto) -> None:
    """Check that no size is lost, and none is another one."""
    found, expected = infer_sizes(model), all_of_onnx(model)
    assert expected
    assert {name: found.get(name) for name in expected} == expected


def test_sizes_that_are_computed_are_found() -> None:
    model = build(SHAPED, CONSTANTS)
    assert infer_sizes(model)["w"] == (6,)
    assert_infers_as_onnx(model)


@pytest.mark.parametrize("path", sorted(ROOT.glob("models/*.onnx")), ids=lambda path: path.stem)
def test_sizes_of_shipped_models_are_those_of_onnx(path: Path) -> None:
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert_infers_as_onnx(model)


def test_numbers_behind_a_short_vector_are_followed_again() -> None:
    """What may be long is left out at first; once its length is known, it is taken in."""
    model = build(
        "net (float[2,12] x) => (float[a,b] y)"
        "{ s = Shape(x) n = Gather(s, one) t = Concat<axis=0>(two, n) f = ConstantOfShape(one)"
        "  e = Expand(f, n) i = Cast<to=7>(e) p = Shape(i) q = Concat<axis=0>(two, p)"
        "  y = Reshape(x, q) }",
        {"one": [1], "two": [2]},
    )
    assert infer_sizes(model)["y"] == (2, 12)


def test_a_long_vector_leaves_other_sizes_as_they_are() -> None:
    model = build(
        "net (float[2,12] x, float[4096] v) => (float[a,b,c] y, float[d] z)"
        "{ s = Shape(x) n = Gather(s, zero) t = Concat<axis=0>(n, three, four) y = Reshape(x, t)"
        "  z = Mul(v, v) }",
        {name: np.array(value) for name, value in CONSTANTS.items()},
    )
    found = infer_sizes(model)
    assert (found["y"], found["z"]) == ((2, 3, 4), (4096,))
