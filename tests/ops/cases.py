"""The rows of the conformance table: what a row is, and how it becomes a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from helpers import OPSET, Analysed, analyse, build

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from numpy.typing import ArrayLike

    Shape = tuple[int, ...]

READ_OUT = 3
DYNAMIC = "N"


@dataclass(frozen=True)
class Case:
    """One operator in one form.

    Each input is made from a graph input by a 1x1 convolution, or by a MatMul where it has one axis,
    and Y is read by one: so there is something to prune on both sides.

    Attributes:
        op_type: The operator that the row is about; `text` may hold others around it.
        text: Nodes in ONNX text that make Y.
        inputs: Shapes of what is made by weights, without the batch.
        weights: Shapes of the operator's own weights.
        constants: Integers are int64 and floats float32, unless they are arrays.
        batch: The size of a static first axis; None where it is dynamic.
        counted: Whether torch counts every product of the row.
        tolerance: Of comparisons in float32; `reason` says why it is above 1e-4.
    """

    name: str
    op_type: str
    text: str
    inputs: Mapping[str, Shape] = field(default_factory=lambda: {"X": (4, 6, 6)})
    weights: Mapping[str, Shape] = field(default_factory=dict)
    constants: Mapping[str, ArrayLike] = field(default_factory=dict)
    opset: int = OPSET
    batch: int | None = None
    counted: bool = True
    tolerance: float = 1e-4
    reason: str = ""

    @property
    def id(self) -> str:
        """What pytest calls the row."""
        return f"{self.op_type}-{self.name}"

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The operator between weights that write its inputs and weights that read its output."""
        shape = analyse(self._build(self.text, "Y", None)).shapes["Y"]
        if len(shape) < 2:
            return self._build(self.text, "Y", len(shape))
        width = shape[1] if len(shape) > 2 else shape[-1]
        read = (READ_OUT, width) + (1,) * (len(shape) - 2)
        call = "y = Conv(Y, w_read)" if len(shape) > 2 else "y = MatMul(Y, w_read)"
        weights = {"w_read": read if len(shape) > 2 else read[1::-1]}
        return self._build(f"{self.text}\n{call}", "y", len(shape), weights)

    @cached_property
    def analysed(self) -> Analysed:
        """The model after the first stages."""
        return analyse(self.model)

    def _build(
        self,
        text: str,
        output: str,
        rank: int | None,
        weights: Mapping[str, Shape] | None = None,
    ) -> onnx.ModelProto:
        made = {f"w_{name}": _writer(shape) for name, shape in self.inputs.items()}
        declared = {**made, **self.weights, **(weights or {})}
        inputs = [f"float[{self._feed(shape)}] x_{name}" for name, shape in self.inputs.items()]
        nodes = [_write(name, shape) for name, shape in self.inputs.items()]
        values = [f"float[{','.join(map(str, s))}] {name}" for name, s in declared.items()]
        model = build(
            f"net ({', '.join(inputs)}) => (float[Y_] {output}) <{', '.join(values)}>"
            f"{{ {' '.join(nodes)} {text} }}",
            self.constants,
            opset=self.opset,
        )
        declared_type = model.graph.output[0].type.tensor_type
        declared_type.ClearField("shape")
        if rank is not None:
            declared_type.shape.SetInParent()
        for axis in range(rank or 0):
            declared_type.shape.dim.add(dim_param=f"y{axis}")
        return model

    def _feed(self, shape: Shape) -> str:
        batch = DYNAMIC if self.batch is None else str(self.batch)
        return ",".join([batch, *map(str, (READ_OUT, *shape[1:]))])


def _writer(shape: Shape) -> Shape:
    if len(shape) == 1:
        return READ_OUT, shape[0]
    return (shape[0], READ_OUT) + (1,) * (len(shape) - 1)


def _write(name: str, shape: Shape) -> str:
    return f"{name} = {'MatMul' if len(shape) == 1 else 'Conv'}(x_{name}, w_{name})"
