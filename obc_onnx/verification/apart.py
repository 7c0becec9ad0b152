"""Whether nodes that ONNX Runtime does not know are what they were: nothing else tells of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obc_onnx.graph.export import first_output
from obc_onnx.graph.opaque import label_of
from obc_onnx.verification.checks import Check

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

    from obc_onnx.graph.model import Graph

NAME = "unknown nodes unchanged"


def checks_apart(original: Graph, result: Graph) -> list[Check]:
    """Compare such nodes to the byte, and the outputs of the file; say what was not run.

    Returns:
        One check; none where neither model has such nodes.
    """
    before, after = original.opaque, result.opaque
    if not before.nodes and not after.nodes:
        return []
    fault = _other_node(before.nodes, after.nodes)
    if not fault and _bytes(before.outputs) != _bytes(after.outputs):
        fault = "the outputs of the file are described otherwise"
    return [Check(NAME, passed=not fault, detail=fault or before.coverage)]


def _other_node(before: Iterable[onnx.NodeProto], after: Iterable[onnx.NodeProto]) -> str:
    """Name the first node that only one side has, or that differs."""
    sides = [{first_output(node): node for node in nodes} for nodes in (before, after)]
    for key in sides[0] | sides[1]:
        pair = [side[key] for side in sides if key in side]
        if len(set(_bytes(pair))) > 1 or len(pair) == 1:
            kind = label_of(pair[0])
            return f"{kind} differs" if len(pair) > 1 else f"{kind} is in one of both files only"
    return ""


def _bytes(messages: Iterable[onnx.NodeProto | onnx.ValueInfoProto]) -> list[bytes]:
    return [message.SerializeToString(deterministic=True) for message in messages]
