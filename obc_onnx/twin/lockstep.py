"""A network that runs node by node over all chunks of the samples, beside another one.

What a repair of one layer changes, all later layers have to see. So each node runs once, on all
chunks, and its values stay until the last node that reads them has run. What is made of weights
alone, such as dequantised ones, is made where it is read, wherever the file has it.

Memory does not depend on how many samples there are, since `affordable` says how many may run from
which place on; others join where values have become smaller.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from obc_onnx.twin.probes import calls_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

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
        done: The place in front of which all nodes have run.
    """

    def __init__(
        self, twin: TorchTwin, chunks: Iterable[list[Tensor]] = (), held: Iterable[str] = ()
    ) -> None:
        self._twin, self._nodes = twin, list(twin.graph.nodes)
        self.places = {name_of(node): i for i, node in enumerate(self._nodes) if name_of(node)}
        numbers = {node: i for i, node in enumerate(self._nodes)}
        self._constants = _constants_of(self._nodes)
        self.calls = {key: numbers[call] for key, call in calls_of(twin).items()}
        self._held = Counter(held)
        self._last = _last_uses(self._nodes)
        self._leave: dict[int, list[fx.Node]] = {}
        for node, i in self._last.items():
            if node in self._constants:
                continue
            self._leave.setdefault(i, []).append(node)
        self.done = 0
        self._runs: list[fx.Interpreter] = []
        for inputs in chunks:
            self.join(inputs)

    @torch.no_grad()
    def join(self, inputs: list[Tensor]) -> None:
        """Let one more chunk run up to where the others are, with the parameters of now."""
        run = fx.Interpreter(self._twin)
        run.env = _Values(run, self._constants)
        run.args_iter = iter(inputs)
        self._runs.append(run)
        for i in range(self.done):
            self._run_node(run, i)

    @torch.no_grad()
    def advance(self, stop: int) -> None:
        """Run all nodes before place `stop` that have not run."""
        for i in range(self.done, stop):
            for run in self._runs:
                self._run_node(run, i)
        self.done = max(self.done, stop)

    def _run_node(self, run: fx.Interpreter, i: int) -> None:
        """Run the node at a place on one chunk, and drop what nobody reads any more."""
        if self._nodes[i] not in self._constants:
            run.env[self._nodes[i]] = run.run_node(self._nodes[i])
        for node in self._leave.get(i, ()):
            if not self._held[name_of(node)]:
                del run.env[node]

    def fork(self) -> Lockstep:
        """Return a run that goes on from here by itself: what it computes is not seen here."""
        other, runs = copy.copy(self), [self._copied(run) for run in self._runs]
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
    def preview(self, name: str) -> Iterator[Tensor]:
        """Return what an ONNX value would be now, chunk by chunk; nothing of it is kept."""
        last = self._nodes[self.places[name]]
        ahead = self._ahead(last)
        for run in self._runs:
            own = self._copied(run)
            for node in ahead:
                own.env[node] = own.run_node(node)
            yield own.env[last]

    def _copied(self, run: fx.Interpreter) -> fx.Interpreter:
        own = copy.copy(run)
        own.env = _Values(own, self._constants, run.env)
        return own

    def _ahead(self, last: fx.Node) -> list[fx.Node]:
        """List the nodes that have not run which a node needs, itself included, in order."""
        waiting = set(self._nodes[self.done :]) - self._constants
        needed, found = [last], set[fx.Node]()
        while needed:
            node = needed.pop()
            if node in waiting and node not in found:
                found.add(node)
                needed.extend(node.all_input_nodes)
        return [node for node in self._nodes[self.done :] if node in found]

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
        if not self._held[name] and self._last.get(node, 0) < self.done:
            for run in self._runs:
                del run.env[node]


class _Values(dict[fx.Node, Any]):
    """What a run has computed; what is made of weights alone is made of those of now.

    Args:
        run: Whose values they are.
        constants: The nodes that depend on weights alone.
        known: What it has computed so far.
    """

    def __init__(
        self,
        run: fx.Interpreter,
        constants: AbstractSet[fx.Node],
        known: Mapping[fx.Node, Any] | None = None,
    ) -> None:
        super().__init__(known or {})
        self._run, self._constants = run, constants

    def __contains__(self, node: object) -> bool:
        """Say whether a value is known, or made of weights alone."""
        return super().__contains__(node) or node in self._constants

    def __missing__(self, node: fx.Node) -> Any:
        if node not in self._constants:
            raise KeyError(node)
        return self._run.run_node(node)


def _constants_of(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Find the weights, and the nodes that depend on weights alone."""
    found: set[fx.Node] = set()
    for node in nodes:
        made = node.op != "output" and node.all_input_nodes
        if node.op == "get_attr" or (made and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def name_of(node: fx.Node) -> str:
    """Return the ONNX name of what a node gives, empty where it has none."""
    return str(node.meta.get("value", ""))


def affordable(twin: TorchTwin, shapes: Mapping[str, Shape], batch: int) -> list[int]:
    """Say of each place how many samples' values fit into memory from there to the end.

    Weights do not count: they are there once, for however many samples.

    Args:
        twin: The network.
        shapes: By ONNX name, for `batch` samples; no smaller than those of the network.
        batch: How many samples the shapes are for.
    Returns:
        As many as there are nodes, one at least each, and never fewer than before.
    """
    nodes = list(twin.graph.nodes)
    last, constants = _last_uses(nodes), _constants_of(nodes)
    sizes = {
        node: 0 if node in constants else math.prod(shapes.get(name_of(node), (0,)))
        for node in nodes
    }
    alive, most = 0, []
    leave: dict[int, int] = {}
    for i, node in enumerate(nodes):
        alive += sizes[node]
        most.append(alive)
        if node in last:
            leave[last[node]] = leave.get(last[node], 0) + sizes[node]
        alive -= leave.pop(i, 0)
    ahead = np.maximum.accumulate(most[::-1])[::-1] * (torch.float32.itemsize / batch)
    return [max(int(_BYTES / max(own, 1.0)), 1) for own in ahead]


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """Return for each node that others read the place of the last one."""
    last: dict[fx.Node, int] = {}
    for i, node in enumerate(nodes):
        last |= dict.fromkeys(node.all_input_nodes, i)
    return last
