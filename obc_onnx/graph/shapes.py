"""Find a concrete shape for every tensor of a graph.

Strict ONNX shape inference with data propagation goes first; what it leaves open is read off one
run in ONNX Runtime with every open value as an output. Where inference finds fault with a graph
that ONNX Runtime runs, everything is read off such a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from obc_onnx.errors import ModelError, NoSizeError, RequestError, ShapeError
from obc_onnx.graph.batch_axes import is_anonymous
from obc_onnx.graph.feeds import candidates, check_room, trials
from obc_onnx.graph.foreign import inferable
from obc_onnx.graph.inference import infer_sizes
from obc_onnx.graph.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import BatchAxes
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Port

    Shape = tuple[int, ...]
    Feed = dict[str, NDArray[Any]]

ANALYSIS_BATCH = 2
"""Size given to a batch that is free: with 1, a batch could not be told from a broadcast axis."""
_LARGEST_SIZE = 2**31 - 1
_USUAL_SIDE, _USUAL_LENGTH = 224, 128
"""Of pictures, a multiple of 32, by which detectors divide, and of sequences: for examples."""
_RANK_OF_PICTURES = 4


def input_shapes(graph: Graph, given: Mapping[str, Shape] | None = None) -> dict[str, Shape]:
    """Choose a concrete shape for every graph input.

    The batch need not be given, nor a size that has the name of one that is. As long as the batch
    is not proven, an open first axis is taken for it, and the only open axis behind a first one
    that is larger than 1.

    Args:
        graph: The model.
        given: Shapes by input name.
    Raises:
        RequestError: A name is no input, or a shape contradicts the declared one.
        ModelError: An input is no tensor.
        ShapeError: A dynamic size besides the batch is not given.
    """
    given = given or {}
    names = [port.name for port in graph.inputs]
    for name in given:
        if name not in names:
            raise RequestError(
                f"input shape given for '{name}', but the model's inputs are: {', '.join(names)}"
            )
    for port in graph.inputs:
        check_given(port, graph, given.get(port.name))
    bound = {
        symbol: size
        for port in graph.inputs
        for symbol, size in zip(port.shape or (), given.get(port.name, ()), strict=False)
        if not is_anonymous(symbol)
    }
    found = {
        port.name: given[port.name] if port.name in given else _shape_of(port, graph, bound)
        for port in graph.inputs
    }
    return _as_many(graph, found)


def _as_many(graph: Graph, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Give stand-ins as many samples as inputs have, where the file leaves that open.

    Their sizes are given for any number of samples, since the data does not hold them.
    """
    batch, givers = graph.batch_axes, graph.opaque.givers
    own = {name: shape for name, shape in shapes.items() if name not in givers}
    if all(batch.inputs[name] is None for name in own):
        return shapes
    follow = [port.name for port in graph.inputs if port.name in givers and _is_open(port, batch)]
    return {**shapes, **batch.resized({n: shapes[n] for n in follow}, batch.count_of(own))}


def _is_open(port: Port, batch: BatchAxes) -> bool:
    """Say whether a port has a batch axis of which the file does not say the size."""
    axis = batch.inputs[port.name]
    return axis is not None and (port.shape is None or isinstance(port.shape[axis], str))


def check_given(port: Port, graph: Graph, given: Shape | None) -> None:
    """Check a shape that was given, and that one was where the model has none.

    Raises:
        RequestError: It contradicts the declared one.
        ModelError: The input is no tensor.
        ShapeError: None is declared, and none given.
    """
    called = graph.opaque.port_called(port.name)
    if not all(1 <= size <= _LARGEST_SIZE for size in given or ()):
        raise RequestError(
            f"{called} cannot have the shape {'x'.join(map(str, given or ()))}: "
            f"sizes go from 1 to {_LARGEST_SIZE}"
        )
    if port.shape is None:
        if port.dtype == np.dtype(object):
            raise ModelError(f"{called} is no tensor of numbers")
        if given is None:
            example = {port.name: (1, 3, _USUAL_SIDE, _USUAL_SIDE)}
            raise ShapeError(f"{called} declares no shape: give one, as in `input_shape={example}`")
    elif given is not None:
        fits = len(given) == len(port.shape) and all(
            size == wanted
            for wanted, size in zip(port.shape, given, strict=True)
            if isinstance(wanted, int)
        )
        if not fits:
            raise RequestError(
                f"{called} is declared as {_written(port)}, which "
                f"{'x'.join(map(str, given))} does not fit"
            )


def _shape_of(port: Port, graph: Graph, bound: Mapping[int | str, int]) -> Shape:
    """Fill in the sizes that need not be given."""
    batch = graph.batch_axes
    shape = port.shape or ()
    free = _free(port, graph)
    sizes: list[int] = []
    for axis, declared in enumerate(shape):
        if isinstance(declared, int):
            sizes.append(declared)
        elif declared in bound:
            sizes.append(bound[declared])
        elif axis in free:
            sizes.append(batch.size or ANALYSIS_BATCH)
        else:
            raise missing_size(port, graph, axis)
    return tuple(sizes)


def missing_size(port: Port, graph: Graph, axis: int) -> ShapeError:
    """Say that the size of an axis has to be given."""
    note, shape = graph.batch_axes.note, port.shape or ()
    why = f"; {note}" if note else ""
    example = {port.name: _example(shape, _free(port, graph))}
    return ShapeError(
        f"{graph.opaque.port_called(port.name)} has shape {_written(port)}, whose axis {axis} is "
        f"dynamic: give its size, as in `input_shape={example}`{why}"
    )


def _example(shape: tuple[int | str, ...], free: set[int | None]) -> Shape:
    """Return sizes that networks usually run at: those of a picture, or of a sequence."""
    usual = _USUAL_SIDE if len(shape) >= _RANK_OF_PICTURES else _USUAL_LENGTH
    return tuple(
        size if isinstance(size, int) else 1 if axis in free else usual
        for axis, size in enumerate(shape)
    )


def _free(port: Port, graph: Graph) -> set[int | None]:
    """Return the axes of an input whose size nobody has to give."""
    batch = graph.batch_axes
    return {batch.inputs.get(port.name)} | (set() if batch.proven else _likely(port.shape or ()))


def _likely(shape: tuple[int | str, ...]) -> set[int | None]:
    """Return the open axes that may be the batch, before it is proven."""
    is_open = [axis for axis, size in enumerate(shape) if isinstance(size, str)]
    if len(is_open) == 1 and shape[0] != 1:
        return {0, *is_open}
    return {0}


def _written(port: Port) -> str:
    return "x".join(str(size or "?") for size in port.shape or ())


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
        ModelError: Shape inference or ONNX Runtime finds the graph inconsistent, or a run is needed
            and a value is too large for it.
    """
    known: dict[str, Shape] = {name: array.shape for name, array in graph.initializers.items()}
    known |= dict(shapes)
    fault: ModelError | None = None
    try:
        known |= infer_strictly(graph, shapes)
    except NoSizeError:
        raise
    except ModelError as error:
        fault = error
    computed = [output for node in graph.nodes for output in node.outputs if output]
    missing = [name for name in computed if name not in known]
    if not missing:
        return known
    check_room(graph, known)
    try:
        if fault is not None:
            Session(graph, optimize=False)  # with outputs as they are declared
        return known | _run_for_shapes(
            graph, missing, [feed] if feed else candidates(graph, shapes, seed=0)
        )
    except ModelError as error:
        raise (fault or error) from error


def infer_strictly(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Find the shapes of values that nodes compute, as far as ONNX shape inference can tell.

    Raises:
        ModelError: It finds the graph inconsistent.
        NoSizeError: A size would be below 0.
    """
    try:
        found = infer_sizes(_with_inputs(graph, shapes))
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"shape inference fails for inputs {dict(shapes)}: {error}") from error
    sizes = {name: found[name] for node in graph.nodes for name in node.outputs if name in found}
    for name, shape in sizes.items():
        if min(shape, default=0) < 0:  # a window that is larger than what it slides over
            raise NoSizeError(
                f"for inputs {dict(shapes)} value '{name}' would have shape {shape}: give larger "
                f"inputs"
            )
    return sizes


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
    model = inferable(graph.outline().declared())
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
