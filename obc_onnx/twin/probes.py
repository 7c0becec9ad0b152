"""Twins that are watched: modules in them see the values of chosen nodes as they pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from obc_onnx.twin.tensors import module_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from obc_onnx.twin.module import TorchTwin

Place = tuple[str, str, int]
"""A node's key; "output", "input", or "parameter" for an input that others broadcast; its slot."""


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


def insert_beside(twin: TorchTwin, probes: Mapping[tuple[str, str], nn.Module]) -> None:
    """Let values pass through modules that see another value too.

    Args:
        twin: Changed in place.
        probes: A module for each value and the one beside it, an earlier one. It takes both, and
            returns what goes on in the stead of the first.
    """
    values = {node.meta["value"]: node for node in twin.graph.nodes if "value" in node.meta}
    for i, ((name, beside), probe) in enumerate(probes.items()):
        own = module_name(f"probe {i} beside")
        twin.add_submodule(own, probe)
        _insert_behind(twin.graph, values[name], own, values[beside])
    twin.recompile()


def also_return(twin: TorchTwin, names: Sequence[str]) -> None:
    """Let a twin return values from inside behind its outputs.

    Args:
        twin: Changed in place.
        names: ONNX values, in the order in which they are returned.
    """
    values = {node.meta["value"]: node for node in twin.graph.nodes if "value" in node.meta}
    output = twin.graph.output_node()
    (outputs,) = output.args
    assert isinstance(outputs, tuple)
    output.args = ((*outputs, *(values[name] for name in names)),)
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


def _insert_behind(graph: fx.Graph, output: fx.Node, name: str, *beside: fx.Node) -> None:
    with graph.inserting_after(output):
        probe = graph.call_module(name, (output, *beside))
    output.replace_all_uses_with(probe, delete_user_cb=lambda user: user is not probe)


def _insert_before(
    graph: fx.Graph, call: fx.Node, slot: int, name: str, *, broadcast: bool
) -> None:
    place = call.meta["slots"].index(slot)
    others = [a for i, a in enumerate(call.args) if i != place and isinstance(a, fx.Node)]
    with graph.inserting_before(call):
        probe = graph.call_module(name, (call.args[place], *(others if broadcast else ())))
    call.update_arg(place, probe)
