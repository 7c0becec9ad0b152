"""Milliseconds of a network for any widths, fitted to a profile.

Times of a node grow with what it computes, reads and writes, and never fall with it: so each is
fitted by non-negative least squares, t = b0 + b1 MACs + b2 read + b3 written + b4 weights, with
widths padded to the block that fits it best. A run takes T = alpha + beta sum t, fitted to runs of
the whole network. Where an engine tells no times of nodes, those of one operator share b1 to b4,
which are fitted to runs alone, and all have the same block. Errors count as shares of times, and
more where times are known better. Which of these fits it is says what is left out of each in turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from obc_onnx.latency.designs import keep_of
from obc_onnx.latency.features import N_FEATURES, Features, prunable_axes
from obc_onnx.latency.nodes import LAYOUT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.latency.features import Axis
    from obc_onnx.latency.profile import Profile

    Numbers = NDArray[np.float64]

BLOCKS = (1, 8, 16, 32)
"""Channels that runtimes compute at once; which it is, the times say."""
_SURE = 0.01
"""Standard error below which a time counts as no better known than others."""
_SMALL = 0.1
"""Share of its mean below which a time of a node counts as that: far below it is noise."""
_ITERATIONS = 100
"""Of the solver, for each coefficient."""
_ELSEWHERE = "the runtime itself"
"""What is spent outside of any node."""


@dataclass(frozen=True)
class Term:
    """A part of a run: nodes that are computed as one.

    Attributes:
        nodes: Their first outputs.
        label: How people call them.
        coefficients: Milliseconds per feature, shape [N_FEATURES].
        block: Channels to which widths are padded.
    """

    nodes: tuple[str, ...]
    label: str
    coefficients: Numbers
    block: int


@dataclass(frozen=True)
class Predictor:
    """Predicts milliseconds.

    Attributes:
        alpha: Milliseconds that no width changes.
        terms: The parts of a run.
        blocked: Axes whose widths are padded.
        round_to: Of how many channels the widths were a multiple that it was fitted to.
        profile_sha256: Of the profile.
        errors: For each design, how far the prediction is off that was fitted without it, as a
            share of its time.
    """

    alpha: float
    terms: tuple[Term, ...]
    blocked: frozenset[Axis]
    round_to: int
    profile_sha256: str
    errors: tuple[float, ...] = ()

    def on(self, coupling: Coupling) -> Forecast:
        """Predict for a network: the one that was profiled, or what was cut from it."""
        return Forecast(self, coupling)

    @property
    def error(self) -> float:
        """The median error of designs that were left out."""
        return float(np.median(self.errors))


class Forecast:
    """Predicts milliseconds of one network."""

    def __init__(self, predictor: Predictor, coupling: Coupling) -> None:
        self._predictor = predictor
        self._features = {b: Features(coupling, predictor.blocked, b) for b in BLOCKS}

    def ms(self, keep: Keep) -> float:
        """Return the milliseconds of a run with the units that stay."""
        return sum(ms for ms, _ in self.parts(keep))

    def parts(self, keep: Keep) -> list[tuple[float, str]]:
        """List the milliseconds of each part of a run, and what it is."""
        found = [(self._term_ms(term, keep), term.label) for term in self._predictor.terms]
        return [*found, (self._predictor.alpha, _ELSEWHERE)]

    def around(self, dim: Dim, keep: Keep) -> float:
        """Return the milliseconds of the parts that a dim runs through."""
        return sum(self._term_ms(term, keep) for term in self._by_dim.get(dim, ()))

    def block(self, dim: Dim) -> int:
        """Return the channels that have to go along a dim until each of its parts is faster."""
        return max((term.block for term in self._by_dim.get(dim, ())), default=1)

    def _term_ms(self, term: Term, keep: Keep) -> float:
        return float(self._features[term.block].of(term.nodes, keep) @ term.coefficients)

    @cached_property
    def _by_dim(self) -> dict[Dim, list[Term]]:
        table: dict[Dim, list[Term]] = {}
        for term in self._predictor.terms:
            of = self._features[term.block]
            for dim in dict.fromkeys(dim for key in term.nodes for dim in of.dims(key)):
                table.setdefault(dim, []).append(term)
        return table


def fit(coupling: Coupling, profile: Profile) -> Predictor:
    """Fit what predicts best to a profile.

    Args:
        coupling: Of the model that was profiled.
        profile: Its times.
    Raises:
        RequestError: The profile is of another model.
    """
    profile.check(coupling)
    data = _Data(coupling, profile)
    ways: list[_Way] = [_ByOperator(data, block) for block in BLOCKS]
    if all(timing.layers for timing in profile.timings):
        ways.append(_ByLayer(data))
    found = [_predictor(data, way) for way in ways]
    weights = 1 / data.spreads[1:]
    return min(found, key=lambda one: float(np.average(one.errors, weights=weights)))


class _Data:
    """What a profile says of a network.

    Attributes:
        keeps: The units of each design.
        times: Its milliseconds, shape [designs].
        spreads: Their standard errors as shares of them.
    """

    def __init__(self, coupling: Coupling, profile: Profile) -> None:
        self.coupling, self.timings, self._profile = coupling, profile.timings, profile
        self.blocked = prunable_axes(coupling)
        self.keeps = [keep_of(coupling, timing.widths) for timing in profile.timings]
        self.times = np.array([profile.whole_ms * timing.ratio for timing in profile.timings])
        self.spreads = np.hypot(_SURE, [timing.spread for timing in profile.timings])
        self._features = {b: Features(coupling, self.blocked, b) for b in BLOCKS}

    def predictor(self, alpha: float, terms: tuple[Term, ...]) -> Predictor:
        """Return what was fitted as what predicts."""
        of = self._profile
        return Predictor(alpha, terms, self.blocked, of.round_to, of.sha256)

    def table(self, keys: Sequence[str], block: int) -> Numbers:
        """Return the features of some nodes in each design, shape [designs, N_FEATURES]."""
        return np.stack([self._features[block].of(keys, keep) for keep in self.keeps])

    @cached_property
    def labels(self) -> dict[str, str]:
        """How people call nodes."""
        return {node.key: node.label for node in self.coupling.graph.nodes}


def _predictor(data: _Data, way: _Way) -> Predictor:
    """Fit to all designs, and for each of the errors to all but one."""
    everything = np.arange(len(data.times))
    errors = []
    for place in everything[1:]:  # the whole model is always known
        alpha, terms = way.fitted(everything[everything != place])
        forecast = data.predictor(alpha, terms).on(data.coupling)
        errors.append(abs(forecast.ms(data.keeps[place]) / data.times[place] - 1))
    return replace(data.predictor(*way.fitted(everything)), errors=tuple(errors))


class _Way(ABC):
    """A way to fit."""

    def __init__(self, data: _Data) -> None:
        self._data = data

    @abstractmethod
    def fitted(self, places: NDArray[np.int64]) -> tuple[float, tuple[Term, ...]]:
        """Return alpha and the terms, from some of the designs alone."""


class _Layer(NamedTuple):
    """A layer in all designs.

    Attributes:
        nodes: Those that it computes, by their first outputs.
        label: How people call it.
        times: Milliseconds in each design, shape [designs].
        tables: Features in each design, for each block.
    """

    nodes: tuple[str, ...]
    label: str
    times: Numbers
    tables: dict[int, Numbers]


class _ByLayer(_Way):
    """Fits each layer that the engine tells of, and then runs to their sum."""

    def fitted(self, places: NDArray[np.int64]) -> tuple[float, tuple[Term, ...]]:
        """Fit layers one by one, each with the block that suits it best."""
        found = []
        summed = np.zeros(len(self._data.times))
        spreads, times = self._data.spreads[places], self._data.times[places]
        for layer in self._layers:
            own = layer.times[places]
            if not own.any():
                continue
            scale = np.maximum(own, _SMALL * own.mean()) * spreads
            fits = {b: _non_negative(t[places], own, scale) for b, t in layer.tables.items()}
            block = min(fits, key=lambda b: fits[b].residual)
            found.append((layer, fits[block].coefficients, block))
            summed += layer.tables[block] @ fits[block].coefficients
        sides = np.stack([np.ones(len(places)), summed[places]], axis=1)
        alpha, beta = _non_negative(sides, times, times * spreads).coefficients
        terms = (Term(one.nodes, one.label, beta * own, block) for one, own, block in found)
        return float(alpha), tuple(terms)

    @cached_property
    def _layers(self) -> list[_Layer]:
        """Bring together what designs have in common: layers of the same costliest node."""
        timings, of = self._data.timings, self._data.coupling
        macs = {node.key: of.node_macs(node, {}) for node in of.graph.nodes}
        times: dict[str, Numbers] = {}
        nodes: dict[str, dict[str, None]] = {}
        for place, timing in enumerate(timings):
            for layer in timing.layers:
                own = [key for key in layer.nodes if key in macs]
                key = max(own, key=macs.__getitem__, default="")
                times.setdefault(key, np.zeros(len(timings)))[place] += layer.ms
                nodes.setdefault(key, {}).update(dict.fromkeys(own))
        found = []
        for key, own_times in times.items():
            members = tuple(nodes[key] if key else macs)
            label = self._data.labels.get(key, LAYOUT)
            tables = {block: self._data.table(members, block) for block in BLOCKS}
            found.append(_Layer(members, label, own_times, tables))
        return found


class _ByOperator(_Way):
    """Fits runs of the whole network, with the same coefficients for all nodes of an operator."""

    def __init__(self, data: _Data, block: int) -> None:
        super().__init__(data)
        self._block = block
        self._kinds: dict[str, list[str]] = {}
        for node in data.coupling.graph.nodes:
            self._kinds.setdefault(node.op_type, []).append(node.key)
        # the first feature counts runs, and that is alpha's
        tables = [data.table(keys, block)[:, 1:] for keys in self._kinds.values()]
        self._columns = np.concatenate([np.ones((len(data.times), 1)), *tables], axis=1)

    def fitted(self, places: NDArray[np.int64]) -> tuple[float, tuple[Term, ...]]:
        """Fit all operators at once."""
        times, spreads = self._data.times[places], self._data.spreads[places]
        alpha, *found = _non_negative(self._columns[places], times, times * spreads).coefficients
        shared = np.reshape(found, (len(self._kinds), N_FEATURES - 1))
        terms = [
            Term((key,), self._data.labels[key], np.array([0.0, *coefficients]), self._block)
            for coefficients, keys in zip(shared, self._kinds.values(), strict=True)
            if coefficients.any()
            for key in keys
        ]
        return float(alpha), tuple(terms)


class _Solution(NamedTuple):
    """The best coefficients, and the root of the sum of squares that they leave."""

    coefficients: Numbers
    residual: float


def _non_negative(table: Numbers, times: Numbers, scale: Numbers) -> _Solution:
    """Minimise the squares of errors by a scale, with coefficients none of which is below 0."""
    from scipy.optimize import nnls

    largest = np.abs(table).max(axis=0)
    sizes = np.where(largest > 0, largest, 1.0)
    rows = table / sizes / scale[:, None]
    found, residual = nnls(rows, times / scale, maxiter=_ITERATIONS * table.shape[1])
    return _Solution(found / sizes, float(residual))
