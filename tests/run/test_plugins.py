"""Models with nodes that ONNX Runtime does not know, such as plugins of TensorRT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from helpers import IR_VERSION
from onnx import numpy_helper
from plugin_graphs import ROWS, feed_of, is_plugin, masked, plugin_model, run_parts

from obc_onnx import TrainingOptions, compress, inspect, verify
from obc_onnx.errors import DataError, ModelError, ShapeError, UnsupportedOperatorError
from obc_onnx.graph.model import Graph
from obc_onnx.planning.plan import PruningPlan
from obc_onnx.run.strip import strip
from obc_onnx.run.twin_program import TwinProgram
from obc_onnx.samples.read import check_samples
from obc_onnx.samples.samples import Samples
from obc_onnx.verification.apart import NAME

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIDDLE = ROWS["in the middle"]


def unknown(model: onnx.ModelProto) -> dict[str, bytes]:
    return {n.output[0]: n.SerializeToString() for n in model.graph.node if is_plugin(n)}


def is_sorted(model: onnx.ModelProto) -> bool:
    known = {port.name for port in model.graph.input} | {t.name for t in model.graph.initializer}
    for node in model.graph.node:
        if not known.issuperset(filter(None, node.input)):
            return False
        known.update(node.output)
    return True


@pytest.mark.parametrize("name", ROWS)
def test_all_but_the_plugins_is_pruned_and_equals_the_masked_original(
    name: str, tmp_path: Path
) -> None:
    row = ROWS[name]
    model = plugin_model(row)
    onnx.save(model, tmp_path / "model.onnx")
    result = compress(tmp_path / "model.onnx", budget=0.4, latency=False)
    result.save(tmp_path / "small.onnx", plan=tmp_path / "plan.json")
    written = onnx.load(tmp_path / "small.onnx")
    assert unknown(written) == unknown(model)
    assert is_sorted(written)
    assert list(written.graph.input) == list(model.graph.input)
    assert list(written.graph.output) == list(model.graph.output)
    plan = PruningPlan.load(tmp_path / "plan.json")
    assert set(row.pruned) <= plan.initializers.keys()
    feed = feed_of(model, row)
    axes = {n: {str(a): list(k) for a, k in own.items()} for n, own in plan.initializers.items()}
    expected, found = run_parts(masked(model, axes), feed), run_parts(written, feed)
    assert found.keys() == expected.keys()
    assert found
    before = run_parts(model, feed)
    for value, array in expected.items():
        np.testing.assert_allclose(found[value], array, rtol=1e-4, atol=1e-5)
    assert any(not np.allclose(array, before[value], 1e-2) for value, array in expected.items())
    checks = verify(tmp_path / "model.onnx", tmp_path / "small.onnx", plan)
    assert all(check.passed for check in checks)
    (check,) = (check for check in checks if check.name == NAME)
    for output in row.unrun:
        assert f"'{output}'" in check.detail.partition("by structure alone: ")[2]
    for output in found:
        assert f"'{output}'" in check.detail.partition(";")[0]


def test_reports_name_what_is_not_run_and_what_it_freezes() -> None:
    found = inspect(plugin_model(MIDDLE))
    label = "MultiscaleDeformableAttnPlugin_TRT 'p'"
    assert found.unknown == [label]
    reasons = {entry["where"]: entry["reason"] for entry in found.frozen}
    assert reasons["b:0"] == f"{label}, which ONNX Runtime does not know, reads it"
    assert reasons["d:1"] == f"{label}, which ONNX Runtime does not know, gives 'p'"
    assert {group.name for group in found.groups} == {"a:0", "d:0"}
    (note,) = found.notes
    assert label in note
    assert "verified by running: 'y', 'c'; with stand-ins for 'p'" in note


def test_a_shape_that_the_file_lacks_is_asked_for_and_taken() -> None:
    model = plugin_model(MIDDLE, described=False)
    with pytest.raises(ShapeError, match=r"value .p., which MultiscaleDef.* gives, declares no"):
        compress(model)
    result = compress(model, budget=0.6, input_shape={"p": (1, 8, 8, 8)}, latency=False)
    assert all(check.passed for check in result.report.verification)
    assert result.report.macs.after < result.report.macs.before
    assert not any("as it does for" in check.detail for check in result.report.verification)


def change_front(model: onnx.ModelProto) -> None:
    scale(model, "a")


def change_back(model: onnx.ModelProto) -> None:
    scale(model, "g")


def scale(model: onnx.ModelProto, name: str) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, name))


def plugin_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if is_plugin(node))


def change_attribute(model: onnx.ModelProto) -> None:
    plugin_of(model).attribute.append(onnx.helper.make_attribute("mode", 1))


def rewire(model: onnx.ModelProto) -> None:
    plugin_of(model).input[1] = "c"


def rewire_behind(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if "p" in node.input).input[0] = "c"


def change_its_constant(model: onnx.ModelProto) -> None:
    scale(model, "o")


def drop_it(model: onnx.ModelProto) -> None:
    plugin = plugin_of(model)
    for node in model.graph.node:
        node.input[:] = ["c" if name == "p" else name for name in node.input]
    model.graph.node.remove(plugin)


FAULTS = (
    change_front, change_back, change_attribute, rewire, rewire_behind, change_its_constant, drop_it,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_in_any_part_is_found(
    fault: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    model = plugin_model(MIDDLE)
    result = compress(model, budget=0.6, latency=False)
    wrong = result.model
    assert all(check.passed for check in verify(model, wrong, result.plan))
    fault(wrong)
    onnx.save(wrong, tmp_path / "wrong.onnx")
    checks = verify(model, tmp_path / "wrong.onnx", result.plan)
    assert not all(check.passed for check in checks)


def test_another_output_of_a_plugin_is_found() -> None:
    model = plugin_model(ROWS["detections at the tail"])
    result = compress(model, budget=0.6, latency=False)
    wrong = result.model
    wrong.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    (failed,) = (check for check in verify(model, wrong, result.plan) if not check.passed)
    assert failed.name == NAME


def samples_of(n: int = 120, **more: np.ndarray) -> Samples:
    x = np.random.default_rng(0).standard_normal((n, 3, 8, 8)).astype(np.float32)
    return Samples({"x": x, **more}, None, {})


def test_parts_are_scored_repaired_and_trained_with_stand_ins() -> None:
    model = plugin_model(MIDDLE)
    result = compress(
        model, data=samples_of(), budget=0.6, recover_minutes=0.01, training=1, latency=False
    )
    report = result.report
    assert report.criterion == "jacobian"
    assert {error.name for error in report.outputs} == {"y", "c"}
    assert any(step.kept for step in report.recovery)
    assert all(check.passed for check in report.verification)
    assert any("was fed random numbers" in warning for warning in report.warnings)
    (fed,) = (fed for fed in report.fed if fed.name == "p")
    assert fed.preparation.startswith("random numbers")
    assert unknown(result.model) == unknown(model)


def test_recorded_values_take_the_place_of_stand_ins() -> None:
    p = np.random.default_rng(2).standard_normal((120, 8, 8, 8)).astype(np.float32) * 3 + 5
    result = compress(
        plugin_model(MIDDLE), data=samples_of(p=p), budget=0.6, recover_minutes=0, latency=False
    )
    (fed,) = (fed for fed in result.report.fed if fed.name == "p")
    assert fed.preparation == ""
    assert fed.mean == pytest.approx(5, abs=0.5)
    assert not any("random numbers" in warning for warning in result.report.warnings)


@pytest.mark.parametrize(
    ("batch", "declared", "given"),
    [
        ("N", (1, 8, 8, 8), None),
        ("N", ("R", 8, 8, 8), None),
        ("N", None, (1, 8, 8, 8)),
        ("1", (1, 8, 8, 8), None),
        ("4", (4, 8, 8, 8), None),
        ("4", None, (1, 8, 8, 8)),
        ("4", None, (4, 8, 8, 8)),
    ],
)
def test_stand_ins_fit_the_batch_whatever_the_file_says_of_it(
    batch: str, declared: tuple[int | str, ...] | None, given: tuple[int, ...] | None
) -> None:
    values = {} if declared is None else {"p": declared}
    row = MIDDLE._replace(text=MIDDLE.text.replace("[N,", f"[{batch},"), values=values)
    shapes = {} if given is None else {"p": given}
    model = plugin_model(row)
    result = compress(
        model,
        data=samples_of(),
        budget=0.6,
        recover_minutes=0,
        latency=False,
        input_shape=shapes,
    )
    assert all(check.passed for check in result.report.verification)
    checks = verify(model, result.model, result.plan, input_shape=shapes)
    assert all(check.passed for check in checks)


def test_stand_ins_differ_from_sample_to_sample() -> None:
    samples = check_samples(samples_of(100), Graph.from_model(plugin_model(MIDDLE)))
    p = samples.feed(slice(0, 100))["p"]
    assert p.shape == (100, 8, 8, 8)
    assert len({row.tobytes() for row in p}) == 64
    np.testing.assert_array_equal(p[64:], p[:36])


def test_a_sample_costs_the_same_whoever_says_the_shape() -> None:
    text = MIDDLE.text.replace("[N,", "[4,")
    declared = inspect(plugin_model(MIDDLE._replace(text=text, values={"p": (4, 8, 8, 8)})))
    given = inspect(
        plugin_model(MIDDLE._replace(text=text, values={})), input_shape={"p": (4, 8, 8, 8)}
    )
    assert given.macs == declared.macs


def test_equal_seeds_give_equal_bytes() -> None:
    first, second = (
        compress(
            plugin_model(MIDDLE), data=samples_of(), budget=0.6, recover_minutes=0, latency=False
        )
        for _ in range(2)
    )
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_a_weight_that_a_plugin_reads_too_is_neither_cut_nor_trained() -> None:
    model = plugin_model(ROWS["a weight that it shares"])
    training = TrainingOptions(epochs=2, lr=0.01)
    result = compress(
        model, data=samples_of(), budget=0.8, recover="none", training=training, latency=False
    )
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in m.graph.initializer}
        for m in (model, result.model)
    )
    np.testing.assert_array_equal(before["d"], after["d"])
    assert not np.array_equal(before["g"], after["g"])


def test_labels_need_a_first_output_that_runs() -> None:
    model = plugin_model(ROWS["detections at the tail"])
    labelled = Samples(samples_of().inputs, np.zeros(120, np.int64), {})
    with pytest.raises(DataError, match="first output 'num' is what EfficientNMS_TRT 'num' gives"):
        compress(model, data=labelled)


def test_a_plugin_that_shape_arithmetic_stands_beside() -> None:
    """Constants that only a plugin reads stay in the file, whether nodes or initializers hold them."""
    model = plugin_model(MIDDLE)
    constant = onnx.helper.make_node(
        "Constant", [], ["k"], value=numpy_helper.from_array(np.arange(4, dtype=np.int32))
    )
    model.graph.node.insert(0, constant)
    plugin_of(model).input.append("k")
    result = compress(model, budget=0.6, latency=False)
    assert constant in result.model.graph.node
    assert all(check.passed for check in verify(model, result.model, result.plan))


def test_what_does_nothing_beside_a_plugin_is_stripped() -> None:
    model = plugin_model(MIDDLE)
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "a")
    weight = numpy_helper.to_array(tensor).copy()
    weight[:4] = 0
    tensor.CopyFrom(numpy_helper.from_array(weight, "a"))
    found = strip(model)
    assert unknown(found.model) == unknown(model)
    kept = {tensor.name: tensor.dims[0] for tensor in found.model.graph.initializer}
    assert kept["a"] == 12


def test_a_model_of_plugins_alone_is_refused() -> None:
    text = f'<ir_version: {IR_VERSION}, opset_import: ["" : 17, "trt" : 1]> net (float[2] x) => (float[2] y)'
    model = onnx.parser.parse_model(text + "{ y = trt.GridSampler3D(x) }")
    with pytest.raises(ModelError, match="knows no node of the model, such as GridSampler3D 'y'"):
        inspect(model)


def test_there_is_no_program_of_a_model_with_plugins() -> None:
    with pytest.raises(UnsupportedOperatorError, match="MultiscaleDeformableAttnPlugin_TRT 'p'"):
        TwinProgram.of(plugin_model(MIDDLE))


def test_new_values_are_not_called_like_what_plugins_give() -> None:
    assert Graph.from_model(plugin_model(ROWS["detections at the tail"])).fresh_name("box") != "box"


def test_what_plugins_say_counts_for_the_hash() -> None:
    model = plugin_model(MIDDLE)
    before = Graph.from_model(model).sha256
    change_attribute(model)
    assert Graph.from_model(model).sha256 != before


def test_a_domain_without_a_version_is_taken(tmp_path: Path) -> None:
    """As onnx-graphsurgeon writes plugins."""
    model = plugin_model(MIDDLE)
    (entry,) = (entry for entry in model.opset_import if entry.domain == "trt.plugins")
    model.opset_import.remove(entry)
    onnx.save(model, tmp_path / "model.onnx")
    result = compress(tmp_path / "model.onnx", budget=0.6, latency=False)
    assert result.model.opset_import == model.opset_import
