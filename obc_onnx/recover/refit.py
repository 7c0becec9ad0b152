"""Refit of every layer by least squares, in the order of the graph, through what is repaired.

A layer's input has changed since units are gone, before it and in it. Its weight and bias are
solved for anew, towards what the original gives there. A layer that is applied several times is
solved for once, over all its uses. Where a weight cannot change, since other nodes use it too, or
is too large to solve for, the bias takes the mean of what is missing. Products
of two values have no weight: one of the layers in front repairs them.

Rows of a few tokens of a transformer may be far larger than all others; norms divide them by their
size. Least squares would fit those alone, so that no row counts more than a few usual ones.

Sources: Luo et al., ThiNet, arXiv 1707.06342, and He et al., Channel Pruning, arXiv 1707.06168, for
the least squares; Sun et al., Massive Activations in Large Language Models, arXiv 2402.17762, for
the rows; going through the repaired network, sums as targets, and the limit on rows are recipes of
their own. Every output keeps its weights unless samples that were held out say that others are
better.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from obc_onnx.measuring.outputs import batch_size_of
from obc_onnx.measuring.padding import real_of
from obc_onnx.progress import track
from obc_onnx.recover.attention import (
    MatrixProduct,
    Products,
    find_products,
    fit_scores,
    put_into_layer,
    recombine,
)
from obc_onnx.recover.layers import Layer, find_layers, find_shared
from obc_onnx.recover.least_squares import Halves, solve
from obc_onnx.recover.methods import LayerFit
from obc_onnx.recover.targets import Target, at_batch, select_kept, target_of
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.lockstep import Lockstep, affordable
from obc_onnx.twin.tensors import as_inputs, parameter_name, wide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from obc_onnx.graph.model import Graph
    from obc_onnx.measuring.padding import RealOf
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut
    from obc_onnx.twin.module import TorchTwin

    Solver = Callable[..., Tensor]
    Use = tuple[Layer, Target]

_SAMPLES = 1024
_ROWS = 65536
"""Of inputs and outputs, for each layer: positions of a picture are much alike."""
_HELD_OUT = 0.2
_CHUNKS = 5
"""Of the samples, at least, where there are as many."""
_TOGETHER = 8
"""Samples whose inputs are laid out at a time: a filter's own may be many times the input."""
_UNCHANGED = 1e-6
"""Share of the outputs' squares: a layer that errs no more, as rounding does, is left alone."""
_USUAL = 3.0
"""Times the median of their squares: larger rows count as if they were of this size."""
_LARGEST = 6144
"""Inputs times kernel of a layer, at most: the time to solve grows with the third power."""


class _Pair(NamedTuple):
    """The original and the cut network, side by side.

    Attributes:
        layers: Of the cut network, each as its uses, with the outputs that these should have.
        scores: Products of the cut network.
        n_held: How many chunks, the last ones, are held out.
        real: Says for each chunk which positions of a value of the original are no padding.
    """

    dense: Lockstep
    cut: Lockstep
    twin: TorchTwin
    layers: list[list[Use]]
    scores: list[MatrixProduct]
    n_held: int
    real: Sequence[RealOf]

    def counted(self, layer: Layer, i: int, shape: Sequence[int]) -> Tensor | None:
        """Say which rows of a layer's outputs count in a chunk: 1, and 0 where there is padding.

        Args:
            layer: Whose outputs they are.
            i: Of the chunk.
            shape: Of the rows: samples and positions.
        Returns:
            That shape; None where all count.
        """
        real = self.real[i](layer.output)
        if real is None or real.shape[layer.writes] > 1:
            return None
        rows = torch.from_numpy(real).movedim(layer.writes, -1)[..., 0]
        return rows.expand(*shape)

    def wanted(self, layer: Layer, target: Target) -> Callable[[int], Tensor]:
        """Return what gives the outputs that a layer should have for a chunk."""
        values = self.dense.values(target.value)
        others = None if target.other is None else self.cut.values(target.other)

        def of(i: int) -> Tensor:
            other = None if others is None else wide(others[i])
            return target.outputs(layer, wide(values[i]), other)

        return of


def refit(
    cut: Cut,
    samples: Samples,
    seed: int,
    solver: Solver = solve,
    device: str = "cpu",
) -> tuple[Graph, list[LayerFit]]:
    """Solve for the weights of every layer whose input has changed.

    Args:
        cut: The cut graph.
        samples: To measure on; labels are not used.
        seed: Of the choice of samples and positions.
        solver: Finds the matrix of a layer from moments of used and held-out rows, what is there,
            and whether it holds a bias. Products are repaired with the default alone.
        device: Where both networks run; moments are gathered and solved in the host's memory.
    Returns:
        The repaired graph, and what was done to each layer that was changed.
    """
    pair = _make_pair(cut, samples, seed, device, products=solver is solve)
    rng = np.random.default_rng(seed)
    steps: list[tuple[int, Callable[[], LayerFit | None]]] = [
        (_turn(pair.cut, uses[0][0]), partial(_repair_layer, pair, uses, rng, solver))
        for uses in pair.layers
    ]
    steps += [
        (pair.cut.calls[product.key], partial(_repair_scores, pair, product, rng))
        for product in pair.scores
    ]
    ordered = [step for _, step in sorted(steps, key=itemgetter(0))]
    fits = [step() for step in track(ordered, "refitting layers")]
    return pair.twin.write_to(cut.pruned), [fit for fit in fits if fit is not None]


def _make_pair(
    cut: Cut,
    samples: Samples,
    seed: int,
    device: str = "cpu",
    *,
    products: bool = True,
) -> _Pair:
    """Build both networks, and draw the chunks of samples that they run on."""
    coupling, pruned, graph = cut.coupling, cut.pruned, cut.coupling.graph
    dense = derived_twin(graph, coupling, frozen=True).to(device)
    twin = derived_twin(pruned, coupling).to(device)
    twin.requires_grad_(False)  # noqa: FBT003 - weights that are operands, too, reach sums
    batch = graph.batch_axes.count_of({p.name: coupling.shapes[p.name] for p in graph.inputs})
    count = affordable(dense, coupling.shapes, batch, min(len(samples), _SAMPLES))
    # several chunks, so that there are some to hold out, of one size, as some graphs need it
    size = graph.batch or max(min(batch_size_of(graph), count // _CHUNKS), 1)
    keep, size = at_batch(coupling, cut.keep, size)
    cut = replace(cut, keep=keep)
    count = max(count // size, 1) * size
    order = np.random.default_rng(seed).permutation(len(samples))[:count]
    order = np.sort(np.resize(order, count))  # a batch may select_kept more than there are
    parts = [order[start : start + size] for start in range(0, count, size)]
    chunks = [as_inputs(graph.inputs, samples.feed(part), device) for part in parts]
    real = [real_of(coupling, samples, part) for part in parts]
    right = Lockstep(twin, chunks)
    found = [
        layer for layer in find_layers(coupling, pruned, twin) if layer.node.key in right.calls
    ]
    shared = find_shared(coupling, pruned, twin)
    layers = [
        [(use, target_of(use, cut, right)) for use in uses]
        for uses in [*([layer] for layer in found), *shared]
        if all(use.node.key in right.calls for use in uses)
    ]
    scores = find_products(cut, twin, found, chunks[0]) if products else []
    held = [target.value for uses in layers for _, target in uses]
    held += [value for product in scores for value in product.values]
    n_held = max(round(len(chunks) * _HELD_OUT), 1) if len(chunks) > 1 else 0
    return _Pair(Lockstep(dense, chunks, held), right, twin, layers, scores, n_held, real)


def _repair_layer(
    pair: _Pair, uses: list[Use], rng: np.random.Generator, solver: Solver
) -> LayerFit | None:
    """Write what is found for one layer into the cut network; None leaves it.

    A layer that is applied several times is solved for over all its uses, before the first: the
    later ones see what layers in between are then.
    """
    layer = uses[0][0]
    pair.cut.advance(_turn(pair.cut, layer))
    run = pair if len(uses) == 1 else pair._replace(cut=pair.cut.fork())
    fit = _solve(run, uses, rng, solver) if _is_solved(layer) else _shift(run, uses)
    for _, target in uses:
        pair.dense.release(target.value)
    return fit


def _advance(pair: _Pair, layer: Layer, target: Target) -> None:
    """Run both networks as far as the repair of a layer looks."""
    pair.cut.advance(_turn(pair.cut, layer))
    pair.dense.advance(pair.dense.places[target.value] + 1)


def _is_solved(layer: Layer) -> bool:
    """Say whether a layer's weight is solved for; else its bias alone changes."""
    return layer.own and layer.reach <= _LARGEST


def _turn(run: Lockstep, layer: Layer) -> int:
    """Return the place in front of which a layer is repaired: of its product, or of its bias."""
    return run.calls[layer.node.key] if _is_solved(layer) else run.places[layer.output]


def _solve(
    pair: _Pair, uses: list[Use], rng: np.random.Generator, solver: Solver
) -> LayerFit | None:
    """Solve for weight and bias."""
    layer = uses[0][0]
    weight = pair.twin.get_parameter(parameter_name(layer.weight))
    bias = None if layer.bias is None else pair.twin.get_parameter(parameter_name(layer.bias))
    matrix = layer.matrix(weight.detach()).double().cpu()
    blocks, outputs, inputs = matrix.shape
    if bias is not None:
        own = bias.detach().double().cpu().reshape(blocks, outputs, 1)
        matrix = torch.cat([matrix, own], -1)
    halves = Halves(pair.cut.n_chunks, pair.n_held, (blocks, outputs, matrix.shape[-1]))
    for use, target in uses:
        _advance(pair, use, target)
        rows = _Rows(pair, use, target)
        for i in range(rows.n_chunks):
            halves.of(i).add(*rows.of(i, rng, biased=bias is not None))
    total, biased = float(halves.judge.yy.sum()), bias is not None
    better = _better(layer, halves, matrix, total, solver, biased=biased)
    if better is None:
        return None
    found, fit = better
    weight.data.copy_(layer.weight_of(found[..., :inputs], tuple(weight.shape)))
    if bias is not None:
        bias.data.copy_(found[..., -1].reshape(-1))
    return fit


def _shift(pair: _Pair, uses: list[Use]) -> LayerFit | None:
    """Add the mean of what is missing to a bias, wherever that brings an output nearer."""
    layer = uses[0][0]
    if layer.bias is None:
        return None
    bias = pair.twin.get_parameter(parameter_name(layer.bias))
    total, halves = 0.0, Halves(pair.cut.n_chunks, pair.n_held, (1, len(bias), 1))
    for use, target in uses:
        _advance(pair, use, target)
        wanted, previews = pair.wanted(use, target), pair.cut.preview(use.output)
        usual = _usual_size(pair, use, map(wanted, range(len(previews))))
        for i, given in enumerate(previews):
            y, found = wanted(i), use.outputs(wide(given))
            own = pair.counted(use, i, y.shape[:-1])
            y, found = (rows.flatten(0, -2) if own is None else rows[own] for rows in (y, found))
            factor = _factors(y[None], usual)
            moments = halves.of(i)
            moments.add(factor, (y - found)[None] * factor)
            y = y[None] * factor
            total += float(y.double().square().sum()) if moments is halves.judge else 0.0
    nothing = torch.zeros(1, len(bias), 1, dtype=torch.float64)
    better = _better(layer, halves, nothing, total, solve, biased=True)
    if better is None:
        return None
    shift, fit = better
    bias.data += shift[0, :, 0].to(bias)
    return fit


def _better(
    layer: Layer, halves: Halves, start: Tensor, total: float, solver: Solver, *, biased: bool
) -> tuple[Tensor, LayerFit] | None:
    """Solve for a matrix, unless the outputs err by no more than rounding.

    Args:
        layer: Whose it is.
        halves: Moments of all chunks.
        start: What is there.
        total: Squares of the wanted outputs, over the chunks that judge.
        solver: See `refit`.
        biased: Whether the last input is always 1.
    """
    before = float(halves.judge.error(start).sum())
    if total == 0 or before <= _UNCHANGED * total:
        return None
    found = solver(halves.used, halves.judge, start, biased=biased)
    after = float(halves.judge.error(found).sum())
    return found, LayerFit(layer.weight, before / total, after / total)


def _repair_scores(pair: _Pair, scores: MatrixProduct, rng: np.random.Generator) -> LayerFit | None:
    """Recombine the units of a product's factor, in its layer and in what that has given."""
    pair.cut.advance(pair.cut.calls[scores.key])
    pair.dense.advance(max(pair.dense.places[value] for value in scores.values) + 1)
    wanted, *weights = (
        [select_kept(v, scores.kept) for v in pair.dense.values(value)] for value in scores.values
    )
    factors = pair.cut.arguments(scores.key)
    chunks = [
        Products(left, right, wanted[i], weights[0][i] if weights else None).counted(
            pair.real[i](scores.key)
        )
        for i, (left, right) in enumerate(factors)
    ]
    matrices, fit = fit_scores(scores, chunks, pair.n_held, rng)
    if fit.after < fit.before:
        put_into_layer(scores, matrices, pair.twin)
        changed = [recombine(scores, matrices, given[scores.slot]) for given in factors]
        pair.cut.replace(scores.key, scores.slot, changed)
    for value in scores.values:
        pair.dense.release(value)
    return fit if fit.after < fit.before else None


def _usual_size(pair: _Pair, layer: Layer, outputs: Iterable[Tensor]) -> float:
    """Return up to which sum of squares a row of wanted outputs counts whole.

    Args:
        pair: Says what is padding.
        layer: Whose outputs they are.
        outputs: Of each chunk, shape [samples, *positions, outputs].
    """
    sizes = []
    for i, y in enumerate(outputs):
        size, own = y.square().sum(-1), pair.counted(layer, i, y.shape[:-1])
        sizes.append(size.flatten() if own is None else size[own])
    found = torch.cat(sizes)
    if not len(found):
        return math.inf
    median = float(found.median())
    return _USUAL * (median or float(found.mean())) or math.inf


def _factors(y: Tensor, usual: float) -> Tensor:
    """Return what to multiply rows with, both inputs and outputs, shape [1, rows, 1].

    Args:
        y: Wanted outputs, shape [blocks, rows, outputs].
        usual: Up to which sum of squares a row counts whole.
    """
    size = y.square().sum((0, 2), keepdim=True)
    return (usual / size.clamp_min(usual)).sqrt() if math.isfinite(usual) else torch.ones_like(size)


class _Rows:
    """The inputs of a layer and its wanted outputs, at real positions drawn by chance."""

    def __init__(self, pair: _Pair, layer: Layer, target: Target) -> None:
        self._pair, self._layer = pair, layer
        self._call = pair.cut.call(layer.node.key)
        self._arguments = pair.cut.arguments(layer.node.key)
        self._wanted = pair.wanted(layer, target)
        self.n_chunks = len(self._arguments)
        self._usual = _usual_size(pair, layer, map(self._outputs, range(self.n_chunks)))

    def _outputs(self, i: int) -> Tensor:
        """Return what the product of a chunk should be, shape [samples, *positions, outputs]."""
        added = self._layer.added(self._call, self._arguments[i])
        return self._wanted(i) if added is None else self._wanted(i) - wide(added)

    def of(self, i: int, rng: np.random.Generator, *, biased: bool) -> tuple[Tensor, Tensor]:
        """Return inputs [blocks, rows, inputs] and outputs [blocks, rows, outputs] of a chunk."""
        layer, y = self._layer, self._outputs(i)
        counted = self._pair.counted(layer, i, y.shape[:-1])
        shape, n_samples = y.shape[1:-1], len(y)
        places = int(np.prod(shape))
        wanted = max(_ROWS // (n_samples * self.n_chunks), 1)
        own: Any = (slice(None),)
        if places > wanted:
            chosen = rng.choice(places, wanted, replace=False)
            own += tuple(map(torch.from_numpy, np.unravel_index(np.sort(chosen), shape)))
            y = y[own]
            counted = None if counted is None else counted[own]
        inputs = layer.inputs(self._call, self._arguments[i], _TOGETHER)
        n_rows = n_samples * min(places, wanted)
        x = torch.cat([wide(part[own]) for part in inputs])
        x = x.reshape(n_rows, layer.blocks, -1).transpose(0, 1)
        y = y.reshape(n_rows, layer.blocks, -1).transpose(0, 1)
        if counted is not None:
            x, y = (value[:, counted.reshape(-1)] for value in (x, y))
        factor = _factors(y, self._usual)
        x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], -1) if biased else x
        return x * factor, y * factor
