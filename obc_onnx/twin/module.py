"""What a twin is: a graph module of torch that pickles, and that writes its weights back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from obc_onnx.twin.weights import weights_of

if TYPE_CHECKING:
    from obc_onnx.graph.model import Graph


_NOTES = ("onnx", "slots", "value")
"""What nodes know of the ONNX node that they stand for: its key, where they take its inputs, and
which value they give."""


class TorchTwin(fx.GraphModule):
    """A graph module that pickles node by node.

    torch's own way traces the code again when it loads, which would look into operators and fix the
    mode the module is in.
    """

    def write_to(self, graph: Graph) -> Graph:
        """Return a graph with the weights of this twin, in the graph's types.

        Args:
            graph: The one that the twin was built from, or one with equal initializers.
        """
        return graph.edit(weights_of(self, graph))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle tensors, and nodes by name."""
        nodes = [
            (
                node.op,
                node.name,
                node.target,
                fx.node.map_arg(node.args, _by_name),
                fx.node.map_arg(node.kwargs, _by_name),
                {key: node.meta[key] for key in _NOTES if key in node.meta},
            )
            for node in self.graph.nodes
        ]
        held = (dict(self._parameters), dict(self._buffers), dict(self._modules))
        return _rebuild, (*held, nodes, self.training)


@dataclass(frozen=True)
class _Use:
    """A node's result as an argument of another node."""

    name: str


def _by_name(node: fx.Node) -> Any:
    return _Use(node.name)


def _rebuild(
    parameters: dict[str, nn.Parameter],
    buffers: dict[str, torch.Tensor],
    modules: dict[str, nn.Module],
    nodes: list[tuple[Any, ...]],
    training: bool,  # noqa: FBT001 - pickle passes by position
) -> TorchTwin:
    root, graph = nn.Module(), fx.Graph()
    for name, parameter in parameters.items():
        root.register_parameter(name, parameter)
    for name, buffer in buffers.items():
        root.register_buffer(name, buffer)
    for name, module in modules.items():
        root.add_module(name, module)
    made: dict[str, fx.Node] = {}

    def resolve(argument: Any) -> Any:
        return made[argument.name] if isinstance(argument, _Use) else argument

    for op, name, target, named_args, named_kwargs, notes in nodes:
        args: Any = fx.node.map_aggregate(named_args, resolve)
        kwargs: Any = fx.node.map_aggregate(named_kwargs, resolve)
        made[name] = graph.create_node(op, target, args, kwargs, name)
        made[name].meta.update(notes)
    twin = TorchTwin(root, graph, class_name="TorchTwin")
    twin.train(training)
    return twin
