"""If, Loop and Scan. Their subgraphs are not analysed, and what goes in and out stays as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.ops.base.rule import Call, Rule
from obc_onnx.ops.frozen import Frozen

if TYPE_CHECKING:
    from obc_onnx.ops.base.context import ForwardContext
    from obc_onnx.ops.base.rule import Shape

_SCAN_WITHOUT_BATCH_SINCE = 9
_COUNTED = ((TensorProto.INT64, ()), (TensorProto.BOOL, ()))
"""What the subgraph of a Loop takes first: the number of the trip, and whether it goes on."""


class Control(Frozen):
    """Control flow in the twin: a module that runs the twins of the subgraphs."""

    op_types = ("If", "Loop", "Scan")
    why = "a subgraph"

    def forward(self, context: ForwardContext) -> Call:
        """Name the subgraphs, and types and shapes of their formal inputs."""
        from obc_onnx.ops.control import modules

        node = context.node
        slots = tuple(range(len(node.inputs)))
        if node.op_type == "If":
            return Call(modules.If, bodies={"then_branch": (), "else_branch": ()}, order=slots)
        if node.op_type == "Loop":
            carried = tuple(_known(context, slot) for slot in slots[2:])
            return Call(modules.Loop, bodies={"body": (*_COUNTED, *carried)}, order=slots)
        batched = node.opset < _SCAN_WITHOUT_BATCH_SINCE
        if batched and node.has_input(0):
            raise UnsupportedOperatorError(f"{node.label}: the twin scans sequences of one length")
        constants, kinds = _scan(context, slots[batched:], batched=batched)
        scan = modules.BatchedScan if batched else modules.Scan
        return Call(scan, constants, bodies={"body": kinds}, order=slots)


def _scan(
    context: ForwardContext, slots: tuple[int, ...], *, batched: bool
) -> tuple[dict[str, Any], tuple[tuple[int, Shape], ...]]:
    """Read what is scanned and how, and the types and shapes that the subgraph of a Scan takes."""
    node = context.node
    n_scanned = node.integer("num_scan_inputs", 0)
    n_states = len(slots) - n_scanned
    n_handed = len(node.outputs) - n_states
    axes = (
        node.integers("scan_input_axes") or (0,) * n_scanned,
        node.integers("scan_output_axes") or (0,) * n_handed,
    )
    directions = (
        node.integers("directions" if batched else "scan_input_directions") or (0,) * n_scanned,
        node.integers("scan_output_directions") or (0,) * n_handed,
    )
    kinds = [_known(context, slot) for slot in slots]
    kinds = [(data_type, shape[batched:]) for data_type, shape in kinds]
    for i, axis in enumerate(axes[0]):
        data_type, whole = kinds[n_states + i]
        at = axis % len(whole)
        kinds[n_states + i] = data_type, whole[:at] + whole[at + 1 :]
    backwards = tuple(tuple(bool(d) for d in own) for own in directions)
    return {"axes": axes, "backwards": backwards}, tuple(kinds)


def _known(context: ForwardContext, slot: int) -> tuple[int, Shape]:
    """Return ONNX type and shape of an input."""
    shape = context.input_shapes[slot]
    if shape is None:
        raise UnsupportedOperatorError(
            f"{context.node.label}: the shape of its input {slot} is not known"
        )
    return context.data_type(slot), shape


RULES: tuple[Rule, ...] = (Control(),)
