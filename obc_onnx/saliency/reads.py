"""What readers of units are given, summed over all samples; forward passes only."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn

from obc_onnx.saliency.reduction import roles_of
from obc_onnx.saliency.sweep import Sweep, masked_twin
from obc_onnx.twin.probes import calls_of, insert
from obc_onnx.twin.processes import add_up

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, fx

    from obc_onnx.coupling.model import Keep
    from obc_onnx.ops.base.context import Role, Tap
    from obc_onnx.saliency.criterion import Scene
    from obc_onnx.twin.probes import Place


Read: TypeAlias = "tuple[Place, int]"
"""Where data is read, and the axis along which the units lie."""


class Watch(nn.Module):
    """An identity that adds numbers of what it sees to a total, in double.

    They are added once a pass has succeeded: one that ran out of memory is made again.

    Args:
        shape: Of the total.
        left: Which positions of a sample are still there, with an axis for the batch, so that it
            broadcasts; None where nothing was removed.

    Attributes:
        real: Which positions of the next pass are no padding, as a mask that broadcasts; None where
            all are.
    """

    total: Tensor
    left: Tensor | None
    real: Tensor | None

    def __init__(self, shape: tuple[int, ...], left: NDArray[np.bool_] | None = None) -> None:
        super().__init__()
        self.register_buffer("left", None if left is None else torch.from_numpy(left))
        self.register_buffer("total", torch.zeros(shape, dtype=torch.float64))
        self.real = None
        self._fresh: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Take the numbers of one pass, in no less than the precision of `x`."""
        with torch.autocast(x.device.type, enabled=False):
            counted = self._counted()
            seen = x.detach() if counted is None else x.detach().where(counted, 0)
            self._fresh.append(self.numbers(seen, counted))
        return x

    def _counted(self) -> Tensor | None:
        """Say which positions are neither removed nor padding; None where all count."""
        if self.real is None or self.left is None:
            return self.left if self.real is None else self.real
        return self.left & self.real

    def forget(self) -> None:
        """Leave out what a pass that failed has taken."""
        self._fresh = []

    def add(self) -> None:
        """Add what a pass has taken."""
        for numbers in self._fresh:
            self.total += numbers
        self.forget()

    @abstractmethod
    def numbers(self, x: Tensor, counted: Tensor | None) -> Tensor:
        """Return what is added for one tensor, in the shape of the total.

        Args:
            x: 0 where nothing counts.
            counted: Which positions count, broadcasts to `x`; None where all do.
        """


def read_of(role: Role) -> Read | None:
    """Return what a role reads, None where it does not."""
    if role.kind != "reads" or role.tap is None or role.tap.at != "input":
        return None
    return (role.node.key, "input", role.tap.slot), role.tap.axis


def watch_reads(
    scene: Scene, keep: Keep, make: Callable[[fx.Node, Role, Tap], Watch]
) -> dict[Read, NDArray[np.float64]]:
    """Run every sample forward once, and watch what readers are given.

    Args:
        scene: The samples, and which roles count.
        keep: The units that are left.
        make: Makes the watch of a role that reads: of the twin's call, the role and its tap.
    Returns:
        The total of everything that is read, over all processes.
    """
    graph, twin = masked_twin(scene, keep)
    roles = [role for group in scene.coupling.groups for role in roles_of(group, scene.scoring)]
    calls = calls_of(twin)
    watches: dict[Read, Watch] = {}
    values: dict[Read, str] = {}
    for role in roles:
        read = read_of(role)
        if read is not None and role.tap is not None and read not in watches:
            watches[read] = make(calls[role.node.key], role, role.tap)
            values[read] = role.node.inputs[role.tap.slot]
    at: dict[Place, list[Watch]] = {}
    for (place, _), watch in watches.items():
        at.setdefault(place, []).append(watch)
    insert(twin, {place: nn.Sequential(*own) for place, own in at.items()})
    twin.to(scene.device)

    def run(inputs: list[Tensor], which: slice) -> None:
        real_of = scene.real_positions(which)
        for read, watch in watches.items():
            real = real_of(values[read])
            watch.real = None if real is None else torch.from_numpy(real).to(scene.device)
            watch.forget()
        with torch.no_grad():
            twin(*inputs)
        for watch in watches.values():
            watch.add()

    for _ in Sweep(scene, graph, run).rows():
        pass
    totals = add_up({read: watch.total for read, watch in watches.items()})
    return {read: total.cpu().numpy() for read, total in totals.items()}
