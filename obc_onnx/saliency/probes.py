"""Twins that are watched: modules in them see the values of chosen nodes as they pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from obc_onnx.surgery import mask_reads
from obc_onnx.tensors import module_name
from obc_onnx.twin import derived_twin

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from obc_onnx.coupling import Keep
    from obc_onnx.graph import Graph
    from obc_onnx.module import TorchTwin
    from obc_onnx.saliency.criterion import Scene

Place = tuple[str, str, int]
"""A node's key; "output", "input", or "parameter" for an input that others broadcast; its slot."""


def masked_twin(scene: Scene, keep: Keep) -> tuple[Graph, TorchTwin]:
    """Mask the units that are gone, which gives what the pruned network gives.

    Returns:
        The masked graph, and its twin on the scene's device, with weights that do not learn.
    """
    coupling = scene.coupling
    graph = mask_reads(coupling, keep) if keep else coupling.graph
    return graph, derived_twin(graph, coupling, frozen=True).to(scene.device)


def insert(twin: TorchTwin, probes: Mapping[Place, nn.Module]) -> None:
    """Let values pass through modules.

    Args:
        twin: Changed in place.
        probes: A module for each place. It takes the value and returns what goes on in its stead;
            for a "parameter" it takes the node's other operands too.
    """
    nodes = {node.meta["onnx"]: node for node in twin.graph.nodes if "onnx" in node.meta}
    for i, ((key, at, slot), probe) in enumerate(probes.items()):
        name = module_name(f"probe {i}")
        twin.add_submodule(name, probe)
        if at == "output":
            _insert_behind(twin.graph, nodes.get((key, 0), nodes[key, None]), name)
        else:
            _insert_before(twin.graph, nodes[key, None], slot, name, broadcast=at == "parameter")
    twin.recompile()


def calls_of(twin: TorchTwin) -> dict[str, fx.Node]:
    """Return the call that computes each ONNX node, by the node's key."""
    origins = ((node.meta.get("onnx"), node) for node in twin.graph.nodes)
    return {origin[0]: node for origin, node in origins if origin is not None and origin[1] is None}


def alias_of(x: Tensor) -> Tensor:
    """Return a view of a tensor; a hook on it sees the gradient of this use alone."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def has_place(call: fx.Node, slot: int) -> bool:
    """Say whether a node takes what is in one of its slots as a tensor."""
    slots = call.meta["slots"]
    return slot in slots and isinstance(call.args[slots.index(slot)], fx.Node)


def _insert_behind(graph: fx.Graph, output: fx.Node, name: str) -> None:
    with graph.inserting_after(output):
        probe = graph.call_module(name, (output,))
    output.replace_all_uses_with(probe, delete_user_cb=lambda user: user is not probe)


def _insert_before(
    graph: fx.Graph, call: fx.Node, slot: int, name: str, *, broadcast: bool
) -> None:
    place = call.meta["slots"].index(slot)
    others = [a for i, a in enumerate(call.args) if i != place and isinstance(a, fx.Node)]
    with graph.inserting_before(call):
        probe = graph.call_module(name, (call.args[place], *(others if broadcast else ())))
    call.update_arg(place, probe)
