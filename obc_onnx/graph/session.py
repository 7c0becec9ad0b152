"""Run a model in ONNX Runtime: the oracle for everything this package computes otherwise."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from obc_onnx.errors import ModelError
from obc_onnx.graph.outline import Outline, element_type, serialised
from obc_onnx.graph.runtime import (
    CPU,
    InferenceSession,
    OrtValue,
    SessionOptions,
    data_type_of,
    lacks_code,
    load_refusals,
    run_once,
    run_refusals,
    session_options,
)
from obc_onnx.graph.widening import BFLOAT16, in_brain_floats, widened
from obc_onnx.memory import make_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node

_FLOAT = "tensor(float)"
"""How ONNX Runtime writes float32."""
_NOWHERE = "given"
"""The file that weights are said to lie in; it is never looked for."""


class Session:
    """A loaded model.

    Args:
        graph: The model to load.
        providers: Execution providers, first choice first. Ask for CUDA only where there is one.
        optimize: Whether ONNX Runtime may rewrite the graph; off where values are compared.
        outputs: Values to return instead of the graph's outputs.
        takes_turns: Whether torch runs in between: then idle threads do not hold the cores.
    Raises:
        ModelError: ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        graph: Graph,
        providers: Sequence[str] = (CPU,),
        *,
        optimize: bool = True,
        outputs: Sequence[str] | None = None,
        takes_turns: bool = False,
    ) -> None:
        outline = graph.outline()
        if outputs is not None:
            _give(outline.model, outputs)
        self.output_names = list(outputs or (port.name for port in graph.outputs))
        try:
            options = partial(
                session_options, optimize=optimize, spins=not takes_turns, packs=optimize
            )
            self._session, self._weights = _load(outline, options, list(providers))
        except load_refusals() as error:
            raise ModelError(f"ONNX Runtime cannot load the model: {error}") from error

    @property
    def output_types(self) -> dict[str, np.dtype[Any]]:
        """The element type of each output; `object` for strings and for what is no tensor."""
        return {output.name: _element_type(output.type) for output in self._session.get_outputs()}

    def run(self, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once.

        Args:
            feed: An array for each graph input.
        Returns:
            Each output by name.
        Raises:
            ModelError: ONNX Runtime fails on this input.
        """
        try:
            values = self._session.run(self.output_names, _as_taken(self._session, feed))
        except run_refusals() as error:
            raise ModelError(f"ONNX Runtime cannot run the model: {error}") from error
        return dict(zip(self.output_names, values, strict=True))


def run_file(path: Path, feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Run a file as any program would, by its path, without optimisations.

    Returns:
        Each output by name.
    Raises:
        ModelError: ONNX Runtime refuses the file.
    """
    try:
        return run_once(path, feed)
    except run_refusals() as error:
        refusal = error
    model = onnx.load(path) if lacks_code(refusal) else onnx.ModelProto()
    if not in_brain_floats(Outline(model, {})):
        raise ModelError(f"ONNX Runtime cannot run '{path}': {refusal}") from refusal
    session, used = _load(Outline(model, {}), partial(session_options, optimize=False), [CPU])
    del used
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, _as_taken(session, feed)), strict=True))


def run_node(
    graph: Graph, node: Node, operands: Mapping[int, NDArray[np.floating]]
) -> NDArray[np.floating]:
    """Run one node of a graph alone, on floats of one type, maybe another than that of the graph.

    Args:
        graph: The model.
        node: A node of it.
        operands: What its input slots take; others are left out.
    Returns:
        Its first output.
    Raises:
        ModelError: ONNX Runtime refuses the node or the numbers.
    """
    message = onnx.NodeProto()
    message.CopyFrom(graph.messages[node.key])
    names = [f"input{slot}" if slot in operands else "" for slot in range(max(operands) + 1)]
    del message.input[:], message.output[:]
    message.input.extend(names)
    message.output.append("output")
    ports = [
        onnx.helper.make_tensor_value_info(f"input{slot}", element_type(x.dtype), [None] * x.ndim)
        for slot, x in operands.items()
    ]
    result = onnx.ValueInfoProto(name="output")
    model = onnx.ModelProto(
        ir_version=graph.header.ir_version,
        opset_import=graph.header.opset_import,
        graph=onnx.helper.make_graph([message], "node", ports, [result]),
    )
    feed = {f"input{slot}": operand for slot, operand in operands.items()}
    try:
        (found,) = run_once(model.SerializeToString(), feed).values()
    except run_refusals() as error:
        raise ModelError(f"ONNX Runtime cannot run {node.label} alone: {error}") from error
    return np.asarray(found)


def compute_constants(graph: Graph, names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Compute values that depend on initializers alone.

    Args:
        graph: The model.
        names: Values; every one that they depend on has to be computed from initializers.
    Raises:
        ModelError: ONNX Runtime refuses a node.
    """
    wanted = list(dict.fromkeys(names))
    needed: dict[str, None] = dict.fromkeys(wanted)
    queue = list(wanted)
    for name in queue:
        if name in graph.producers:
            fresh = [source for source in graph.producers[name].inputs if source not in needed]
            needed.update(dict.fromkeys(fresh))
            queue += fresh
    model, weights = graph.outline()
    for field in (model.graph.node, model.graph.initializer):
        kept = [item for item in field if needed.keys() & _made_by(item)]
        del field[:]
        field.extend(kept)
    del model.graph.input[:]
    _give(model, wanted)
    outline = Outline(model, {name: weights[name] for name in weights if name in needed})
    try:
        session, _used = _load(outline, partial(session_options, optimize=False), [CPU])
        values = session.run(wanted, {})
    except load_refusals() as error:
        raise ModelError(f"ONNX Runtime cannot compute the model's weights: {error}") from error
    return dict(zip(wanted, values, strict=True))


def _give(model: onnx.ModelProto, outputs: Iterable[str]) -> None:
    """Let a model return these values instead of its outputs."""
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)


def _made_by(item: onnx.NodeProto | onnx.TensorProto) -> set[str]:
    return {item.name} if isinstance(item, onnx.TensorProto) else set(item.output)


def _load(
    outline: Outline, options: Callable[[], SessionOptions], providers: list[str]
) -> tuple[InferenceSession, list[OrtValue]]:
    """Load a model that uses its weights where they are: none is copied or serialised.

    Returns:
        The session, and what it uses, which has to live as long.
    """
    make_room(sum(array.nbytes for array in outline.weights.values()))
    if not in_brain_floats(outline):
        return _loaded(outline, options(), providers)
    spare = onnx.ModelProto()
    spare.CopyFrom(outline.model)
    try:
        return _loaded(outline, options(), providers)
    except load_refusals() as error:
        if not lacks_code(error):
            raise
    return _loaded(widened(Outline(spare, outline.weights)), options(), providers)


def _loaded(
    outline: Outline, options: SessionOptions, providers: list[str]
) -> tuple[InferenceSession, list[OrtValue]]:
    values = [_reference(array) for array in outline.weights.values()]
    if values:
        options.add_external_initializers(list(outline.weights), values)
    message = serialised(outline.pointing(_NOWHERE, {}))
    return InferenceSession(message, options, providers), values


def _as_taken(session: InferenceSession, feed: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Return what a session is fed: bfloat16 in float32 where the model was widened."""
    wide = {port.name for port in session.get_inputs() if port.type == _FLOAT}
    brain = {name for name in wide & feed.keys() if np.asarray(feed[name]).dtype.name == BFLOAT16}
    return {name: feed[name].astype(np.float32) if name in brain else feed[name] for name in feed}


def _reference(array: NDArray[Any]) -> OrtValue:
    """Let ONNX Runtime see an array; it does not know the names of types that numpy lacks."""
    whole = np.ascontiguousarray(array)
    if whole.dtype.kind != "V":
        return OrtValue.ortvalue_from_numpy(whole)
    bits = whole.view(f"u{whole.dtype.itemsize}")
    kind = element_type(whole.dtype)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _element_type(kind: str) -> np.dtype[Any]:
    number = data_type_of(kind)
    return onnx.helper.tensor_dtype_to_np_dtype(number) if number else np.dtype(object)
