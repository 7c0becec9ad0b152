"""Write a transformer decoder with random weights, as exporters write one, of any size.

    python tools/make_decoder.py decoder.onnx [--layers 8] [--width 2048] [--vocabulary 32000]

Batch and sequence are open. The weights go to `decoder.onnx.data`, one at a time: a decoder of many
gigabytes takes the memory of its largest weight. Equal seeds write equal files.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from obc_onnx.graph.external import bytes_of, files_of, layout
from obc_onnx.graph.outline import Outline

if TYPE_CHECKING:
    from numpy.typing import NDArray

OPSET, IR_VERSION = 17, 9
HEAD = 64
"""Width of each attention head."""
GATED = 3
"""How many times wider than the stream the gated layers are."""


class Decoder:
    """The nodes of a decoder, and the shapes of its weights.

    Args:
        layers: How many blocks of attention and gated layers.
        width: Of the stream, a multiple of 64.
        vocabulary: How many tokens there are.
    """

    def __init__(self, layers: int, width: int, vocabulary: int) -> None:
        self.width, self.vocabulary = width, vocabulary
        self.nodes: list[onnx.NodeProto] = []
        self.numbers: dict[str, NDArray[np.int64] | NDArray[np.float32]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        stream = self._add("Gather", self._weight("embed", vocabulary, width), "tokens")
        self._sizes()
        for layer in range(layers):
            stream = self._add("Add", stream, self._attention(f"layer{layer}.attention", stream))
            stream = self._add("Add", stream, self._gated(f"layer{layer}.gated", stream))
        last = self._norm("norm", stream)
        self._add("MatMul", last, self._weight("head", width, vocabulary), to="logits")

    def model(self) -> onnx.ModelProto:
        """Return the model without its weights."""
        open_axes: list[str | int | None] = ["batch", "sequence"]
        tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, open_axes)
        sizes = [*open_axes, self.vocabulary]
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)
        numbers = [numpy_helper.from_array(array, name) for name, array in self.numbers.items()]
        graph = helper.make_graph(self.nodes, "decoder", [tokens], [logits], numbers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)

    def _add(self, op_type: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        output = to or f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def _weight(self, name: str, *shape: int) -> str:
        self.shapes[f"{name}.weight"] = shape
        return f"{name}.weight"

    def _number(self, name: str, value: object, dtype: type[np.generic] = np.int64) -> str:
        self.numbers.setdefault(name, np.asarray(value, dtype))
        return name

    def _sizes(self) -> None:
        """Compute what follows from the sizes of the input: targets of reshapes, and the mask."""
        shape = self._add("Shape", "tokens")
        zero, one = self._number("zero", 0), self._number("one", 1)
        first, second = self._number("first", [0]), self._number("second", [1])
        length = self._add("Gather", shape, one)
        batch = self._add("Unsqueeze", self._add("Gather", shape, zero), first)
        sequence = self._add("Unsqueeze", length, first)
        heads = self._number("heads", [self.width // HEAD]), self._number("head", [HEAD])
        self.split = self._add("Concat", batch, sequence, *heads, axis=0)
        joined = self._number("joined", [-1])
        self.join = self._add("Concat", batch, sequence, joined, axis=0)
        places = self._add("Range", zero, length, one)
        column = self._add("Unsqueeze", places, second)
        self.seen = self._add("LessOrEqual", self._add("Unsqueeze", places, first), column)

    def _norm(self, name: str, value: str) -> str:
        """Divide by the root mean square of the stream, and scale."""
        square = self._add("Mul", value, value)
        mean = self._add("ReduceMean", square, axes=[-1])
        safe = self._add("Add", mean, self._number("epsilon", 1e-5, np.float32))
        normed = self._add("Div", value, self._add("Sqrt", safe))
        return self._add("Mul", normed, self._weight(name, self.width))

    def _heads(self, name: str, value: str, order: list[int]) -> str:
        product = self._add("MatMul", value, self._weight(name, self.width, self.width))
        return self._add("Transpose", self._add("Reshape", product, self.split), perm=order)

    def _attention(self, name: str, stream: str) -> str:
        value = self._norm(f"{name}.norm", stream)
        query = self._heads(f"{name}.query", value, [0, 2, 1, 3])
        key = self._heads(f"{name}.key", value, [0, 2, 3, 1])
        values = self._heads(f"{name}.value", value, [0, 2, 1, 3])
        root = self._number("root", np.sqrt(HEAD), np.float32)
        scores = self._add("Div", self._add("MatMul", query, key), root)
        hidden = self._number("hidden", -1e9, np.float32)
        shares = self._add("Softmax", self._add("Where", self.seen, scores, hidden), axis=-1)
        heads = self._add("Transpose", self._add("MatMul", shares, values), perm=[0, 2, 1, 3])
        joined = self._add("Reshape", heads, self.join)
        return self._add("MatMul", joined, self._weight(f"{name}.out", self.width, self.width))

    def _gated(self, name: str, stream: str) -> str:
        value, hidden = self._norm(f"{name}.norm", stream), GATED * self.width
        gate = self._add("MatMul", value, self._weight(f"{name}.gate", self.width, hidden))
        silu = self._add("Mul", gate, self._add("Sigmoid", gate))
        up = self._add("MatMul", value, self._weight(f"{name}.up", self.width, hidden))
        product = self._add("Mul", silu, up)
        return self._add("MatMul", product, self._weight(f"{name}.down", hidden, self.width))


def write(path: Path, decoder: Decoder, seed: int) -> None:
    """Write a decoder, and its weights beside it."""
    rng = np.random.default_rng(seed)
    stand_ins = {
        name: np.broadcast_to(np.float32(0), shape) for name, shape in decoder.shapes.items()
    }
    places, data = layout(stand_ins), path.with_name(f"{path.name}.data")
    with data.open("wb") as file:
        for name, shape in decoder.shapes.items():
            file.seek(places[name].offset)
            weight = rng.standard_normal(shape, np.float32)
            scaled = weight / np.sqrt(np.float32(min(shape))) if len(shape) > 1 else abs(weight)
            file.write(scaled.astype("<f4").tobytes())
    onnx.save(Outline(decoder.model(), stand_ins).pointing(data.name, places), path)


def main() -> None:
    """Write a decoder, and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="Model to write.")
    parser.add_argument("--layers", type=int, default=8, help="Blocks (default 8).")
    parser.add_argument("--width", type=int, default=2048, help="Width, of 64s (default 2048).")
    parser.add_argument("--vocabulary", type=int, default=32000, help="Tokens (default 32000).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the weights (default 0).")
    asked = parser.parse_args()
    if asked.width % HEAD:
        parser.error(f"argument --width: {asked.width} is no multiple of {HEAD}")
    write(asked.file, Decoder(asked.layers, asked.width, asked.vocabulary), asked.seed)
    print(f"{bytes_of(files_of(asked.file)[1:]):,} bytes of weights")


if __name__ == "__main__":
    main()
