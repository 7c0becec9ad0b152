"""A model without its large weights, for all that does not look at them.

A protobuf message holds less than 2 GiB, and many a model more. Checking, inferring types and
hashing do not need the weights, and ONNX Runtime takes them by reference. So all of them are given
an outline, whatever the size of the model, and nothing but `Graph.save` asks whether it is large.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
import onnx.inliner
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper

from obc_onnx.errors import ModelError
from obc_onnx.graph.soundness import check_nodes

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from obc_onnx.graph.external import Stretch

MAX_PROTOBUF_BYTES = 2**31 - 1
"""Above this a model cannot be one protobuf message, and its weights go to a second file."""
KEPT_ELEMENTS = 1024
"""Constants up to this size may describe shapes, and stay; others are weights."""
_EXTENDED = ("bfloat16", "float8")
"""Types that numpy lacks, of which an element is still a whole number of bytes."""


def is_left_out(array: NDArray[Any]) -> bool:
    """Say whether an outline leaves an array out: it is large, and bytes of it can be handed on."""
    plain = array.dtype.kind in "fiub" or array.dtype.name.startswith(_EXTENDED)
    return array.size > KEPT_ELEMENTS and plain


class Outline(NamedTuple):
    """A model and the weights that it lacks.

    Attributes:
        model: As it is without them; the methods change it.
        weights: What is missing, by name.
    """

    model: onnx.ModelProto
    weights: Mapping[str, NDArray[Any]]

    def declared(self) -> onnx.ModelProto:
        """Return the model with the weights as inputs: all that checks and inference need."""
        kinds = {n: (element_type(a.dtype), a.shape) for n, a in self.weights.items()}
        return _declare(self.model, kinds)

    def pointing(self, location: str, places: Mapping[str, Stretch]) -> onnx.ModelProto:
        """Return the model with weights that lie in another file.

        Args:
            location: The file, as seen from the model's folder.
            places: Where each weight lies in it; empty where something else provides them.
        """
        for name, array in self.weights.items():
            tensor = self.model.graph.initializer.add(
                name=name,
                data_type=element_type(array.dtype),
                dims=array.shape,
                data_location=TensorProto.EXTERNAL,
            )
            entries = {"location": location}
            if name in places:
                entries |= {key: str(value) for key, value in places[name]._asdict().items()}
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
        return self.model

    def bytes_with_weights(self, notes: Mapping[str, TensorProto | None]) -> int:
        """Return the size of the message with the weights in it, which is not written for that.

        Args:
            notes: What is said of weights besides, by name.
        """
        graph = int(self.model.graph.ByteSize())
        rest = int(self.model.ByteSize()) - _field_bytes(graph)
        for name, array in self.weights.items():
            tensor = TensorProto(name=name, data_type=element_type(array.dtype), dims=array.shape)
            note = notes.get(name)
            if note is not None:
                tensor.MergeFrom(note)
            graph += _field_bytes(int(tensor.ByteSize()) + _field_bytes(array.nbytes))
        return rest + _field_bytes(graph)


def _field_bytes(length: int) -> int:
    """Return the size of a field of some bytes in a message: its tag, its length, and them.

    A tag takes one byte up to field 15; `graph`, `initializer` and `raw_data` are 7, 5 and 9. A
    length takes one for each seven bits.

    Source: Protocol Buffers, Encoding.
    """
    return 1 + max(-(-length.bit_length() // 7), 1) + length


def serialised(model: onnx.ModelProto) -> bytes:
    """Write an outline as a message; equal ones give equal bytes.

    Raises:
        ModelError: What it holds besides the weights is too large.
    """
    fault = ModelError(
        "the model holds more than 2 GiB besides the weights of its main graph, such as in "
        "subgraphs, which no protobuf message can hold"
    )
    try:
        message = bytes(model.SerializeToString(deterministic=True))
    except EncodeError as error:
        raise fault from error
    if len(message) > MAX_PROTOBUF_BYTES:  # older versions of protobuf write what nothing reads
        raise fault
    return message


def without_weights(model: onnx.ModelProto, weights: Container[str]) -> onnx.ModelProto:
    """Copy a model, but for the initializers of some names, of which nothing is copied."""
    initializers = [tensor for tensor in model.graph.initializer if tensor.name not in weights]
    graph = {f.name: v for f, v in model.graph.ListFields() if f.name != "initializer"}
    others = {f.name: v for f, v in model.ListFields() if f.name != "graph"}
    return onnx.ModelProto(**others, graph=onnx.GraphProto(**graph, initializer=initializers))


def outlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model with its large initializers as inputs, wherever their data is."""
    kinds = {t.name: (t.data_type, tuple(t.dims)) for t in _large(model)}
    return _declare(without_weights(model, kinds), kinds)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """Inline local functions; a model that has none is returned as it is.

    Raises:
        ModelError: A call does not fit its function, or what comes of it is malformed.
    """
    if not model.functions:
        return model
    try:
        result = onnx.inliner.inline_local_functions(outlined(model))
    except RuntimeError as error:  # what failed checks of onnx's own raise
        reason = str(error).rpartition(": ")[2]
        raise ModelError(f"the local functions cannot be inlined: {reason}") from error
    check_nodes(result)
    del result.graph.input[:]
    result.graph.input.extend(model.graph.input)
    result.graph.initializer.extend(_large(model))
    return result


def element_type(dtype: np.dtype[Any]) -> int:
    """Return ONNX's number for a type."""
    return int(helper.np_dtype_to_tensor_dtype(dtype))


def _large(model: onnx.ModelProto) -> list[TensorProto]:
    return [t for t in model.graph.initializer if math.prod(t.dims) > KEPT_ELEMENTS]


def _declare(
    model: onnx.ModelProto, kinds: Mapping[str, tuple[int, tuple[int, ...]]]
) -> onnx.ModelProto:
    """Let a model take values as inputs; those that it takes already keep their place."""
    listed = {port.name for port in model.graph.input}
    model.graph.input.extend(
        helper.make_tensor_value_info(name, data_type, shape)
        for name, (data_type, shape) in kinds.items()
        if name not in listed
    )
    return model
