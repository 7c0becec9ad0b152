"""What attention that is spelled out leaves free: for any length, and once it is fused."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import analyse, assert_pruned_equals_masked, make_feed, random_keep
from ops import (
    cases_grouped_heads,
    cases_transformer,
    cases_transformer_maps,
    cases_transformer_scores,
)
from ops.cases_transformer import FREE

if TYPE_CHECKING:
    from pathlib import Path

    from ops.cases import Case

    from obc_onnx.coupling.model import Coupling

OPEN = (
    "MatMul-plain",
    "MatMul-keys_transposed_later",
    "Split-split",
    "Gather-gathered",
    "Split-heads_first",
    "MatMul-torch_module_dynamic",
    "MatMul-shared_heads_broadcast",
    "Where-mask_of_positions",
    "MatMul-scale_of_the_width",
    "Shape-computed_targets",
    "MatMul-computed_widths",
)
"""Rows that say nothing of how many positions there are."""


CASES = (
    *cases_transformer.CASES,
    *cases_grouped_heads.CASES,
    *cases_transformer_maps.CASES,
    *cases_transformer_scores.CASES,
)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def sizes_of(coupling: Coupling) -> tuple[int, ...]:
    return tuple(sorted(group.size for group in coupling.groups))


@each_case
def test_heads_and_their_widths_may_be_removed(case: Case) -> None:
    assert sizes_of(case.analysed.coupling) == FREE[case.id]


@pytest.mark.parametrize("name", OPEN)
def test_so_they_may_with_any_number_of_positions(name: str) -> None:
    case = next(case for case in CASES if case.id == name)
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "S"
    graph, _, coupling = analyse(model, shapes={"x_X": (2, 5, 3)})
    assert sizes_of(coupling) == FREE[name]
    rng = generator(name)
    for length in (7, 1):
        feed = make_feed(graph, rng, 3) | {"x_X": rng.standard_normal((3, length, 3), np.float32)}
        assert_pruned_equals_masked(coupling, random_keep(coupling, rng), feed)


@each_case
def test_so_they_may_where_onnx_runtime_fused_operators(case: Case, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    model = case.model.SerializeToString()
    onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    coupling = analyse(onnx.load(options.optimized_model_filepath)).coupling
    assert sizes_of(coupling) == FREE[case.id]
    rng = generator(case.id)
    assert_pruned_equals_masked(coupling, random_keep(coupling, rng), case.feed(rng, 3))
