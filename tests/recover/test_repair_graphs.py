"""Repair of graphs of every kind: it runs, makes nothing worse, and leaves alone what it has to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from helpers import analyse, assert_close, build, public_model, run_onnx
from nets import HEAD, IMAGE, draw_keep, draw_samples
from recover.repair_graphs import FOLDED, GRAPHS, IMAGES, PAIRS, SHARED, SUMS

from obc_onnx.axes.expressions import count, mask, product, take
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.measuring.error import split
from obc_onnx.planning.budget import Budget
from obc_onnx.recover.bench import Bench
from obc_onnx.recover.layers import find_layers
from obc_onnx.recover.refit import refit
from obc_onnx.recover.stage import recover
from obc_onnx.recover.targets import kept_along, target_of
from obc_onnx.run.api import compress, verify
from obc_onnx.surgery.cut import Cut, remove_units
from obc_onnx.twin.build import derived_twin, run_module
from obc_onnx.twin.lockstep import Lockstep
from obc_onnx.twin.tensors import as_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.samples.samples import Samples

    Numbers = NDArray[np.float64]

N_SAMPLES = 60
HIDDEN = "samples turned round"
"""A layout in which the analysis does not see where the batch goes."""

NO_CHAINS = {
    "dead": f"{IMAGE} <float[6,3,3,3] w1, float[5,6,3,3] w2, float[4,6,1,1] d, float[4,5] fc,"
    f" float[4] fc_b> {{ c1 = Conv(x, w1) t1 = Tanh(c1) dead = Conv(t1, d) last = Conv(t1, w2) {HEAD} }}",
    "context": f"{IMAGE} <float[6,3,3,3] w1, float[6,6,1,1] g, float[4,6] fc, float[4] fc_b>"
    "{ c1 = Conv(x, w1) p = GlobalAveragePool(c1) q = Conv(p, g) t = Add(q, c1)"
    f"  last = Tanh(t) {HEAD} }}",
    "tokens": "net (float[N,5,6] x, float[N,1,6] z) => (float[N,5,4] y) <float[6,7] w1, float[6,7] w2,"
    " float[7,4] fc> { a = MatMul(x, w1) t = Tanh(a) b = MatMul(z, w2) s = Add(b, t)"
    "  u = Tanh(s) y = MatMul(u, fc) }",
    "twice": f"{IMAGE} <float[6,3,3,3] w1, float[6,6,1,1] w2, float[4,6] fc, float[4] fc_b>"
    f"{{ c1 = Conv(x, w1) c2 = Conv(c1, w2) s = Add(c2, c2) last = Tanh(s) {HEAD} }}",
}
"""Graphs that are no chains of layers: a dead branch, a context, tokens, a sum with itself."""


class Case(NamedTuple):
    """A graph that has lost half of its units."""

    coupling: Coupling
    keep: Keep
    graph: Graph
    samples: Samples


def cut_of(name: str, n_samples: int = N_SAMPLES) -> Case:
    graph, _, coupling = analyse(GRAPHS[name])
    keep: Any = draw_keep(coupling, least=1)
    assert keep, "nothing can be cut"
    return Case(coupling, keep, remove_units(coupling, keep), draw_samples(graph, n_samples))


def pairs_of(
    original: Graph, changed: Graph, samples: Samples, batch: int = 0
) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield each output of both graphs in whole batches, shape [batches, ...], in float64."""
    size = original.batch or batch or len(samples)
    feeds = [samples.feed(part) for part in samples.batches(size)]
    runs = []
    for graph in (original, changed):
        session = Session(graph)
        runs.append([session.run(feed) for feed in feeds if len(feed["x"]) == size])
    for port in original.outputs:
        wanted, found = (np.stack([run[port.name] for run in own]) for own in runs)
        assert wanted.shape == found.shape
        assert np.isfinite(found).all()
        yield wanted.astype(np.float64), found.astype(np.float64)


def error_of(original: Graph, changed: Graph, samples: Samples, batch: int = 0) -> float:
    """Return the mean squared error of outputs over their variance."""
    pairs = pairs_of(original, changed, samples, batch)
    return float(np.mean([((f - w) ** 2).mean() / (w.var() or 1.0) for w, f in pairs]))


def judged_error_of(original: Graph, changed: Graph, samples: Samples, channels: int) -> float:
    """Return what repair is judged by: joined errors of channels, joined over outputs.

    Args:
        original: The graph before.
        changed: What is compared with it.
        samples: To compare on.
        channels: The axis that holds them, where outputs have a row for each sample; others have
            one channel.
    """
    joined = []
    for wanted, found in pairs_of(original, changed, samples):
        squares, variance = (found - wanted) ** 2, wanted.var(ddof=1)
        if wanted.shape[1] == (original.batch or len(samples)):
            rows, squares = (
                np.moveaxis(np.concatenate(v), channels, -1) for v in (wanted, squares)
            )
            variance = rows.var(0, ddof=1).reshape(-1, rows.shape[-1]).mean(0)
            squares = squares.reshape(-1, rows.shape[-1])
        errors = squares.mean(0) / variance if variance.ndim else squares.mean() / variance
        joined.append(np.log(1 + errors).mean())
    return float(np.expm1(np.mean(joined)))


def uses(graph: onnx.GraphProto) -> Iterator[tuple[str, str]]:
    """Yield each value and what uses it, as often as it is used: outputs and subgraphs too."""
    yield from ((output.name, "an output") for output in graph.output)
    for node in graph.node:
        yield from ((name, f"{node.op_type} {slot}") for slot, name in enumerate(node.input))
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from uses(attribute.g)


def changed_by(repaired: Graph, cut: Graph) -> set[str]:
    assert repaired.initializers.keys() == cut.initializers.keys()
    return {
        name
        for name, array in cut.initializers.items()
        if array.tobytes() != repaired.initializers[name].tobytes()
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_a_refit_helps_samples_that_it_has_not_seen(name: str) -> None:
    """What nodes of different kinds use stays, and every batch still runs."""
    cut = cut_of(name)
    original = cut.coupling.graph
    found, fits = refit(Cut(cut.coupling, cut.keep, cut.graph), cut.samples, 0)
    fresh = draw_samples(original, 40, seed=1)
    before, after = (error_of(original, graph, fresh) for graph in (cut.graph, found))
    assert fits
    assert after < before
    for batch in (1, 3) if original.batch is None else ():
        assert np.isfinite(error_of(original, found, fresh, batch))
    used = list(uses(cut.graph.to_model().graph))
    changed = changed_by(found, cut.graph)
    for weight in changed:  # once, or several times by what is one layer
        users = [user for name, user in used if name == weight]
        assert users[0] != "an output"
        assert len(set(users)) == 1
    assert {str(cut.graph.initializers[weight].dtype) for weight in changed} == {"float32"}


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, "fuse") for name in GRAPHS] + [(name, "stats") for name in FOLDED | SHARED],
)
def test_other_repair_makes_nothing_worse(name: str, method: Any) -> None:
    cut = cut_of(name)
    original = cut.coupling.graph
    found = recover(
        Cut(cut.coupling, cut.keep, cut.graph), Bench(cut.coupling, cut.samples), method, 0
    )
    _, held = split(cut.samples, original.batch or 1)
    channels = 1 if name in IMAGES else -1
    before, after = (
        judged_error_of(original, graph, held, channels) for graph in (cut.graph, found.graph)
    )
    assert after <= before * (1 + 1e-6)
    if found.steps:
        assert found.steps[0].before == pytest.approx(before, rel=1e-4)
        assert after == pytest.approx(
            min([before, *(step.after for step in found.steps)]), rel=1e-4
        )


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_compressed_verifies(name: str) -> None:
    graph = analyse(GRAPHS[name]).graph
    samples = draw_samples(graph, N_SAMPLES)
    result = compress(graph, data=samples, budget=Budget(0.9))
    assert all(check.passed for check in verify(graph, result.model, result.plan))


@pytest.mark.parametrize("batch", [1, 3, 6])
@pytest.mark.parametrize("name", [name for name in FOLDED if HIDDEN not in name])
def test_what_stays_of_a_batch_is_what_an_analysis_of_that_batch_says(
    name: str, batch: int
) -> None:
    coupling, keep = cut_of(name)[:2]
    if coupling.graph.batch is not None:
        assert coupling.at_batch(keep, batch) is keep
        return
    other = analyse(GRAPHS[name], batch).coupling
    same = {other.by_name[group.name].dim: keep[group.dim] for group in coupling.groups}
    found = coupling.at_batch(keep, batch)
    assert found is not None
    for value, axes in coupling.axes.items():
        kept, wanted = kept_along(coupling, found, value), kept_along(other, same, value)
        assert kept.keys() == wanted.keys()
        assert all(np.array_equal(kept[axis], wanted[axis]) for axis in kept)
        sizes = [count(axis, found) for axis in axes]
        assert sizes == [count(axis, same) for axis in other.axes[value]]


@pytest.mark.parametrize("name", [HIDDEN, f"{HIDDEN}, layers on heads"])
def test_where_a_batch_that_is_hidden_went_is_known_at_its_own_size_alone(name: str) -> None:
    coupling, keep = cut_of(name)[:2]
    assert coupling.at_batch(keep, 3) is None
    assert coupling.at_batch(keep, 2) is keep


def test_units_of_samples_that_are_picked_are_known_for_one_batch() -> None:
    coupling, keep = cut_of("batch first")[:2]
    heads = coupling.by_name["wq:1.0"].dim
    for index, known in (((1, 0), False), ((0, 1), True)):
        picked = product([take(coupling.batch, index), heads])
        changed = replace(coupling, axes={**coupling.axes, "picked": (picked,)})
        assert (changed.at_batch(keep, 3) is not None) == known


@pytest.mark.parametrize("batch", [2, 4])
def test_a_weight_that_is_as_long_as_the_batch_is_for_one_batch(batch: int) -> None:
    graph, _, coupling = analyse(PAIRS, batch)
    keep: Any = draw_keep(coupling)
    assert coupling.at_batch(keep, 6) is None
    samples = draw_samples(graph, 3)  # fewer than a batch of 4
    found, fits = refit(Cut.of(coupling, keep), samples, 0)
    assert {fit.layer for fit in fits} == {"u"}
    assert np.isfinite(found.initializers["u"]).all()


def test_the_twin_of_a_cut_public_model_knows_the_sizes_that_were_written() -> None:
    graph, _, coupling = analyse(Graph.load(public_model("magika/model.onnx")))
    keep: Any = draw_keep(coupling)
    pruned = remove_units(coupling, keep)
    feed = {"bytes": np.random.default_rng(0).integers(0, 257, (3, 2048)).astype(np.int32)}
    found = run_module(derived_twin(pruned, coupling), pruned, feed)
    assert_close(found, run_onnx(pruned, feed))
    assert graph.inputs == pruned.inputs


def outputs_of(graph: Graph, samples: Samples, *names: str) -> list[Numbers]:
    """Run ONNX Runtime on all samples; values have channels last and one row for each position."""
    session = Session(graph, optimize=False, outputs=list(names))
    size = graph.batch or len(samples)
    runs = [session.run(samples.feed(part)) for part in samples.batches(size)]
    return [np.concatenate([run[name] for run in runs]).astype(np.float64) for name in names]


@pytest.mark.parametrize("name", SUMS)
def test_a_layer_gives_what_makes_its_sum_right(name: str) -> None:
    """Of all weights and biases, numpy finds none that bring the sum much nearer."""
    cut = cut_of(name, 200)
    original = cut.coupling.graph
    axis = 1 if name in IMAGES else 2
    found, fits = refit(Cut(cut.coupling, cut.keep, cut.graph), cut.samples, 0)
    (wanted,) = outputs_of(original, cut.samples, "s")
    wanted = wanted[(slice(None),) * axis + (mask(cut.coupling.axes["s"][axis], cut.keep),)]
    t, before = outputs_of(cut.graph, cut.samples, "t", "s")
    _, after = outputs_of(found, cut.samples, "t", "s")
    t, wanted, before, after = (np.moveaxis(v, axis, -1) for v in (t, wanted, before, after))
    rows = np.concatenate([t, np.ones((*t.shape[:-1], 1))], -1).reshape(-1, t.shape[-1] + 1)
    missing = (wanted - before).reshape(len(rows), -1)
    least = missing - rows @ np.linalg.lstsq(rows, missing, rcond=None)[0]
    assert "w1" in {fit.layer for fit in fits}
    start, end, best = (float(np.square(v).sum()) for v in (missing, wanted - after, least))
    assert end < 0.98 * start
    assert end < 1.02 * best


@pytest.mark.parametrize("method", ["auto", "stats", "fuse"])
@pytest.mark.parametrize("net", NO_CHAINS)
def test_odd_graphs_are_repaired_and_verified(net: str, method: Any) -> None:
    graph = analyse(build(NO_CHAINS[net])).graph
    samples = draw_samples(graph, 60)
    result = compress(graph, data=samples, budget=Budget(0.7), recover=method)
    assert all(check.passed for check in verify(graph, result.model, result.plan))


def test_a_norm_of_zero_scale_leaves_its_layer_alone() -> None:
    text = (
        f"{IMAGE} <float[6,3,1,1] w0, float[6,6,1,1] w1, float[6] scale, float[6] shift, float[6] mean,"
        " float[6] var, float[4,6] fc, float[4] fc_b>"
        "{ s = Conv(x, w0) t = Tanh(s) c = Conv(t, w1) n = BatchNormalization(c, scale, shift, mean, var)"
        f"  last = Add(n, s) {HEAD} }}"
    )
    graph = analyse(build(text)).graph.edit({"scale": np.zeros(6, np.float32)})
    coupling = analyse(graph.to_model()).coupling
    keep = draw_keep(coupling)
    pruned, samples = remove_units(coupling, keep), draw_samples(coupling.graph, 60)
    repaired, _ = refit(Cut(coupling, keep, pruned), samples, 0)
    np.testing.assert_array_equal(repaired.initializers["w1"], pruned.initializers["w1"])


@pytest.mark.parametrize(
    ("behind", "value"),
    [
        ("BatchNormalization(c, scale, shift, mean, var)", "last"),
        ("BatchNormalization<training_mode=1>(c, scale, shift, mean, var)", "c"),
        ("Identity(c)", "last"),
        ("Reshape(c, same)", "last"),
        ("Relu(c)", "c"),
    ],
)
@pytest.mark.parametrize(("joins", "sign"), [("Add(n, s)", 1), ("Sub(n, s)", -1)])
def test_a_sum_is_the_target_where_what_lies_between_is_undone(
    behind: str, value: str, joins: str, sign: int
) -> None:
    text = (
        "net (float[N,3,6,6] x) => (float[N,6,6,6] y) <float[6,3,1,1] w0, float[6,6,1,1] w1,"
        " float[6] scale, float[6] shift, float[6] mean, float[6] var>"
        "{ s = Conv(x, w0) t = Tanh(s) c = Conv(t, w1) n = BEHIND last = JOINS y = Relu(last) }"
    )
    outputs = "n, m, v" if "training" in behind else "n"
    constants = {"same": np.array([0, 0, 6, 6])} if "same" in behind else {}
    model = build(
        text.replace("n = BEHIND", f"{outputs} = {behind}").replace("JOINS", joins), constants
    )
    graph, _, coupling = analyse(model)
    twin = derived_twin(graph, coupling)
    layer = next(layer for layer in find_layers(coupling, graph, twin) if layer.weight == "w1")
    inputs = as_inputs(graph.inputs, draw_samples(graph, 4).feed(slice(0, 4)))
    target = target_of(layer, Cut(coupling, {}, graph), Lockstep(twin, [inputs]))
    assert (target.value, target.sign) == (value, sign if value == "last" else 1)
