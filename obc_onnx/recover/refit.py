"""Refit of every layer by least squares, in the order of the graph, through what is repaired.

A layer's input has changed since units are gone, before it and in it. Its weight and bias are
solved for again, towards what the original gives there. A layer that is applied several times is
solved for once, over all its uses. Where a weight cannot change, since other nodes use it too, or
is too large to solve for, the bias takes the mean of what is missing. Products
of two values have no weight: one of the layers in front repairs them.

Sources: Luo et al., ThiNet, arXiv 1707.06342, and He et al., Channel Pruning, arXiv 1707.06168, for
the least squares; going through the repaired network and sums as targets are recipes of their own.
Every output keeps its weights unless samples that were held out say that others are better.
"""

from __future__ import annotations

import math
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import torch

from obc_onnx.progress import track
from obc_onnx.recover.attention import Products, fit_scores, put_into_layer, recombine
from obc_onnx.recover.least_squares import solve
from obc_onnx.recover.methods import LayerFit
from obc_onnx.recover.pair import NEGLIGIBLE, Pair, factors_of
from obc_onnx.recover.rows import Rows
from obc_onnx.recover.targets import select_kept
from obc_onnx.twin.tensors import parameter_name, wide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from obc_onnx.graph.model import Graph
    from obc_onnx.recover.attention import MatrixProduct
    from obc_onnx.recover.layers import Layer
    from obc_onnx.recover.least_squares import Halves
    from obc_onnx.recover.pair import Use
    from obc_onnx.recover.targets import Target
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut

_TURNS = 2
"""Of moving targets: further ones bring less, see docs/recovery.md."""
_LARGEST = 6144
"""Inputs times kernel of a layer, at most: the time to solve grows with the third power."""


def refit(
    cut: Cut, samples: Samples, seed: int, device: str = "cpu"
) -> tuple[Graph, list[LayerFit]]:
    """Solve for the weights of every layer whose input has changed.

    Args:
        cut: The cut graph.
        samples: To measure on; labels are not used.
        seed: Of the choice of samples and positions.
        device: Where both networks run; moments are gathered and solved in the host's memory.
    Returns:
        The repaired graph, and what was done to each layer that was changed.
    """
    pair = Pair(cut, samples, seed, device)
    rng = np.random.default_rng(seed)
    steps: list[tuple[int, Callable[[], LayerFit | None]]] = [
        (_turn(pair, uses[0][0]), partial(_repair_layer, pair, uses, rng)) for uses in pair.layers
    ]
    steps += [
        (pair.cut.calls[product.key], partial(_repair_scores, pair, product, rng))
        for product in pair.scores
    ]
    ordered = [step for _, step in sorted(steps, key=itemgetter(0))]
    fits = [step() for step in track(ordered, "refitting layers")]
    return pair.twin.write_to(cut.pruned), [fit for fit in fits if fit is not None]


def _repair_layer(pair: Pair, uses: list[Use], rng: np.random.Generator) -> LayerFit | None:
    """Write what is found for one layer into the cut network; None leaves it.

    A layer that is applied several times is solved for over all its uses, before the first: the
    later ones see what layers in between are then.
    """
    _advance(pair, *uses[0])
    run = pair if len(uses) == 1 else pair.forked()
    fit = _solve(run, uses, rng) if _is_solved(uses[0][0]) else _shift(run, uses)
    pair.release(target.value for _, target in uses)
    return fit


def _advance(pair: Pair, layer: Layer, target: Target) -> None:
    """Run both networks as far as the repair of a layer looks."""
    pair.advance(_turn(pair, layer), [target.value])


def _is_solved(layer: Layer) -> bool:
    """Say whether a layer's weight is solved for; else its bias alone changes."""
    return layer.own and layer.reach <= _LARGEST


def _turn(pair: Pair, layer: Layer) -> int:
    """Return the place in front of which a layer is repaired: of its product, or of its bias."""
    run = pair.cut
    return run.calls[layer.node.key] if _is_solved(layer) else run.places[layer.output]


def _solve(pair: Pair, uses: list[Use], rng: np.random.Generator) -> LayerFit | None:
    """Solve for weight and bias."""
    layer = uses[0][0]
    weight = pair.twin.get_parameter(parameter_name(layer.weight))
    bias = None if layer.bias is None else pair.twin.get_parameter(parameter_name(layer.bias))
    matrix = layer.matrix(weight.detach()).double().cpu()
    blocks, outputs, inputs = matrix.shape
    if bias is not None:
        own = bias.detach().double().cpu().reshape(blocks, outputs, 1)
        matrix = torch.cat([matrix, own], -1)
    halves, biased = pair.halves(*matrix.shape), bias is not None
    seen: list[Rows] = []
    for use, target in uses:
        _advance(pair, use, target)
        rows = Rows(pair, use, target, rng, biased=biased)
        for i in range(len(rows)):
            halves.of(i).add(*rows.of(i))
        seen.append(rows)
    total = float(halves.judge.yy.sum())
    better = _better(layer, halves, matrix, total, biased=biased)
    if better is None:
        return None
    found, fit = better
    if any(target.saturates for _, target in uses):
        before, linear = _errors(seen, pair.judges, (matrix, found))
        start = found if linear < before else matrix
        found, after = _move_targets(seen, halves, start, biased=biased)
        fit = LayerFit(layer.weight, before / total, after / total)
    pair.codes.write(layer.weight, layer.weight_of(found[..., :inputs], tuple(weight.shape)))
    if layer.bias is not None:
        pair.codes.write(layer.bias, found[..., -1].reshape(-1))
    return fit


def _move_targets(
    seen: Sequence[Rows], halves: Halves, matrix: Tensor, *, biased: bool
) -> tuple[Tensor, float]:
    """Solve for outputs that need only be right where an activation changes with them.

    In turn, wanted outputs move to the nearest ones that do as well, and the matrix is solved for
    again: no turn lets the error grow.

    Args:
        seen: Rows of every use of the layer.
        halves: Their moments.
        matrix: Where to start from.
        biased: Whether the last input is always 1.
    Returns:
        The matrix, and its error on the rows that judge.
    """
    error = math.inf
    for _ in range(_TURNS):
        moved = halves.of_same_inputs()
        for rows in seen:
            for i in range(len(rows)):
                own = rows.limited(i)
                moved.of(i).add(own.x, own.nearest(matrix)[1])
        matrix, _, error = solve(moved.used, moved.judge, matrix, biased=biased)
    return matrix, error


def _errors(
    seen: Sequence[Rows], judges: Sequence[bool], matrices: Sequence[Tensor]
) -> list[float]:
    """Return the squared error of each matrix on judging rows, as far as something changes."""
    totals = [0.0] * len(matrices)
    for rows in seen:
        for i in range(len(rows)):
            if judges[i] or not any(judges):
                own = rows.limited(i)
                for number, matrix in enumerate(matrices):
                    given, near = own.nearest(matrix)
                    totals[number] += float((given - near).double().square().sum())
    return totals


def _shift(pair: Pair, uses: list[Use]) -> LayerFit | None:
    """Add the mean of what is missing to a bias, wherever that brings an output nearer."""
    layer = uses[0][0]
    if layer.bias is None:
        return None
    bias = pair.twin.get_parameter(parameter_name(layer.bias))
    total, halves = 0.0, pair.halves(1, len(bias), 1)
    for use, target in uses:
        _advance(pair, use, target)
        wanted = pair.wanted(use, target)
        usual, everywhere = pair.usual_size(use, wanted), (slice(None),)
        for i, given in enumerate(pair.cut.preview(use.output)):
            y, found = pair.real_rows(use, i, everywhere, wanted(i), use.outputs(wide(given)))
            factor = factors_of(y[None], usual)
            moments = halves.of(i)
            moments.add(factor, (y - found)[None] * factor)
            y = y[None] * factor
            total += float(y.double().square().sum()) if moments is halves.judge else 0.0
    nothing = torch.zeros(1, len(bias), 1, dtype=torch.float64)
    better = _better(layer, halves, nothing, total, biased=True)
    if better is None:
        return None
    shift, fit = better
    pair.codes.write(layer.bias, bias.detach() + shift[0, :, 0].to(bias))
    return fit


def _better(
    layer: Layer, halves: Halves, start: Tensor, total: float, *, biased: bool
) -> tuple[Tensor, LayerFit] | None:
    """Solve for a matrix, unless the outputs err by no more than rounding.

    Args:
        layer: Whose it is.
        halves: Moments of all chunks.
        start: What is there.
        total: Squares of the wanted outputs, over the chunks that judge.
        biased: Whether the last input is always 1.
    """
    if total == 0:
        return None
    least = NEGLIGIBLE * total
    found = solve(halves.used, halves.judge, start, biased=biased, least=least)
    if found.before <= least:
        return None
    return found.matrix, LayerFit(layer.weight, found.before / total, found.after / total)


def _repair_scores(pair: Pair, scores: MatrixProduct, rng: np.random.Generator) -> LayerFit | None:
    """Recombine the units of a product's factor, in its layer and in what that has given."""
    pair.advance(pair.cut.calls[scores.key], scores.values)
    wanted, *weights = (
        [select_kept(v, scores.kept) for v in pair.dense.values(value)] for value in scores.values
    )
    factors = pair.cut.arguments(scores.key)
    chunks = [
        Products(left, right, wanted[i], weights[0][i] if weights else None).counted(
            pair.real(i, scores.key)
        )
        for i, (left, right) in enumerate(factors)
    ]
    matrices, fit = fit_scores(scores, chunks, pair.judges, rng)
    if fit.after < fit.before:
        put_into_layer(scores, matrices, pair.codes)
        changed = [recombine(scores, matrices, given[scores.slot]) for given in factors]
        pair.cut.replace(scores.key, scores.slot, changed)
    pair.release(scores.values)
    return fit if fit.after < fit.before else None
