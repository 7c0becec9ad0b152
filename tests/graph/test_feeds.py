"""Inputs that are drawn where there is no data."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import build

from obc_onnx.errors import ModelError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.model import Graph
from obc_onnx.graph.shapes import infer_shapes

STEP = (
    "net (float[2,8] x, int64[1] step, int64[1] last) => (float[2,M] y)"
    "<int64[1] one = {1}, int64[1] end = {8}>"
    "{ y = Slice(x, last, end, one, step) }"
)
MASKED = (
    "net (float[2,3,3] x, int64[2,1,3] mask) => (float[2,3,3] y) <float one = {1}, float big = {9e9}>"
    "{ m = Cast<to=1>(mask) k = Log(m) h = Add(x, k) y = Softmax(h) }"
)


def feed_of(text: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return random_feed(Graph.from_model(build(text)), shapes, 0)


def test_a_step_of_zero_is_refused_so_that_it_is_one() -> None:
    shapes = {"x": (2, 8), "step": (1,), "last": (1,)}
    graph = Graph.from_model(build(STEP))
    assert random_feed(graph, shapes, 0)["step"] == 1
    assert infer_shapes(graph, shapes)["y"][0] == 2


def test_a_mask_is_not_drawn_so_that_it_hides_a_whole_row() -> None:
    """Softmax of -inf alone is no number."""
    shapes = {"x": (2, 3, 3), "mask": (2, 1, 3)}
    for seed in range(20):
        mask = random_feed(Graph.from_model(build(MASKED)), shapes, seed)["mask"]
        assert mask.any(axis=2).all()


def test_pixels_take_every_value() -> None:
    text = "net (uint8[1,3,8,8] x) => (float[1,3,8,8] y) { y = Cast<to=1>(x) }"
    pixels = feed_of(text, {"x": (1, 3, 8, 8)})["x"]
    assert pixels.dtype == np.uint8
    assert len(np.unique(pixels)) > 50


def test_a_model_that_runs_on_no_input_is_refused() -> None:
    text = "net (float[2,3] x, int64[1] i) => (float[2,3] y) <int64[2] to = {5,5}> { y = Reshape(x, to) }"
    with pytest.raises(ModelError, match="cannot run"):
        feed_of(text, {"x": (2, 3), "i": (1,)})
