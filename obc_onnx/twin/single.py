"""Let a twin of a model in half precision compute in float32.

Gradients of a model in float16 vanish below 6e-8, and sums overflow above 65,504; in bfloat16 they
keep three digits. What scores, repairs and trains looks at the same numbers without that: weights
start as what is stored, and are rounded again when they are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from onnx import TensorProto
from torch import fx

from obc_onnx.ops.elementwise import bit_cast, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from obc_onnx.graph.node import Port
    from obc_onnx.twin.module import TorchTwin

_HALVES = frozenset({torch.float16, torch.bfloat16})
_CODES = frozenset({int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16)})
_NAMES = frozenset({"float16", "bfloat16"})
_NAMING = frozenset({"data_type", "to"})
"""Keywords of calls that name an ONNX type."""


def in_single(twin: TorchTwin, ports: Sequence[Port]) -> None:
    """Change a twin in place.

    One that runs subgraphs, or looks at the bits of numbers, stays as it is.

    Args:
        twin: The network.
        ports: Its inputs, in the order of its arguments.
    """
    calls = list(twin.graph.nodes)
    if any(node.op == "call_module" or node.target is bit_cast for node in calls):
        return
    _widen_tensors(twin)
    arguments = [node for node in calls if node.op == "placeholder"]
    for node in calls:
        kwargs = {key: _code(own) if key in _NAMING else own for key, own in node.kwargs.items()}
        node.args, node.kwargs = (fx.node.map_aggregate(own, _wide) for own in (node.args, kwargs))
    for argument, port in zip(arguments, ports, strict=False):  # behind those stands `training`
        if port.dtype.name in _NAMES:
            _widen_argument(twin, argument)
    twin.recompile()


def _widen_tensors(module: nn.Module) -> None:
    """Widen parameters and buffers."""
    for parameter in module.parameters():
        if parameter.dtype in _HALVES:
            parameter.data = parameter.data.float()
    for name, buffer in list(module.named_buffers()):
        if buffer.dtype in _HALVES:
            setattr(module, name, buffer.float())


def _widen_argument(twin: TorchTwin, argument: fx.Node) -> None:
    """Convert an argument where it comes in; what was known of it is known of that."""
    with twin.graph.inserting_after(argument):
        made = twin.graph.call_function(cast, (), {"to": int(TensorProto.FLOAT)})
    argument.replace_all_uses_with(made)
    made.args = (argument,)
    if "value" in argument.meta:
        made.meta["value"] = argument.meta.pop("value")


def _wide(value: Any) -> Any:
    return torch.float32 if value in _HALVES else value


def _code(value: Any) -> Any:
    return int(TensorProto.FLOAT) if value in _CODES else value
