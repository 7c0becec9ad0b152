"""Every check fails on a model that is broken for it, and holds on a good one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from helpers import Analysed, analyse, build, make_feed
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small import chain, half_plan, invoke

import obc_onnx.twin.build
from obc_onnx.errors import ModelError, VerificationError
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.model import Graph
from obc_onnx.graph.precision import allowed_error, is_vacuous, precision_of, relative_error
from obc_onnx.measuring.noise import Reference
from obc_onnx.run.api import compress
from obc_onnx.surgery import cut as surgery
from obc_onnx.surgery.cut import remove_units
from obc_onnx.verification import checks as verify
from obc_onnx.verification.checks import (
    Check,
    check_budget,
    check_format,
    check_interface,
    check_masked,
    check_plan,
    check_runs,
    check_structure,
    check_twin,
    check_weights,
    compare,
    digest_of,
    doubts,
    require,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Keep

SHAPES = {"x": (2, 3, 8, 8)}
GRAPH = Graph.from_model(chain())


@pytest.fixture(scope="module")
def whole() -> Analysed:
    return analyse(chain())


@pytest.fixture(scope="module")
def keep(whole: Analysed) -> Keep:
    return half_plan().keep(whole.coupling)


@pytest.fixture(scope="module")
def pruned(whole: Analysed, keep: Keep) -> Graph:
    return remove_units(whole.coupling, keep)


@pytest.fixture(scope="module")
def feed(whole: Analysed) -> dict[str, NDArray[Any]]:
    return make_feed(whole.graph, np.random.default_rng(0))


def changed(graph: Graph, change: Callable[[onnx.ModelProto], None]) -> Graph:
    """Change the exported model."""
    model = graph.to_model()
    change(model)
    return Graph.from_model(model)


def test_what_surgery_made_passes_every_check(
    whole: Analysed, keep: Keep, pruned: Graph, feed: dict[str, NDArray[Any]]
) -> None:
    checks = [
        check_masked(whole.coupling, keep, feed),
        check_plan(whole.graph, pruned, half_plan()),
        check_weights(whole.graph, pruned, half_plan()),
        check_structure(pruned, pruned),
        check_interface(whole.graph, pruned),
        *check_format(GRAPH, pruned, SHAPES),
        check_runs(pruned, feed),
        check_twin(analyse(pruned).coupling, feed),
        check_budget(half_plan().macs[1], half_plan().macs[0], 0.5),
    ]
    assert all(check.passed and not check.detail for check in checks)
    assert len({check.name for check in checks}) == len(checks)
    require(checks)


def test_the_masked_oracle_fails_where_other_units_were_removed(
    whole: Analysed, keep: Keep, feed: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(coupling: Any, kept: Keep) -> Graph:
        return remove_units(coupling, {dim: np.roll(mask, 1) for dim, mask in kept.items()})

    monkeypatch.setattr(surgery, "remove_units", shifted)
    check = check_masked(whole.coupling, keep, feed)
    assert not check.passed
    assert check.error > check.tolerance
    assert "'p'" in check.detail  # the first product that was cut


def test_the_twin_check_fails_where_torch_computes_something_else(
    pruned: Graph, feed: dict[str, NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    true_build_twin = obc_onnx.twin.build.build_twin

    def off(graph: Graph, *rest: Any, **options: Any) -> Any:
        bias = graph.initializers["fc_bias"]
        other = graph.edit({"fc_bias": bias + np.float32(0.01)})
        return true_build_twin(other, *rest, **options)

    monkeypatch.setattr(obc_onnx.twin.build, "build_twin", off)
    check = check_twin(analyse(pruned).coupling, feed)
    assert not check.passed
    assert 1e-4 < check.error < 1


def test_sizes_that_are_not_those_of_the_plan_fail(whole: Analysed, pruned: Graph) -> None:
    wider = pruned.edit({"fc_bias": np.zeros(5, np.float32)})
    check = check_plan(whole.graph, wider, half_plan())
    assert (check.passed, check.detail) == (False, "'fc_bias' has shape (5,), planned (4,)")
    assert not check_plan(whole.graph, whole.graph, half_plan()).passed


def test_a_planned_initializer_that_is_missing_fails(whole: Analysed, pruned: Graph) -> None:
    def rename(model: onnx.ModelProto) -> None:
        next(t for t in model.graph.initializer if t.name == "b").name = "other"
        model.graph.node[2].input[1] = "other"

    check = check_plan(whole.graph, changed(pruned, rename), half_plan())
    assert (check.passed, check.detail) == (False, "'b' is missing")


def other_operator(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Tanh"


def other_wiring(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[0] = "p"


def other_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ints[:] = [0, 0, 2, 2]


def another_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="auto_pad", type=3, s=b"NOTSET")


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 13


def fewer_nodes(model: onnx.ModelProto) -> None:
    del model.graph.node[1]
    model.graph.node[1].input[0] = "p"


@pytest.mark.parametrize(
    "change",
    [
        other_operator,
        other_wiring,
        other_attribute,
        another_attribute,
        other_opset,
        fewer_nodes,
    ],
)
def test_a_changed_graph_fails_the_structure(
    change: Callable[[onnx.ModelProto], None], pruned: Graph
) -> None:
    check = check_structure(pruned, changed(pruned, change))
    assert not check.passed
    assert check.detail


def test_changed_integers_fail_the_structure_but_trained_weights_do_not(pruned: Graph) -> None:
    assert check_structure(pruned, pruned.edit({"a": 2 * pruned.initializers["a"]})).passed
    sizes = pruned.edit({"a_bias": pruned.initializers["a_bias"].astype(np.int64)})
    check = check_structure(sizes, sizes.edit({"a_bias": sizes.initializers["a_bias"] + 1}))
    assert (check.passed, check.detail) == (False, "numbers in 'a_bias' differ")


@pytest.mark.parametrize(
    ("alpha", "repaired", "passed"), [(1.0, True, True), (1.0, False, False), (2.0, True, False)]
)
def test_only_repair_adds_a_bias_and_only_where_nothing_is_scaled(
    alpha: float, repaired: bool, passed: bool
) -> None:
    text = "net (float[N,3] x) => (float[N,2] y) <float[3,2] w> { y = Gemm<alpha=ALPHA>(x, w) }"
    graph = Graph.from_model(build(text.replace("ALPHA", str(alpha))))
    biased = graph.edit({"b": np.ones(2, np.float32)}, rewired={("y", 2): "b"})
    assert check_structure(graph, biased, repaired=repaired).passed == passed


def test_a_file_is_run_as_it_lies_there(tmp_path: Path) -> None:
    model, small, plan = (tmp_path / name for name in ("m.onnx", "s.onnx", "p.json"))
    onnx.save(chain(), model)
    result = compress(model, latency=False)
    result.save(small, plan)
    assert invoke("verify", model, small, "--plan", plan).exit_code == 0
    other = result.model
    kind = onnx.TensorProto.INT64
    other.graph.value_info.append(onnx.helper.make_tensor_value_info("q", kind, None))
    onnx.save(other, small)
    refused = invoke("verify", model, small, "--plan", plan)
    assert refused.exit_code == VerificationError.exit_code
    assert "file computes what was checked" in refused.stderr
    assert "Type Error" in refused.stderr


def test_a_file_that_computes_something_else_fails(
    pruned: Graph, feed: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    path = tmp_path / "s.onnx"
    pruned.save(path)
    assert verify.check_file(path, pruned, feed).passed
    other = pruned.edit({"b_bias": pruned.initializers["b_bias"] + 1})
    check = verify.check_file(path, other, feed)
    assert not check.passed
    assert "value 'y'" in check.detail


def test_an_input_that_became_static_fails_the_interface(whole: Analysed, pruned: Graph) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    check = check_interface(whole.graph, changed(pruned, fix))
    assert not check.passed
    assert "inputs differ" in check.detail


def test_an_output_of_another_name_fails_the_interface(whole: Analysed, pruned: Graph) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.output[0].name = model.graph.node[-1].output[0] = "z"

    assert "outputs differ" in check_interface(whole.graph, changed(pruned, rename)).detail


def test_an_attribute_that_onnx_does_not_know_fails_the_checker(pruned: Graph) -> None:
    broken = pruned.edit(attributes={"q": {"nonsense": 1}})
    checker, inference = check_format(GRAPH, broken, SHAPES)
    assert not checker.passed
    assert "nonsense" in checker.detail
    assert inference.name == "strict shape inference"


def test_sizes_that_contradict_each_other_fail_shape_inference(pruned: Graph) -> None:
    broken = pruned.edit({"fc": np.zeros((4, 3), np.float32)})
    _, inference = check_format(GRAPH, broken, SHAPES)
    assert not inference.passed
    assert inference.detail


def test_an_input_without_a_shape_fails_shape_inference(pruned: Graph) -> None:
    _, inference = check_format(GRAPH, pruned, {})
    assert (inference.passed, inference.detail) == (False, "input 'x' is not one of the original")


def test_a_model_that_does_not_run_or_gives_nan_fails(
    pruned: Graph, feed: dict[str, NDArray[Any]]
) -> None:
    broken = pruned.edit({"fc": np.zeros((4, 3), np.float32)})
    assert "ONNX Runtime cannot" in check_runs(broken, feed).detail
    nan = pruned.edit({"fc_bias": np.full(4, np.nan, np.float32)})
    assert check_runs(nan, feed).detail == "output 'y' is not finite"
    assert "inputs" in check_runs(pruned, {"z": feed["x"]}).detail


@given(full=st.integers(1, 10**9), data=st.data())
def test_the_budget_holds_exactly_up_to_the_target(full: int, data: st.DataObject) -> None:
    macs = data.draw(st.integers(0, full))
    assert check_budget(macs, full, macs / full).passed
    if macs:
        assert not check_budget(macs, full, (macs - 1) / full).passed


def test_a_failure_names_every_failed_check_with_its_numbers() -> None:
    checks = [
        Check("first", passed=False, error=0.25, tolerance=0.125),
        Check("second", passed=True),
        Check("third", passed=False, detail="what was found"),
    ]
    with pytest.raises(VerificationError) as failure:
        require(checks)
    expected = "2 of 3 checks failed: first: error 0.25 above 0.125; third: what was found"
    assert str(failure.value) == expected
    assert failure.value.exit_code == 3


values = arrays.arrays(
    np.float64,
    arrays.array_shapes(max_dims=3, max_side=5),
    elements=st.floats(-1e6, 1e6).map(lambda x: round(x, 3)),
)


@given(reference=values)
def test_the_error_of_a_copy_is_zero(reference: NDArray[np.float64]) -> None:
    assert relative_error(reference.copy(), reference) == 0


@given(reference=values, factor=st.floats(1e-3, 1e3), data=st.data())
def test_the_error_does_not_depend_on_the_scale(
    reference: NDArray[np.float64], factor: float, data: st.DataObject
) -> None:
    assume(reference.any())
    off = reference + data.draw(st.floats(1e-3, 1e3))
    scaled = relative_error(factor * off, factor * reference)
    np.testing.assert_allclose(scaled, relative_error(off, reference), rtol=1e-6)


@given(reference=values, data=st.data())
def test_the_error_is_the_largest_difference_over_the_rms(
    reference: NDArray[np.float64], data: st.DataObject
) -> None:
    rms = float(np.sqrt((reference**2).mean())) or 1.0
    found, place = reference.copy(), data.draw(st.integers(0, reference.size - 1))
    found.reshape(-1)[place] += 5.0
    np.testing.assert_allclose(relative_error(found, reference), 5.0 / rms, rtol=1e-6)


@given(reference=values, data=st.data(), bad=st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_cannot_be_compared_is_infinitely_wrong(
    reference: NDArray[np.float64], data: st.DataObject, bad: float
) -> None:
    spoilt, place = reference.copy(), data.draw(st.integers(0, reference.size - 1))
    spoilt.reshape(-1)[place] = bad
    with np.errstate(invalid="ignore"):
        assert relative_error(spoilt, reference) == np.inf
        assert relative_error(reference, spoilt) == np.inf
    assert relative_error(reference[None], reference) == np.inf


@given(errors=st.lists(st.floats(0, 1e-3), min_size=1, max_size=4))
def test_a_comparison_fails_with_its_worst_output(errors: list[float]) -> None:
    reference = {str(i): np.array([[1.0], [-1.0]], np.float32) for i in range(len(errors))}
    found = {name: array + np.float32(errors[int(name)]) for name, array in reference.items()}
    measured = [relative_error(found[name], reference[name]) for name in reference]
    check = compare("outputs", found, Reference.of(GRAPH, reference))
    assert check.passed == (max(measured) <= 1e-4)
    assert check.error == max(measured)


def test_a_failed_output_is_not_hidden_by_a_larger_error_that_is_allowed() -> None:
    reference = {"exact": np.full(3, 10**6), "half": np.array([1, -1], np.float32)}
    found = {"exact": reference["exact"] + 1, "half": reference["half"] + np.float32(5e-5)}
    check = compare("outputs", found, Reference.of(GRAPH, reference))
    assert not check.passed
    assert "'exact'" in check.detail


def test_integer_outputs_must_be_equal() -> None:
    reference = {"y": np.array([1, 2, 3])}
    assert compare("outputs", {"y": np.array([1, 2, 3])}, Reference.of(GRAPH, reference)).passed
    assert not compare("outputs", {"y": np.array([1, 2, 4])}, Reference.of(GRAPH, reference)).passed


def test_an_offset_does_not_hide_what_the_samples_change() -> None:
    """A share of the RMS would accept any weights at all behind a large bias."""
    reference = np.array([[1e4 - 0.5], [1e4 + 0.5]], np.float32)
    flat = np.full_like(reference, 1e4)
    assert relative_error(flat, reference) < 1e-4
    assert not compare("outputs", {"y": flat}, Reference.of(GRAPH, {"y": reference})).passed
    assert allowed_error(reference, precision_of(GRAPH)) < 2e-5


def test_an_output_that_no_sample_changes_is_said_to_be_untested() -> None:
    reference = np.full((2, 3), 7.0, np.float32)
    assert is_vacuous(reference, 1e-9)
    assert not is_vacuous(reference * np.array([[1], [1.1]]), 1e-2)
    check = compare("outputs", {"y": reference}, Reference.of(GRAPH, {"y": reference}))
    assert check.passed
    assert "depends on the samples" in check.doubt
    assert doubts([check]) == [f"outputs: {check.doubt}"]
    assert not doubts([Check("outputs", passed=True)])


def test_the_coarsest_type_of_a_graph_decides_how_close_outputs_have_to_be() -> None:
    halves = {name: a.astype(np.float16) for name, a in GRAPH.initializers.items()}
    half = GRAPH.edit(halves)
    assert precision_of(half).tolerance == 1e-2
    assert precision_of(GRAPH).tolerance == 1e-4


def test_every_weight_is_checked_to_the_bit_after_a_plain_cut(
    whole: Analysed, pruned: Graph
) -> None:
    weights = np.array(pruned.initializers["fc"])
    weights[0, 0] = np.nextafter(weights[0, 0], np.float32(9))
    check = check_weights(whole.graph, pruned.edit({"fc": weights}), half_plan())
    assert not check.passed
    assert "'fc'" in check.detail


def test_weights_that_were_changed_are_known_by_their_digest(
    whole: Analysed, pruned: Graph
) -> None:
    trained = pruned.edit({"fc": pruned.initializers["fc"] * 2})
    plan = replace(half_plan(), weights_sha256=digest_of(trained.initializers))
    assert check_weights(whole.graph, trained, plan).passed
    assert not check_weights(whole.graph, pruned, plan).passed


def test_random_inputs_repeat_with_their_seed_and_have_the_type_of_the_model(
    whole: Analysed,
) -> None:
    first, again, other = (random_feed(whole.graph, SHAPES, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first["x"], again["x"])
    assert not np.array_equal(first["x"], other["x"])
    assert (first["x"].dtype, first["x"].shape) == (np.float32, SHAPES["x"])


def test_a_fault_of_shape_inference_does_not_stop_what_onnx_runtime_runs() -> None:
    """onnx takes the numbers of a Cast in the other branch of an If for those of this one."""
    model = build(
        "net (float[N,3,8,8] x) => (float[N,4,8,8] y)"
        "<float[5,3,1,1] a, float[4,5,1,1] b, int64[1] one = {1}>"
        "{ flag = Cast<to=9>(one) p = Conv(x, a) q = Conv(p, b)"
        "  t = If(flag) <then_branch = yes () => (float[1] z) { z = Cast<to=1>(one) },"
        "   else_branch = no () => (float[1] z) { z = Cast<to=1>(one) }> y = Mul(q, t) }"
    )
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    result = compress(model, budget=0.7)
    assert result.graph.params < 35
    assert all(check.passed for check in result.report.verification)


def test_a_fault_that_the_original_has_too_is_told_and_not_held_against_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise ModelError("what onnx says")

    monkeypatch.setattr(verify, "infer_strictly", fail)
    model = build(
        "net (float[N,3] x) => (float[N,2] y) <float[3,8] a, float[8,2] b>"
        "{ p = MatMul(x, a) y = MatMul(p, b) }"
    )
    result = compress(model, budget=0.7)
    told = [check.detail for check in result.report.verification if check.detail]
    assert told == ["fails as it does for the original: what onnx says"]
