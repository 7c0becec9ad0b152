"""Match of statistics: each output of a layer gets back the mean and variance of the original's.

For graphs whose norms were folded: r = sigma / sigma_pruned, W' = r W, b' = (b - mu_pruned) r + mu.
Layers are gone through in the order of the graph, each on what the matched ones in front give.

Source: Jordan et al., REPAIR, arXiv 2211.08403, for networks without norms.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch

from obc_onnx.progress import track
from obc_onnx.recover.methods import LayerFit
from obc_onnx.recover.pair import NEGLIGIBLE, Pair, factors_of
from obc_onnx.twin.tensors import parameter_name, wide

if TYPE_CHECKING:
    from torch import Tensor

    from obc_onnx.graph.model import Graph
    from obc_onnx.recover.layers import Layer
    from obc_onnx.recover.pair import Use
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut

_FARTHEST = 3.0
"""A factor beyond it, or below its inverse, would blow up noise."""


def match(
    cut: Cut, samples: Samples, seed: int, device: str = "cpu"
) -> tuple[Graph, list[LayerFit]]:
    """Scale and shift the outputs of every layer that has a bias of its own.

    A layer that is applied several times is matched over all its uses. Where its weight cannot
    change, since others use it too, it is shifted alone. Nothing is chosen, so that all samples
    are measured on, and of each as many positions as in a refit.

    Args:
        cut: The cut graph.
        samples: To measure on; labels are not used.
        seed: Of the choice of samples and positions.
        device: Where both networks run.
    Returns:
        The matched graph, and what was done to each layer.
    """
    pair = Pair(cut, samples, seed, device, products=False)
    layers = []
    for uses in pair.layers:
        if uses[0][0].bias is not None:
            layers.append(uses)
        else:
            pair.release(target.value for _, target in uses)
    layers.sort(key=lambda uses: pair.cut.calls[uses[0][0].node.key])
    rng = np.random.default_rng(seed)
    fits = [_match_layer(pair, uses, rng) for uses in track(layers, "matching statistics")]
    return pair.twin.write_to(cut.pruned), [fit for fit in fits if fit is not None]


def _match_layer(pair: Pair, uses: list[Use], rng: np.random.Generator) -> LayerFit | None:
    """Match one layer, unless its outputs err by no more than rounding."""
    layer = uses[0][0]
    everything, judge = _measure(pair, uses, rng)
    pair.release(target.value for _, target in uses)
    same = torch.ones(layer.width, dtype=torch.float64), torch.zeros(layer.width)
    before, total = float(judge.error(*same).sum()), float(judge.wanted_squares.sum())
    if before <= NEGLIGIBLE * total:
        return None
    factor, shift = everything.match(scales=layer.own)
    after = float(judge.error(factor, shift).sum())
    _write(pair, layer, factor, shift)
    return LayerFit(layer.weight, before / total, after / total)


def _measure(
    pair: Pair, uses: list[Use], rng: np.random.Generator
) -> tuple[Statistics, Statistics]:
    """Return what is known of all chunks, and of those that judge."""
    everything = judge = Statistics.nothing(uses[0][0].width)
    _advance(pair, uses[0])
    run = pair if len(uses) == 1 else pair.forked()
    for layer, target in uses:
        _advance(run, (layer, target))
        wanted = run.wanted(layer, target)
        usual = run.usual_size(layer, wanted)
        for i, given in enumerate(run.cut.preview(layer.output)):
            outputs = layer.outputs(wide(given)), wanted(i)
            found, y = run.real_rows(layer, i, run.draw(outputs[0].shape[:-1], rng), *outputs)
            own = Statistics.of(found, y, factors_of(y[None], usual)[0].square())
            everything += own
            if run.judges[i]:
                judge += own
    return everything, judge if any(run.judges) else everything


def _advance(pair: Pair, use: Use) -> None:
    """Run both networks up to the product of a layer."""
    layer, target = use
    pair.advance(pair.cut.calls[layer.node.key], [target.value])


def _write(pair: Pair, layer: Layer, factor: Tensor, shift: Tensor) -> None:
    """Let a layer give what it gives times a factor, and a shift."""
    assert layer.bias is not None
    bias = pair.twin.get_parameter(parameter_name(layer.bias))
    pair.codes.write(layer.bias, bias.detach().double().cpu() * factor + shift)
    if layer.own:
        weight = pair.twin.get_parameter(parameter_name(layer.weight))
        matrix = layer.matrix(weight.detach()).double().cpu()
        scaled = matrix * factor.reshape(*matrix.shape[:2], 1)
        pair.codes.write(layer.weight, layer.weight_of(scaled, tuple(weight.shape)))


@dataclass(frozen=True)
class Statistics:
    """Sums over weighed rows, of what outputs are and of what they should be.

    Attributes:
        rows: Of their weights, shape [1] or [outputs] as all others.
        own: Of what outputs are.
        own_squares: Of its squares.
        wanted: Of what they should be.
        wanted_squares: Of its squares.
        products: Of both.
    """

    rows: Tensor
    own: Tensor
    own_squares: Tensor
    wanted: Tensor
    wanted_squares: Tensor
    products: Tensor

    @classmethod
    def nothing(cls, outputs: int) -> Statistics:
        """Return those of no rows."""
        return cls(*torch.zeros(6, outputs, dtype=torch.float64))

    @classmethod
    def of(cls, own: Tensor, wanted: Tensor, weights: Tensor) -> Statistics:
        """Measure rows.

        Args:
            own: Shape [rows, outputs].
            wanted: The same.
            weights: Shape [rows, 1].
        """
        own, wanted, weights = own.double(), wanted.double(), weights.double()
        left, right = own * weights, wanted * weights
        parts = weights, left, left * own, right, right * wanted, left * wanted
        return cls(*(part.sum(0).cpu() for part in parts))

    def __add__(self, other: Statistics) -> Statistics:
        """Return those of the rows of both."""
        names = [field.name for field in fields(self)]
        return Statistics(*(getattr(self, name) + getattr(other, name) for name in names))

    def error(self, factor: Tensor, shift: Tensor) -> Tensor:
        """Return squares of what is left with a factor and a shift, shape [outputs]."""
        squares = factor.square() * self.own_squares + shift.square() * self.rows
        crossed = factor * shift * self.own - factor * self.products - shift * self.wanted
        return (squares + self.wanted_squares + 2 * crossed).clamp_min(0)

    def match(self, *, scales: bool = True) -> tuple[Tensor, Tensor]:
        """Return the factor and the shift that give outputs the wanted mean and variance.

        Args:
            scales: Whether there is a factor; else the mean alone is matched.
        """
        mean, wanted_mean = self.own / self.rows, self.wanted / self.rows
        variance = self.own_squares / self.rows - mean.square()
        wanted_variance = self.wanted_squares / self.rows - wanted_mean.square()
        factor = (wanted_variance.clamp_min(0) / variance).sqrt().clamp(1 / _FARTHEST, _FARTHEST)
        known = (variance > 0) & factor.isfinite() & torch.tensor(scales)
        factor = torch.where(known, factor, torch.ones_like(factor))
        return factor, wanted_mean - mean * factor
