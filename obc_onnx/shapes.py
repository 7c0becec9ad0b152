"""Find a concrete shape for every tensor of a graph.

Strict ONNX shape inference with data propagation goes first; what it leaves open is read off one
run in ONNX Runtime with every open value as an output. Where inference finds fault with a graph
that ONNX Runtime runs, everything is read off such a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from obc_onnx.errors import ModelError, RequestError, ShapeError
from obc_onnx.feeds import candidates, trials
from obc_onnx.foreign import without_foreign
from obc_onnx.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph import Graph
    from obc_onnx.node import Port

    Shape = tuple[int, ...]
    Feed = dict[str, NDArray[Any]]

ANALYSIS_BATCH = 2
"""Size given to a dynamic first axis: with 1, a batch could not be told from a broadcast axis."""
_LARGEST_SIZE = 2**31 - 1


def input_shapes(graph: Graph, given: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """Choose a concrete shape for every graph input.

    Args:
        graph: The model.
        given: Shapes by input name; a dynamic size that is not given must be the first one.
    Raises:
        RequestError: A name is no input, or a shape contradicts the declared one.
        ModelError: An input is no tensor.
        ShapeError: A dynamic size besides the first is not given.
    """
    given = given or {}
    names = [port.name for port in graph.inputs]
    for name in given:
        if name not in names:
            raise RequestError(
                f"input shape given for '{name}', but the model's inputs are: {', '.join(names)}"
            )
    return {port.name: _shape_of(port, given.get(port.name)) for port in graph.inputs}


def _shape_of(port: Port, given: Shape | None) -> Shape:
    if not all(1 <= size <= _LARGEST_SIZE for size in given or ()):
        raise RequestError(
            f"input '{port.name}' cannot have the shape {'x'.join(map(str, given or ()))}: "
            f"sizes go from 1 to {_LARGEST_SIZE}"
        )
    if port.shape is None:
        if port.dtype == np.dtype(object):
            raise ModelError(f"input '{port.name}' is no tensor of numbers")
        if given is None:
            raise ShapeError(
                f"input '{port.name}' declares no shape: give one, as in "
                f"--input-shape {port.name}:1x3x224x224"
            )
        return given
    declared = "x".join(str(size or "?") for size in port.shape)
    if given is None:
        open_axes = [i for i, size in enumerate(port.shape) if not isinstance(size, int) and i]
        if open_axes:
            raise ShapeError(
                f"input '{port.name}' has shape {declared}, whose axis {open_axes[0]} is dynamic: "
                f"give its size, as in --input-shape {port.name}:"
                + "x".join(str(size) if isinstance(size, int) else "1" for size in port.shape)
            )
        return tuple(size if isinstance(size, int) else ANALYSIS_BATCH for size in port.shape)
    fits = len(given) == len(port.shape) and all(
        size == wanted
        for wanted, size in zip(port.shape, given, strict=True)
        if isinstance(wanted, int)
    )
    if not fits:
        raise RequestError(
            f"input '{port.name}' is declared as {declared}, which "
            f"{'x'.join(map(str, given))} does not fit"
        )
    return given


def infer_shapes(
    graph: Graph, shapes: Mapping[str, Shape], feed: Feed | None = None
) -> dict[str, Shape]:
    """Find the shape of every tensor in the main graph.

    Args:
        graph: The model.
        shapes: A concrete shape for each graph input, from `input_shapes`.
        feed: Inputs of those shapes to run on; random ones are tried where there are none.
    Returns:
        Concrete shapes by value name, initializers included. Values that are not tensors are left
        out.
    Raises:
        ModelError: Shape inference or ONNX Runtime finds the graph inconsistent.
    """
    known: dict[str, Shape] = {name: array.shape for name, array in graph.initializers.items()}
    known |= dict(shapes)
    fault: ModelError | None = None
    try:
        known |= infer_strictly(graph, shapes)
    except ModelError as error:
        fault = error
    computed = [output for node in graph.nodes for output in node.outputs if output]
    missing = [name for name in computed if name not in known]
    if not missing:
        return known
    try:
        return known | _run_for_shapes(
            graph, missing, [feed] if feed else candidates(graph, shapes, seed=0)
        )
    except ModelError as error:
        raise (fault or error) from error


def infer_strictly(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Find the shapes of values that nodes compute, as far as ONNX shape inference can tell.

    Raises:
        ModelError: It finds the graph inconsistent.
    """
    try:
        inferred = onnx.shape_inference.infer_shapes(
            _with_inputs(graph, shapes), check_type=True, strict_mode=True, data_prop=True
        )
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"shape inference fails for inputs {dict(shapes)}: {error}") from error
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }


class ElementTypes:
    """Element types of a graph's values; they are inferred once, when the first is asked for."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, np.dtype[Any]] | None = None

    def __getitem__(self, name: str) -> np.dtype[Any]:
        """Return the type of one value.

        Raises:
            ModelError: ONNX Runtime, asked where shape inference does not know, refuses the model.
        """
        if self._known is None:
            self._known = known_types(self._graph)
        if name not in self._known:
            session = Session(self._graph, optimize=False, outputs=[name])
            self._known |= session.output_types
        return self._known[name]


def known_types(graph: Graph) -> dict[str, np.dtype[Any]]:
    """Find the element types that shape inference knows."""
    inferred = onnx.shape_inference.infer_shapes(_with_inputs(graph, {})).graph
    declared = (*inferred.input, *inferred.value_info, *inferred.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in declared}
    held = {name: array.dtype for name, array in graph.initializers.items()}
    return held | {
        name: onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in kinds.items() if kind
    }


def _with_inputs(graph: Graph, shapes: Mapping[str, Shape]) -> onnx.ModelProto:
    """Export with concrete inputs, open outputs, and weights as inputs."""
    model = without_foreign(graph.outline().declared())
    for port in model.graph.input:
        if port.name in shapes:
            del port.type.tensor_type.shape.dim[:]
            for size in shapes[port.name]:
                port.type.tensor_type.shape.dim.add(dim_value=size)
    for port in model.graph.output:
        if port.type.HasField("tensor_type"):
            port.type.tensor_type.ClearField("shape")
    return model


def _run_for_shapes(graph: Graph, missing: list[str], feeds: Iterable[Feed]) -> dict[str, Shape]:
    _, values = next(trials(Session(graph, optimize=False, outputs=missing), feeds))
    return {name: value.shape for name, value in values.items() if isinstance(value, np.ndarray)}
