"""A cut network that learns, and how far it is from the original, inside and at the outputs.

    mean over borders of D(F, F_dense[kept]) + mean over outputs of D(z, z_dense)

D is `Compared.mse`, log(1 + share), where a squared difference is a share of the variance in the
original: at a border of the variance of all that stays of it, at an output of that of each channel,
with the mean over channels. Inside, channels that hardly move hardly matter: docs/recovery.md has
what is lost where all of them count alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from obc_onnx.equivalent.network import EquivalentTwin
from obc_onnx.graph.node import is_float
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.measuring.padding import real_of
from obc_onnx.measuring.scales import inner_port, scales_of
from obc_onnx.recover.targets import select_kept
from obc_onnx.twin.build import derived_twin
from obc_onnx.twin.compared import Compared
from obc_onnx.twin.lockstep import name_of
from obc_onnx.twin.probes import also_return
from obc_onnx.twin.tensors import as_inputs, lay_channels_last, wide

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from obc_onnx.recover.borders import Border
    from obc_onnx.samples.augmentation import Augmentation
    from obc_onnx.samples.samples import Samples
    from obc_onnx.surgery.cut import Cut

Kept = TypeVar("Kept")
_CACHE_BYTES = 2**28
"""Samples are kept for as many runs as fit into this, and so is what the original gives."""
_SCALED = 256
"""Samples that deviations are measured on, at most."""


class Matching:
    """The distance of a cut network from its original.

    Both stay in evaluation mode: norms use what they store, and dropout passes all on.

    Args:
        cut: The cut graph.
        borders: Where both are compared, besides outputs.
        samples: To train on.
        runs: Which of them each run takes; all of them as many.
        changes: What is done to pictures, in another way each time; None where they stay as
            they are.
        seed: Of that.
        device: Where both run.

    Attributes:
        student: The cut network.
        original: It is run once on the samples of each run, as far as there is room for what it
            gives.
    """

    def __init__(
        self,
        cut: Cut,
        borders: Sequence[Border],
        samples: Samples,
        runs: Sequence[NDArray[np.int64]],
        changes: Augmentation | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        coupling = cut.original
        self._coupling, self._samples, self._runs = coupling, samples, runs
        self._changes, self._seed = changes, seed
        self._device = torch.device(device)
        self._rows: _Cache[dict[str, NDArray[Any]]] = _Cache()
        self._targets: _Cache[list[Tensor]] = _Cache()
        self.original = derived_twin(coupling.graph, coupling, frozen=True)
        self.student = EquivalentTwin(cut, recombine=False)
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

    def loss(self, number: int, turn: int = 0) -> Tensor:
        """Return the distance on the samples of a run, a scalar.

        It requires no gradient where no weight that learns is in front of anything compared.

        Args:
            number: Of the run.
            turn: How often samples were seen before, which decides how pictures are changed.
        """
        real = real_of(self._coupling, self._samples, self._runs[number])
        feed, targets = self._given(number, turn)
        values = zip(self._names, self.student(*feed), targets, strict=True)
        outside: list[Tensor] = []
        inside: list[Tensor] = []
        for name, own, wanted in values:
            if own.requires_grad and own.shape == wanted.shape:
                distance = self._compared[name].mse(wide(own), wide(wanted), real(name))
                (inside if name in self._kept else outside).append(distance)
        means = [torch.stack(terms).mean() for terms in (outside, inside) if terms]
        return torch.stack(means).sum() if means else torch.zeros(())

    def _given(self, number: int, turn: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs of a run, and what the original gives, cut to what stays."""
        which = self._runs[number]
        rows = self._rows.get(number, lambda: self._samples.rows(which), _bytes_of_rows)
        if self._changes is not None:
            rows = self._changes.apply(rows, which, turn, self._seed)
        ports, laid_out = self._coupling.graph.inputs, self._samples.laid_out(rows)
        feed = as_inputs(ports, laid_out, self._device)
        if self._changes is not None:
            return feed, self._of_original(feed)
        return feed, self._targets.get(number, lambda: self._of_original(feed), _bytes_of_values)

    @torch.no_grad()
    def _of_original(self, feed: list[Tensor]) -> list[Tensor]:
        values = zip(self._names, self.original(*feed), strict=True)
        return [select_kept(value, self._kept.get(name, {})) for name, value in values]


class _Cache(Generic[Kept]):
    """What was made for runs, as far as there is room for it."""

    def __init__(self) -> None:
        self._kept: dict[int, Kept] = {}
        self._room = _CACHE_BYTES

    def get(self, number: int, make: Callable[[], Kept], size: Callable[[Kept], int]) -> Kept:
        """Return what there is for a run, or make it.

        Args:
            number: Of the run.
            make: Makes it.
            size: How many bytes it takes.
        """
        if number in self._kept:
            return self._kept[number]
        made = make()
        if size(made) <= self._room:
            self._kept[number] = made
            self._room -= size(made)
        return made


def _bytes_of_rows(rows: dict[str, NDArray[Any]]) -> int:
    return sum(array.nbytes for array in rows.values())


def _bytes_of_values(values: list[Tensor]) -> int:
    return sum(value.nbytes for value in values)
