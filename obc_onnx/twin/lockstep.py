"""A network that runs node by node over all chunks of the samples, beside another one.

What a repair of one layer changes, all later layers have to see. So each node runs once, on all
chunks, and its values stay until the last node that reads them has run. Memory does not depend on
how many samples there are, since `affordable` says how many are taken.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from obc_onnx.twin.probes import calls_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from obc_onnx.twin.module import TorchTwin

    Shape = tuple[int, ...]

_BYTES = 2**30
"""What the values of one network may take at a time."""


class Lockstep:
    """The run of a twin, up to some node.

    Args:
        twin: In evaluation mode; parameters may be changed in place before the node that reads
            them has run.
        chunks: The inputs of each chunk, in order.
        held: Values, by ONNX name, that stay until `release`; one may be named several times.

    Attributes:
        places: Where each ONNX value is computed, inputs and initializers included.
        calls: Where the call of each ONNX node is, by its key. What the call gives is the value of
            the node only where nothing is made of it, and where there is one output.
    """

    def __init__(
        self, twin: TorchTwin, chunks: list[list[Tensor]], held: Iterable[str] = ()
    ) -> None:
        self._nodes = list(twin.graph.nodes)
        self._runs = [fx.Interpreter(twin) for _ in chunks]
        for run, inputs in zip(self._runs, chunks, strict=True):
            run.args_iter = iter(inputs)
        self.places = {name_of(node): i for i, node in enumerate(self._nodes) if name_of(node)}
        numbers = {node: i for i, node in enumerate(self._nodes)}
        self.calls = {key: numbers[call] for key, call in calls_of(twin).items()}
        self._held = Counter(held)
        self._last = _last_uses(self._nodes)
        self._leave: dict[int, list[fx.Node]] = {}
        for node, i in self._last.items():
            self._leave.setdefault(i, []).append(node)
        self._done = 0

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return len(self._runs)

    @torch.no_grad()
    def advance(self, stop: int) -> None:
        """Run all nodes before place `stop` that have not run."""
        for i in range(self._done, stop):
            left = [node for node in self._leave.get(i, ()) if not self._held[name_of(node)]]
            for run in self._runs:
                run.env[self._nodes[i]] = run.run_node(self._nodes[i])
                for node in left:
                    del run.env[node]
        self._done = max(self._done, stop)

    def fork(self) -> Lockstep:
        """Return a run that goes on from here by itself: what it computes is not seen here."""
        other, runs = copy.copy(self), [copy.copy(run) for run in self._runs]
        for run in runs:
            run.env = dict(run.env)
        vars(other).update(_held=Counter(self._held), _runs=runs)
        return other

    def values(self, name: str) -> list[Tensor]:
        """Return what each chunk has for an ONNX value whose node has run."""
        node = self._nodes[self.places[name]]
        return [run.env[node] for run in self._runs]

    def arguments(self, name: str) -> list[tuple[Any, ...]]:
        """Return what each chunk gives the call of an ONNX node; all before it has run."""
        args = self.call(name).args
        return [fx.node.map_arg(args, run.env.__getitem__) for run in self._runs]

    @torch.no_grad()
    def preview(self, name: str) -> list[Tensor]:
        """Return what an ONNX value would be now, which is not kept; all before it has run."""
        node = self._nodes[self.places[name]]
        return [run.run_node(node) for run in self._runs]

    def replace(self, name: str, slot: int, values: Iterable[Tensor]) -> None:
        """Put other values in the place of an argument of an ONNX node that has not run."""
        node = self.call(name).args[slot]
        assert isinstance(node, fx.Node)
        for run, value in zip(self._runs, values, strict=True):
            run.env[node] = value

    def call(self, name: str) -> fx.Node:
        """Return the call of an ONNX node."""
        node: fx.Node = self._nodes[self.calls[name]]
        return node

    def release(self, name: str) -> None:
        """Let go of a value that was held, once for each time that it was."""
        self._held[name] -= 1
        node = self._nodes[self.places[name]]
        if not self._held[name] and self._last.get(node, 0) < self._done:
            for run in self._runs:
                del run.env[node]


def name_of(node: fx.Node) -> str:
    """Return the ONNX name of what a node gives, empty where it has none."""
    return str(node.meta.get("value", ""))


def affordable(twin: TorchTwin, shapes: Mapping[str, Shape], batch: int, wanted: int) -> int:
    """Say how many samples' values fit into memory, at the place where most are alive.

    Args:
        twin: The larger network.
        shapes: By ONNX name, for `batch` samples.
        batch: How many samples the shapes are for.
        wanted: No more than this are returned.
    """
    nodes = list(twin.graph.nodes)
    last = _last_uses(nodes)
    sizes = {
        node: math.prod(shapes[name_of(node)]) if name_of(node) in shapes else 0 for node in nodes
    }
    alive = most = 0
    leave: dict[int, int] = {}
    for i, node in enumerate(nodes):
        alive += sizes[node]
        most = max(most, alive)
        if node in last:
            leave[last[node]] = leave.get(last[node], 0) + sizes[node]
        alive -= leave.pop(i, 0)
    per_sample = max(most * torch.float32.itemsize / batch, 1.0)
    return max(min(wanted, int(_BYTES / per_sample)), 1)


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """Return for each node that others read the place of the last one."""
    last: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        last |= dict.fromkeys(node.all_input_nodes, i)
    return last
