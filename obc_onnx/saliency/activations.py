"""Criteria that look at what readers of a unit are given; forward passes only."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch

from obc_onnx.axes.expressions import leaves
from obc_onnx.coupling.members import Operands, along_axis, by_unit, left_of, member_of
from obc_onnx.saliency.criterion import OF_MEMBERS, OF_SAMPLES, Criterion
from obc_onnx.saliency.reads import Watch, read_of, watch_reads
from obc_onnx.saliency.reduction import reduced, roles_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.members import Member
    from obc_onnx.coupling.model import Keep
    from obc_onnx.saliency.criterion import Saliency, Scene

    Numbers = NDArray[np.float64]

_SUM, _SQUARES, _NONZERO, _COUNT = range(4)
_KINDS = 4


class _Read(Criterion):
    """The base: numbers of the tensors that units are read from."""

    needs_data = True
    uses = OF_SAMPLES | OF_MEMBERS

    def score(self, scene: Scene, keep: Keep) -> Saliency:
        """Run every sample forward once, and score each reader of each unit."""
        coupling, arrays = scene.coupling, Operands(scene.coupling, keep)
        seen: dict[tuple[Member, Dim], Numbers] = {}
        shapes = coupling.shapes
        moments = watch_reads(
            scene,
            keep,
            lambda _, role, tap: _Moments(
                tap.axis,
                shapes[role.node.inputs[tap.slot]],
                left_of(coupling, keep, role.node.inputs[tap.slot]),
            ),
        )
        for group in coupling.groups:
            for role in roles_of(group, scene.scoring):
                read, key = read_of(role), (member_of(role), group.dim)
                if read is None or read not in moments or role.tap is None:
                    continue
                expr = coupling.axes[role.node.inputs[role.tap.slot]][role.tap.axis]
                own = np.stack([by_unit(expr, group.dim, m) for m in moments[read]])
                seen[key] = seen[key] + own if key in seen else own  # of all uses of a weight
        vectors = {}
        for ((name, axis), dim), own in seen.items():
            weights = np.zeros(dim.size)
            if name in arrays and dim in leaves(coupling.axes[name][axis]):
                sums = along_axis(np.abs(arrays[name]), axis)
                weights = by_unit(coupling.axes[name][axis], dim, sums)
            vectors[(name, axis), dim] = self.judge(own, weights)
        return reduced(coupling, keep, scene.scoring, vectors)

    @abstractmethod
    def judge(self, moments: Numbers, weights: Numbers) -> Numbers:
        """Score units for one reader.

        Args:
            moments: Shape [4, n_units]: sum, sum of squares, how many are not 0, how many.
            weights: Sum of the absolute weights that read each, shape [n_units].
        """


class ActivationNorm(_Read):
    """Norm of what is read, times the absolute weights that read it.

    Source: Sun et al., A Simple and Effective Pruning Approach for Large Language Models (Wanda),
    arXiv 2306.11695, equation 1, summed over the weights that go with a unit.
    """

    name = "activation"

    def judge(self, moments: Numbers, weights: Numbers) -> Numbers:
        """Multiply."""
        return np.asarray(np.sqrt(moments[_SQUARES]) * weights)


class Variance(_Read):
    """Variance of what is read: a unit that hardly varies is replaced by its mean.

    Source: Berisha et al., Variance-Based Pruning for Accelerating and Compressing Trained
    Networks, arXiv 2507.12988.
    """

    name = "variance"

    def judge(self, moments: Numbers, weights: Numbers) -> Numbers:  # noqa: ARG002
        """Compute the variance over samples and positions."""
        count = np.maximum(moments[_COUNT], 1)  # of a unit that was removed it is 0
        mean = moments[_SUM] / count
        return np.asarray(np.maximum(moments[_SQUARES] / count - mean**2, 0))


class Apoz(_Read):
    """Share of what is read that is not 0.

    Source: Hu et al., Network Trimming, arXiv 1607.03250: one minus its average percentage of
    zeros.
    """

    name = "apoz"

    def judge(self, moments: Numbers, weights: Numbers) -> Numbers:  # noqa: ARG002
        """Count."""
        return np.asarray(moments[_NONZERO] / np.maximum(moments[_COUNT], 1))


class _Moments(Watch):
    """Sums, sums of squares, how many are not 0, and how many, for each position of an axis."""

    def __init__(self, axis: int, shape: tuple[int, ...], left: NDArray[np.bool_] | None) -> None:
        super().__init__((_KINDS, shape[axis]), left)
        self._axis = axis

    def numbers(self, x: Tensor, counted: Tensor | None) -> Tensor:
        """Sum over all other axes."""
        flat = self._flat(x).double()
        count = torch.full_like(flat[0], len(flat))
        if counted is not None:
            count = self._flat(counted.expand_as(x)).sum(0)
        return torch.stack([flat.sum(0), flat.square().sum(0), (flat != 0).sum(0), count])

    def _flat(self, x: Tensor) -> Tensor:
        return x.movedim(self._axis, -1).reshape(-1, x.shape[self._axis])
