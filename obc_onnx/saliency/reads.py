"""What readers of units are given, summed over all samples; forward passes only."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from obc_onnx.processes import add_up
from obc_onnx.saliency.members import roles_of
from obc_onnx.saliency.probes import calls_of, insert, masked_twin
from obc_onnx.saliency.sweep import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, fx

    from obc_onnx.coupling import Keep
    from obc_onnx.ops.context import Role, Tap
    from obc_onnx.saliency.criterion import Scene
    from obc_onnx.saliency.probes import Place


class Watch(nn.Module):
    """An identity that adds numbers of what it sees to a total, in double.

    Args:
        shape: Of the total.
    """

    total: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(shape, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Add the numbers of one pass."""
        self.total += self.numbers(x.detach())
        return x

    @abstractmethod
    def numbers(self, x: Tensor) -> Tensor:
        """Return what is added for one tensor, in the shape of the total."""


def place_of(role: Role) -> Place | None:
    """Return where a role reads data, None where it does not."""
    if role.kind != "reads" or role.tap is None or role.tap.at != "input":
        return None
    return role.node.key, "input", role.tap.slot


def watch_reads(
    scene: Scene, keep: Keep, make: Callable[[fx.Node, Role, Tap], Watch]
) -> dict[Place, NDArray[np.float64]]:
    """Run every sample forward once, and watch what readers are given.

    Args:
        scene: The samples, and which roles count.
        keep: The units that are left.
        make: Makes the watch of a role that reads: of the twin's call, the role and its tap.
    Returns:
        The total of each place, over all processes.
    """
    graph, twin = masked_twin(scene, keep)
    roles = [role for group in scene.coupling.groups for role in roles_of(group, scene.scoring)]
    readers = {place: role for role in roles if (place := place_of(role)) is not None}
    calls = calls_of(twin)
    watches = {
        place: make(calls[place[0]], role, role.tap)
        for place, role in readers.items()
        if role.tap is not None
    }
    insert(twin, watches)
    twin.to(scene.device)

    def run(inputs: list[Tensor], which: slice) -> None:  # noqa: ARG001
        with torch.no_grad():
            twin(*inputs)

    for _ in Sweep(scene, graph, run).rows():
        pass
    totals = add_up({place: watch.total for place, watch in watches.items()})
    return {place: total.cpu().numpy() for place, total in totals.items()}
