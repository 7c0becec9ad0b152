"""A cut network that learns, and how far it is from the original, inside and at the outputs.

    mean over borders of D(F, F_dense[kept]) + mean over outputs of D(z, z_dense)

D is `Compared.mse`, log(1 + share), where a squared difference is a share of the variance in the
original: at a border of the variance of all that stays of it, at an output of that of each channel,
with the mean over channels. Inside, channels that hardly move hardly matter: docs/recovery.md has
what is lost where all of them count alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.graph.node import is_float
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.learning.compared import Compared
from obc_onnx.measuring.padding import real_of
from obc_onnx.measuring.scales import inner_port, scales_of
from obc_onnx.recover.targets import take
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.lockstep import name_of
from obc_onnx.twin.probes import also_return
from obc_onnx.twin.tensors import as_inputs, lay_channels_last, wide

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.coupling.model import Coupling, Keep
    from obc_onnx.graph.model import Graph
    from obc_onnx.recover.borders import Border
    from obc_onnx.samples.samples import Samples

_CACHE_BYTES = 2**29
"""Inputs, and what the original gives for them, are kept for as many runs as fit into this."""
_SCALED = 256
"""Samples that deviations are measured on, at most."""


class Matching:
    """The distance of a cut network from its original.

    Both stay in evaluation mode: norms use what they store, and dropout passes all on.

    Args:
        coupling: Of the original.
        keep: What stays.
        pruned: The cut graph.
        borders: Where both are compared, besides outputs.
        samples: To train on.
        runs: Which of them each run takes; all of them as many.
        device: Where both run.

    Attributes:
        student: The cut network.
        original: It is run once on the samples of each run, as far as there is room for what it
            gives.
    """

    def __init__(
        self,
        coupling: Coupling,
        keep: Keep,
        pruned: Graph,
        borders: Sequence[Border],
        samples: Samples,
        runs: Sequence[NDArray[np.int64]],
        device: str = "cpu",
    ) -> None:
        self._coupling, self._samples, self._runs = coupling, samples, runs
        self._device = torch.device(device)
        self._seen: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self._room = _CACHE_BYTES
        self.original = derived_twin(coupling.graph, coupling).requires_grad_(False)  # noqa: FBT003 - torch's own
        self.student = EquivalentTwin(coupling, keep, pruned, recombine=False)
        twins = self.original, self.student.twin
        given = set.intersection(*({name_of(node) for node in twin.graph.nodes} for twin in twins))
        self._kept = {border.name: border.kept for border in borders if border.name in given}
        self._compared = self._measure(len(runs[0]))
        for twin in twins:
            also_return(twin, list(self._kept))
        self.original.to(self._device)
        self.student.to(self._device).eval()
        if self._device.type == "cpu":
            for network in (self.original, self.student):
                lay_channels_last(network)
        outputs = [port.name for port in coupling.graph.outputs]
        self._names = [*outputs, *self._kept]

    def _measure(self, size: int) -> dict[str, Compared]:
        """Measure how far each channel of outputs and borders goes in the original."""
        graph = self._coupling.graph
        types = ElementTypes(graph)
        inner = [inner_port(self._coupling, name, types[name]) for name in self._kept]
        ports = [port for port in (*graph.outputs, *inner) if is_float(port.dtype)]
        session = Session(graph, outputs=[port.name for port in ports])
        some = self._samples.part(slice(0, max(_SCALED // size, 1) * size))
        scales = scales_of(self._coupling, ports, some, session.run, size)
        return {
            scale.name: Compared(scale.as_one(self._kept[scale.name]))
            if scale.name in self._kept
            else Compared(scale)
            for scale in scales
        }

    def loss(self, number: int) -> Tensor:
        """Return the distance on the samples of a run, a scalar.

        It requires no gradient where no weight that learns is in front of anything compared.

        Args:
            number: Of the run.
        """
        which = self._runs[number]
        real = real_of(self._coupling, self._samples, which)
        feed, targets = self._given(number)
        values = zip(self._names, self.student(*feed), targets, strict=True)
        outside: list[Tensor] = []
        inside: list[Tensor] = []
        for name, own, wanted in values:
            if own.requires_grad and own.shape == wanted.shape:
                distance = self._compared[name].mse(wide(own), wide(wanted), real(name))
                (inside if name in self._kept else outside).append(distance)
        means = [torch.stack(terms).mean() for terms in (outside, inside) if terms]
        return torch.stack(means).sum() if means else torch.zeros(())

    @torch.no_grad()
    def _given(self, number: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs of a run, and what the original gives, cut to what stays."""
        if number in self._seen:
            return self._seen[number]
        which = self._runs[number]
        feed = as_inputs(self._coupling.graph.inputs, self._samples.feed(which), self._device)
        values = zip(self._names, self.original(*feed), strict=True)
        targets = [take(value, self._kept.get(name, {})) for name, value in values]
        n_bytes = sum(value.nbytes for value in (*feed, *targets))
        if n_bytes <= self._room:
            self._seen[number] = feed, targets
            self._room -= n_bytes
        return feed, targets
