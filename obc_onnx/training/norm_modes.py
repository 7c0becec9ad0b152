"""Whether batch norms train with the statistics of a batch, or with those that they store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.ops.norms.batch import batch_norm
from obc_onnx.training.synced_norm import batch_norm_of_all

if TYPE_CHECKING:
    from obc_onnx.training.options import NormsName
    from obc_onnx.twin.module import TorchTwin


class NormModes:
    """The batch norms of a twin, which follow its mode unless they are held.

    With the statistics of a batch, a norm computes something else in training than in the network
    that is written, and what it stores moves whatever the learning rate is. Weights that repair has
    solved for are solved for the stored ones.

    Args:
        twin: With whatever norms it will train with.
    """

    def __init__(self, twin: TorchTwin) -> None:
        self._twin = twin
        norms = (
            node for node in twin.graph.nodes if node.target in {batch_norm, batch_norm_of_all}
        )
        self._usual = [(node, node.kwargs["training"]) for node in norms]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._usual)

    def use(self, mode: NormsName) -> None:
        """Let all norms train with stored statistics, or with those of each batch."""
        for node, usual in self._usual:
            node.update_kwarg("training", False if mode == "stored" else usual)
        self._twin.recompile()
