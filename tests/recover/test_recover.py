"""Repair of norm statistics against statistics computed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers import analyse, build
from nets import draw_keep, draw_samples, make_static, model_of

from obc_onnx.branches.left import Left
from obc_onnx.errors import RequestError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.measuring.error import output_error
from obc_onnx.planning.budget import Budget
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.norms import why_no_norms
from obc_onnx.recover.stage import recover, rehearse
from obc_onnx.run.api import compress
from obc_onnx.samples.samples import Samples
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.surgery.mask import mask_reads

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.recover.methods import Recovery

HELD_OUT = 0.2


class Case(NamedTuple):
    """A net whose channels were removed, and samples."""

    coupling: Coupling
    keep: Keep
    original: Graph
    pruned: Graph
    samples: Samples


def moments(graph: Graph, value: str, samples: Samples) -> tuple[NDArray, NDArray]:
    """Mean and variance of every channel of a value, over all samples in one batch."""
    feed = samples.feed(slice(0, None))
    x = Session(graph, optimize=False, outputs=[value]).run(feed)[value].astype(np.float64)
    return x.mean((0, 2, 3)), x.var((0, 2, 3))


def mean_error(expected: NDArray, found: NDArray) -> float:
    """Geometric mean over channels of one plus the error as a share of the variance, less one."""
    y, z = expected.astype(np.float64), found.astype(np.float64)
    errors = ((z - y) ** 2).mean(0) / y.var(0, ddof=1)
    return float(np.exp(np.log(1 + errors).mean()) - 1)


def settled(model: onnx.ModelProto, samples: Samples) -> Graph:
    """Give the norm of a net the statistics that it meets, as training would have."""
    graph, _, _ = analyse(model)
    mean, var = moments(graph, "c1", samples)
    return graph.edit({"mean": mean.astype(np.float32), "var": var.astype(np.float32)})


def cut_of(text: str, n_samples: int = 320, batch: int | None = None) -> Case:
    """Remove units in front of a norm; inputs are shifted, so that its statistics move."""
    model = build(text)
    free = draw_samples(analyse(model).graph, n_samples)
    samples = Samples({"x": free.inputs["x"] + np.float32(0.5)}, None, free.dtypes)
    graph = settled(model, samples)
    if batch is not None:
        static = graph.to_model()
        make_static(static, batch)
        graph = analyse(static).graph
    coupling = analyse(graph).coupling
    keep = draw_keep(coupling, only="w0")
    return Case(coupling, keep, graph, remove_units(coupling, keep), samples)


def normed(cut: Case, seed: int = 0) -> tuple[Graph, Recovery]:
    """Re-estimate norms, where that helps."""
    cut_graph = Cut(cut.coupling, cut.keep, cut.pruned)
    graph, steps, *_ = recover(cut_graph, Bench(cut_graph.coupling, cut.samples), "stats", seed)
    return graph, steps[0]


def used_of(cut: Case) -> Samples:
    return cut.samples.part(slice(0, round(len(cut.samples) * (1 - HELD_OUT))))


DEEP = (
    "net (float[N,3,6,6] x) => (float[N,4] y) <float[16,3,3,3] w0, float[6,16,3,3] w1,"
    " float[6] scale, float[6] shift, float[6] mean, float[6] var, float[5,6,1,1] w2,"
    " float[4,5] fc, float[4] fc_b>"
    "{ c0 = Conv(x, w0) t0 = Relu(c0) c1 = Conv(t0, w1)"
    "  n1 = BatchNormalization<momentum=0.9>(c1, scale, shift, mean, var) t1 = Relu(n1)"
    "  last = Conv(t1, w2) pool = GlobalAveragePool(last) flat = Flatten(pool)"
    "  y = Gemm<transB=1>(flat, fc, fc_b) }"
)


def assert_statistics_are_measured(cut: Case, repaired: Graph) -> None:
    mean, var = moments(cut.pruned, "c1", used_of(cut))
    old, new = cut.pruned.initializers, repaired.initializers
    assert np.abs(new["mean"] - mean).max() < 0.05 * np.sqrt(var).max()
    assert np.abs(new["var"] / var - 1).max() < 0.05
    assert np.abs(old["var"] / var - 1).max() > 0.2


@pytest.mark.parametrize("momentum", [0.9, 0.999, 0.0])
def test_statistics_approach_those_of_one_large_batch(momentum: float) -> None:
    cut = cut_of(DEEP.replace("0.9>", f"{momentum}>"))
    repaired, recovery = normed(cut)
    assert recovery.kept
    assert recovery.after < recovery.before
    assert_statistics_are_measured(cut, repaired)


def test_a_rehearsal_shows_the_repaired_network_in_the_whole_one() -> None:
    cut = cut_of(DEEP)
    whole = rehearse(cut.coupling, Left(cut.keep), cut.samples, 0)
    feed = used_of(cut).feed(slice(0, None))
    expected = Session(cut.original).run(feed)["y"]
    plain, repaired = (
        mean_error(expected, Session(mask_reads(of, cut.keep)).run(feed)["y"])
        for of in (cut.coupling, whole)
    )
    assert repaired < plain / 2


def test_only_statistics_change() -> None:
    cut = cut_of(DEEP)
    repaired, _ = normed(cut)
    changed = {
        name
        for name, array in cut.pruned.initializers.items()
        if not np.array_equal(repaired.initializers[name], array)
    }
    assert changed == {"mean", "var"}
    assert [n.inputs for n in repaired.nodes] == [n.inputs for n in cut.pruned.nodes]


def test_the_errors_are_those_of_held_out_samples() -> None:
    cut = cut_of(DEEP)
    repaired, recovery = normed(cut)
    feed = cut.samples.feed(slice(len(used_of(cut)), None))
    y, *others = (Session(g).run(feed)["y"] for g in (cut.original, cut.pruned, repaired))
    errors = [mean_error(y, other) for other in others]
    assert [recovery.before, recovery.after] == pytest.approx(errors, rel=1e-4)


def test_the_seed_decides_every_byte() -> None:
    cut = cut_of(DEEP)
    made = [normed(cut, seed)[0].initializers["var"] for seed in (0, 0, 1)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


def test_dropout_stays_off() -> None:
    plain = cut_of(DEEP)
    cut = cut_of(DEEP.replace("t0 = Relu(c0)", "r0 = Relu(c0) t0 = Dropout(r0)"))
    state = torch.random.get_rng_state()
    found, _ = normed(cut)
    expected, _ = normed(plain)
    for name in ("mean", "var"):
        np.testing.assert_allclose(found.initializers[name], expected.initializers[name], rtol=1e-5)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_step_that_does_not_help_is_not_kept() -> None:
    """Of the unpruned network any other statistics are worse."""
    cut = cut_of(DEEP)
    cut = cut._replace(pruned=cut.original, keep={})
    same, recovery = normed(cut)
    assert same is cut.original
    assert not recovery.kept
    assert recovery.before == 0
    assert 0 < recovery.after < 0.01


@pytest.mark.parametrize(("batch", "n_samples"), [(None, 15), (4, 3)])
def test_too_few_samples_leave_the_norms_as_they_are(batch: int | None, n_samples: int) -> None:
    cut = cut_of(DEEP, 20, batch)
    few = draw_samples(cut.original, n_samples)
    assert f"{n_samples} samples are too few" in why_no_norms(
        Cut(cut.coupling, {}, cut.pruned), few
    )


@pytest.mark.parametrize("n_samples", [20, 24, 26])
def test_a_static_batch_is_filled_by_every_part(n_samples: int) -> None:
    cut = cut_of(DEEP, n_samples, batch=4)
    assert not why_no_norms(Cut(cut.coupling, {}, cut.pruned), cut.samples)
    _, recovery = normed(cut)
    assert recovery.before > 0


@pytest.mark.parametrize("batch", [16, 32])
def test_statistics_of_a_static_batch_are_measured(batch: int) -> None:
    cut = cut_of(DEEP, batch=batch)
    repaired, recovery = normed(cut)
    assert recovery.kept
    free = cut_of(DEEP)
    mean, var = moments(free.pruned, "c1", used_of(free))
    assert np.abs(repaired.initializers["mean"] - mean).max() < 0.1 * np.sqrt(var).max()
    assert np.abs(repaired.initializers["var"] / var - 1).max() < 0.1


def test_a_norm_of_a_single_value_is_left_alone() -> None:
    text = DEEP.replace("t0 = Relu(c0)", "r0 = Relu(c0) t0 = GlobalAveragePool(r0)")
    model = build(text.replace("float[6,16,3,3]", "float[6,16,1,1]"))
    make_static(model, 1)
    graph, _, coupling = analyse(model)
    samples = draw_samples(graph, 20)
    assert "a single number" in why_no_norms(Cut(coupling, {}, graph), samples)


def test_the_output_error_is_a_share_of_the_variance_of_each_channel_over_all_samples() -> None:
    cut = cut_of(DEEP, 300)
    feed = cut.samples.feed(slice(0, None))
    y, z = (Session(graph).run(feed)["y"] for graph in (cut.original, cut.pruned))
    found = output_error(cut.coupling, cut.pruned, cut.samples)
    assert found == pytest.approx(mean_error(y, z), rel=1e-4)
    assert output_error(cut.coupling, cut.original, cut.samples) == 0


@pytest.mark.parametrize("name", ["norm", "dense"])
def test_without_data_norms_repair_and_without_norms_nothing_does(name: str) -> None:
    graph = Graph.from_model(model_of(name))
    found, bare = (compress(graph, budget=Budget(0.6), recover=how) for how in ("auto", "none"))
    same = all(
        np.array_equal(array, bare.graph.initializers[key])
        for key, array in found.graph.initializers.items()
    )
    assert same == (name != "norm")
    (note,) = (note for note in found.report.notes if "repaired" in note or "judged" in note)
    assert ("what batch norms tell" in note) == (name == "norm")


@pytest.mark.parametrize("method", ["refit", "stats"])
def test_a_repair_that_needs_samples_says_so(method: Any) -> None:
    with pytest.raises(RequestError, match="needs samples"):
        compress(model_of("dense"), recover=method)


def test_samples_that_are_too_few_are_said() -> None:
    graph, _, coupling = analyse(model_of("dense"))
    keep = draw_keep(coupling)
    pruned = remove_units(coupling, keep)
    found = recover(Cut(coupling, keep, pruned), Bench(coupling, draw_samples(graph, 1)), "auto", 0)
    assert found.graph is pruned
    assert "too few" in found.notes[0]
