"""Repair of products of two values, such as attention scores Q K^T whose units were cut.

What the units that are left give of a score is Q M K^T with M the identity. The M that brings it
nearest to the original's is found by least squares, one for each head, and goes into the outputs of
the layer that Q comes from.

Where a softmax follows, what counts is the divergence of its outputs p, which to second order is
the variance of the scores' error under p, query by query. Then the second moments of vec(M) are the
sum of q q^T (x) Cov_p(k) over queries, else that of Q^T Q (x) K^T K over samples.

Source: CORP fits M to scores whose factors are pooled over samples; the weights of the softmax, and
the moments without pooling, are this project's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from obc_onnx.axes.expressions import mask
from obc_onnx.ops.base.effect import Effect
from obc_onnx.recover.least_squares import Moments, solve
from obc_onnx.recover.methods import LayerFit
from obc_onnx.recover.origins import Origins
from obc_onnx.recover.targets import kept_along
from obc_onnx.twin.probes import calls_of
from obc_onnx.twin.tensors import parameter_name, wide

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.recover.layers import Layer
    from obc_onnx.recover.origins import Origin
    from obc_onnx.surgery.cut import Cut
    from obc_onnx.twin.codes import Codes
    from obc_onnx.twin.module import TorchTwin

_MOST_UNITS = 48
"""Of a head that are left: moments have the fourth power of it, solving the sixth."""
_MATRIX = 2
_BETWEEN = Effect.ADDS | Effect.SUBTRACTS | Effect.MULTIPLIES | Effect.CHOOSES | Effect.IN_ORDER
"""What may stand between scores and their softmax, as well as a division of them."""
_QUERIES = 16384
"""Of each head that are looked at where a softmax follows, one of each matrix at least."""


@dataclass(frozen=True)
class MatrixProduct:
    """A product of two values whose common axis was cut, one of which a layer gives.

    Attributes:
        key: Of its node.
        slot: 0 where the layer gives the left factor, 1 the right one.
        layer: It; those of its outputs that are in `columns` are used in no other way.
        columns: Which outputs make each unit of each head, shape [heads, units].
        head: Of each matrix in the factor, shape of its axes before the last two.
        kept: For each axis of the product that shrinks, which positions stay.
        softmax: The key of the softmax that follows, empty where none does.
    """

    key: str
    slot: int
    layer: Layer
    columns: Tensor
    head: Tensor
    kept: Mapping[int, NDArray[np.int64]]
    softmax: str

    @property
    def values(self) -> list[str]:
        """The original's values that are looked at: the product, and the softmax behind it."""
        return [value for value in (self.key, self.softmax) if value]


def find_products(
    cut: Cut,
    twin: TorchTwin,
    layers: Sequence[Layer],
    inputs: list[Tensor],
) -> list[MatrixProduct]:
    """Find the products of a cut graph that can be repaired through a layer.

    Args:
        cut: The cut graph.
        twin: Of the cut one.
        layers: Whose weights may change.
        inputs: Of one run.
    """
    coupling, keep, graph = cut.coupling, cut.keep, cut.pruned
    products = [node for node in graph.nodes if _is_cut(cut, node)]
    if not products:
        return []
    fit = [v for v in layers if v.own and v.blocks == 1 and v.addend is None]
    run = Origins(twin, graph, fit, coupling.rules)
    run.follow(inputs)
    calls = calls_of(twin)
    found = []
    for node in products:
        factors = calls[node.key].all_input_nodes
        if len(factors) == 1:  # of a value and itself, one cannot change alone
            continue
        for slot, factor in enumerate(factors):
            origin = run.of.get(factor)
            if origin is None or not _used_once(run, origin):
                continue
            heads = _heads(origin, slot)
            if heads is not None:
                kept = kept_along(coupling, keep, node.key)
                softmax = _softmax_of(coupling, graph, node)
                found.append(MatrixProduct(node.key, slot, origin.layer, *heads, kept, softmax))
                break
    return found


def _is_cut(cut: Cut, node: Node) -> bool:
    """Say whether a node multiplies two computed values along an axis that has lost units."""
    multiplies = Effect.MULTIPLIES_MATRICES in cut.coupling.rules.effect(node)
    if not multiplies or set(node.inputs) & cut.pruned.initializers.keys():
        return False
    left, right = (cut.coupling.axes[name] for name in node.inputs)
    matrices = len(left) > _MATRIX and len(right) >= _MATRIX
    return matrices and not mask(left[-1], cut.keep).all()


def _softmax_of(coupling: Coupling, graph: Graph, node: Node) -> str:
    """Follow a product to the softmax over its last axis, past scales, masks and biases."""
    axes, name = coupling.axes[node.key], node.key
    while not graph.escapes(name) and len(graph.consumers.get(name, ())) == 1:
        node, slot = graph.consumers[name][0]
        rule, effect = coupling.rules.find(node), coupling.rules.effect(node)
        if rule is None or coupling.axes.get(node.key) != axes:
            return ""
        if Effect.SHARES in effect:
            along = rule.normalised_axis(node, len(axes))
            return node.key if along in (-1, len(axes) - 1) else ""
        if not (effect & _BETWEEN or (Effect.DIVIDES in effect and slot == 0)):
            return ""
        name = node.key
    return ""


def _used_once(run: Origins, origin: Origin) -> bool:
    """Say whether one computation alone uses the outputs that a value is made of."""
    return sum(use.shares(origin) for use in run.uses) == 1


def _heads(origin: Origin, slot: int) -> tuple[Tensor, Tensor] | None:
    """Say which outputs make which unit of which head; None where that differs between rows.

    Args:
        origin: Of a factor.
        slot: Which one it is.
    Returns:
        `columns` and `head` of `MatrixProduct`.
    """
    outputs, places = (v if slot == 0 else v.mT for v in (origin.outputs, origin.places))
    rows = outputs[..., 0, :]
    alike = torch.equal(outputs, rows[..., None, :].expand_as(outputs))
    if not alike or not torch.equal(places, places[..., :1].expand_as(places)):
        return None
    columns, head = torch.unique(rows.reshape(-1, rows.shape[-1]), dim=0, return_inverse=True)
    if len(torch.unique(columns)) != columns.numel() or columns.shape[-1] > _MOST_UNITS:
        return None  # heads that share outputs
    return columns.cpu(), head.reshape(rows.shape[:-1]).cpu()


class Products(NamedTuple):
    """What a product of one chunk is made of, and what it should be.

    Attributes:
        left: Shape [..., queries, units].
        right: Shape [..., units, keys].
        wanted: The original's product, shape [..., queries, keys].
        weights: Of the original's softmax, of the same shape; None where there is none.
    """

    left: Tensor
    right: Tensor
    wanted: Tensor
    weights: Tensor | None

    def counted(self, real: NDArray[np.bool_] | None) -> Products:
        """Leave out padding: 0 in a mask that broadcasts to the product; None has none."""
        if real is None:
            return self
        own = torch.from_numpy(real).to(self.wanted)
        if self.weights is not None:
            return self._replace(weights=self.weights * own)
        if own.shape[-1] == 1:
            return self._replace(left=self.left * own, wanted=self.wanted * own)
        return self._replace(right=self.right * own, wanted=self.wanted * own)

    def of(self, here: Tensor, queries: Tensor | None) -> Products:
        """Return the matrices of one head in one row, and some of their queries."""
        lead = self.wanted.shape[:-2]
        left, right, wanted = (
            wide(value.expand(*lead, *value.shape[-2:])[here])
            for value in (self.left, self.right, self.wanted)
        )
        if self.weights is None:
            return Products(left, right, wanted, None)
        own = slice(None) if queries is None else queries
        # a query that is masked whole has no weights
        weights = wide(self.weights[here]).nan_to_num(0.0)
        return Products(left[:, own], right, wanted[:, own], weights[:, own])


def fit_scores(
    scores: MatrixProduct,
    chunks: Sequence[Products],
    judges: Sequence[bool],
    rng: np.random.Generator,
) -> tuple[Tensor, LayerFit]:
    """Find the matrix of every head.

    Args:
        scores: What is repaired.
        chunks: What it is given and should be.
        judges: Of each chunk, whether it judges; where none does, all do.
        rng: For the choice of queries.
    Returns:
        The matrices, shape [heads, units, units], and what they do.
    """
    heads, units = scores.columns.shape
    start = torch.eye(units, dtype=torch.float64).reshape(1, 1, -1)
    matrices, total, before, after = [], 0.0, 0.0, 0.0
    for number in range(heads):
        sums = []
        for products in chunks:
            here = scores.head.broadcast_to(products.wanted.shape[:-2]) == number
            queries = _queries(products, int(here.sum()) * len(chunks), rng)
            sums.append(_sums(products.of(here, queries)))
        judging = [own for own, judges_it in zip(sums, judges, strict=True) if judges_it]
        known = [own for own, judges_it in zip(sums, judges, strict=True) if not judges_it]
        judge = _moments(judging or known)
        found = solve(_moments(known), judge, start, biased=False)
        matrices.append(found.matrix.reshape(units, units))
        total += float(judge.yy.sum())
        before += found.before
        after += found.after
    scale = total or 1.0
    fit = LayerFit(scores.layer.weight, before / scale, after / scale)
    return torch.stack(matrices), fit


def _queries(products: Products, n_matrices: int, rng: np.random.Generator) -> Tensor | None:
    """Draw which queries of every matrix are looked at; None takes all."""
    there, wanted = products.wanted.shape[-2], max(_QUERIES // max(n_matrices, 1), 1)
    if products.weights is None or there <= wanted:
        return None
    return torch.from_numpy(np.sort(rng.choice(there, wanted, replace=False)))


class _Sums(NamedTuple):
    """What one chunk adds to the moments of the rows vec(q k^T).

    Attributes:
        left: Products of units of the left factor, shape [many, units^2].
        right: As many of the right one, of those that belong to each of them.
        crossed: Rows times wanted scores, shape [units^2].
        square: Of wanted scores.
    """

    left: Tensor
    right: Tensor
    crossed: Tensor
    square: Tensor


def _sums(products: Products) -> _Sums:
    left, right, wanted, weights = products
    keys = right.mT
    if weights is None:
        pairs = left.mT @ left, right @ keys
        crossed, square = left.mT @ wanted @ keys, wanted.double().square().sum()
    else:  # neither sums nor covariances know of what all keys have, which rounding does
        keys = keys - keys.mean(1, keepdim=True)
        wanted = wanted - (weights * wanted).sum(-1, keepdim=True)
        mean = weights @ keys
        second = (weights[..., None] * keys[:, None]).mT @ keys[:, None]
        covariance = second - mean[..., :, None] * mean[..., None, :]
        pairs = left[..., :, None] * left[..., None, :], covariance
        crossed = left.mT @ ((weights * wanted) @ keys)
        square = (weights * wanted.square()).double().sum()
    many = crossed.shape[-1] ** 2
    own, there = (pair.reshape(-1, many) for pair in pairs)
    return _Sums(own, there, crossed.double().sum(0).flatten(), square)


def _moments(parts: Sequence[_Sums]) -> Moments:
    """Add the chunks up; the products of all pairs are made once.

    Both factors are symmetric in their units, so that a half of each tells the rest.
    """
    many = parts[0].left.shape[-1]
    units = math.isqrt(many)
    places = torch.arange(many).reshape(units, units)
    upper, half = torch.unique(torch.minimum(places, places.T), return_inverse=True)
    left, right = (torch.cat([p[i][:, upper] for p in parts]).double() for i in (0, 1))
    crossed, square = sum(p.crossed for p in parts), sum(p.square for p in parts)
    found = Moments(1, 1, many)
    pairs = (left.T @ right)[half[:, None, :, None], half[None, :, None, :]]
    found.add_sums(
        pairs.reshape(1, many, many),
        torch.as_tensor(crossed).reshape(1, many, 1),
        torch.as_tensor(square).reshape(1, 1),
    )
    return found


def put_into_layer(scores: MatrixProduct, matrices: Tensor, codes: Codes) -> None:
    """Let the layer give what the matrices make of its outputs."""
    layer = scores.layer
    weight = codes.twin.get_parameter(parameter_name(layer.weight))
    rows = _recombined(scores, matrices, layer.matrix(weight.detach())[0])
    codes.write(layer.weight, layer.weight_of(rows[None], tuple(weight.shape)))
    if layer.bias is not None:
        bias = codes.twin.get_parameter(parameter_name(layer.bias))
        codes.write(layer.bias, _recombined(scores, matrices, bias.detach()))


def _recombined(scores: MatrixProduct, matrices: Tensor, rows: Tensor) -> Tensor:
    """Recombine what makes the outputs of the layer, along the first axis."""
    rows = rows.double().cpu().clone()
    for columns, matrix in zip(scores.columns, matrices, strict=True):
        rows[columns] = (matrix.T if scores.slot == 0 else matrix) @ rows[columns]
    return rows


def recombine(scores: MatrixProduct, matrices: Tensor, operand: Tensor) -> Tensor:
    """Return what becomes of the factor that the layer gives."""
    own = matrices[scores.head].to(operand)
    return operand @ own if scores.slot == 0 else own @ operand
