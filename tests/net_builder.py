"""What random nets are built with: nodes, drawn weights, and feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from helpers import IR_VERSION, OPSET, draw_weight
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    Step = tuple[str, int, int]
    Recipe = Sequence[Step]

IMAGE = (3, 8, 8)
N_CLASSES = 4
MOST_CHANNELS = 20
MOST_ROWS = 16


@dataclass(frozen=True)
class Feature:
    """A map of shape [batch, channels, rows, rows]."""

    name: str
    channels: int
    rows: int


class Builder:
    """Nodes and weights under construction.

    Args:
        seed: Of the weights.
    """

    input_shape: tuple[int, ...] = IMAGE

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.outputs: list[str] = []

    def node(self, op_type: str, *inputs: str, n: int = 1, **attributes: Any) -> str:
        """Add a node; return its first output."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(n)]
        self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
        return names[0]

    def weight(self, *shape: int, kind: str = "w") -> str:
        """Add a weight."""
        name = f"{kind}{len(self.arrays)}"
        self.arrays[name] = draw_weight(name, shape, self.rng)
        return name

    def sizes(self, *values: int) -> str:
        """Add integers."""
        return self.constant(np.array(values, np.int64))

    def constant(self, array: np.ndarray) -> str:
        """Add an array."""
        name = f"n{len(self.arrays)}"
        self.arrays[name] = array
        return name

    def to_model(self) -> onnx.ModelProto:
        """Finish the model, with a dynamic batch."""
        ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in self.outputs]
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.input_shape])],
            ports,
            [numpy_helper.from_array(array, name) for name, array in self.arrays.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
        )
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        for port, found in zip(model.graph.output, inferred.graph.output, strict=True):
            port.CopyFrom(found)
        return model


class Net(Builder):
    """A convolutional net, with every feature map made so far."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.features = [self.conv(Feature("x", IMAGE[0], IMAGE[1]), 6)]

    def conv(
        self, x: Feature, channels: int, kernel: int = 1, stride: int = 1, blocks: int = 1
    ) -> Feature:
        """Add a convolution with a bias that keeps or halves the rows."""
        w = self.weight(channels, x.channels // blocks, kernel, kernel)
        name = self.node(
            "Conv", x.name, w, self.weight(channels), group=blocks,
            strides=[stride] * 2, pads=[kernel // 2] * 4,
        )  # fmt: skip
        return Feature(name, channels, -(-x.rows // stride))

    def same(self, op_type: str, x: Feature, *others: str, **attributes: Any) -> Feature:
        """Add a node that changes no size."""
        return Feature(self.node(op_type, x.name, *others, **attributes), x.channels, x.rows)

    def joined(self, *parts: Feature) -> Feature:
        """Concatenate channels."""
        name = self.node("Concat", *(part.name for part in parts), axis=1)
        return Feature(name, sum(part.channels for part in parts), parts[0].rows)

    def fitting(self, x: Feature, b: int) -> Feature:
        """Choose a map with as many rows as `x`."""
        fits = [f for f in self.features if f.rows == x.rows]
        return fits[b % len(fits)]
