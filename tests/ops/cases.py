"""The rows of the conformance table: what a row is, and how it becomes a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from helpers import OPSET, Analysed, analyse, build, make_feed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx
    from numpy.typing import ArrayLike, NDArray

    Shape = tuple[int, ...]

READ_OUT = 3
DYNAMIC = "N"
_TYPES = {"float32": "float", "int64": "int64", "int32": "int32", "bool": "bool"}


@dataclass(frozen=True)
class Case:
    """One operator in one form.

    Each input is made from a graph input by a 1x1 convolution, or by a MatMul where features come
    last, and Y is read by one: so there is something to prune on both sides.

    Attributes:
        op_type: The operator that the row is about; `text` may hold others around it.
        text: Nodes in ONNX text that make Y.
        inputs: Shapes of what is made by weights, without the batch.
        weights: Shapes of the operator's own weights.
        constants: Integers are int64 and floats float32, unless they are arrays.
        given: Further graph inputs, such as indices, with what is fed to them.
        batch: The size of a static first axis; None where it is dynamic.
        last: Whether the features of inputs and of Y lie along their last axis, and not along
            axis 1; inputs of one axis always do.
        prunes: Whether any axis of the operator may lose units; False for rows that freeze.
        counted: Whether torch counts every product of the row.
        has_twin: Whether torch can compute the operator.
        tolerance: Of comparisons in float32; `reason` says why it is above 1e-4.
    """

    name: str
    op_type: str
    text: str
    inputs: Mapping[str, Shape] = field(default_factory=lambda: {"X": (4, 6, 6)})
    weights: Mapping[str, Shape] = field(default_factory=dict)
    constants: Mapping[str, ArrayLike] = field(default_factory=dict)
    given: Mapping[str, NDArray] = field(default_factory=dict)
    opset: int = OPSET
    domain: str = ""
    batch: int | None = None
    last: bool = False
    prunes: bool = True
    counted: bool = True
    has_twin: bool = True
    tolerance: float = 1e-4
    reason: str = ""

    @property
    def id(self) -> str:
        """What pytest calls the row."""
        domain = f"{self.domain}." if self.domain else ""
        return f"{domain}{self.op_type}-{self.name}"

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The operator between weights that write its inputs and weights that read its output."""
        shape = analyse(self._build(self.text, "Y", None)).shapes["Y"]
        if len(shape) < 2:
            return self._build(self.text, "Y", len(shape))
        last = self.last or len(shape) == 2
        width = shape[-1] if last else shape[1]
        read = (width, READ_OUT) if last else (READ_OUT, width) + (1,) * (len(shape) - 2)
        call = "y = MatMul(Y, w_read)" if last else "y = Conv(Y, w_read)"
        return self._build(f"{self.text}\n{call}", "y", len(shape), {"w_read": read})

    @cached_property
    def analysed(self) -> Analysed:
        """The model after the first stages."""
        return analyse(self.model)

    def feed(self, rng: np.random.Generator, batch: int) -> dict[str, NDArray]:
        """Draw inputs; `batch` is the size of a dynamic first axis."""
        return make_feed(self.analysed.graph, rng, batch) | dict(self.given)

    def _build(
        self,
        text: str,
        output: str,
        rank: int | None,
        weights: Mapping[str, Shape] | None = None,
    ) -> onnx.ModelProto:
        made = {f"w_{name}": self._writer(shape) for name, shape in self.inputs.items()}
        declared = {**made, **self.weights, **(weights or {})}
        inputs = [f"float[{self._fed(shape)}] x_{name}" for name, shape in self.inputs.items()]
        inputs += [
            f"{_TYPES[array.dtype.name]}[{','.join(map(str, array.shape))}] {name}"
            for name, array in self.given.items()
        ]
        nodes = [self._write(name, shape) for name, shape in self.inputs.items()]
        values = [f"float[{','.join(map(str, s))}] {name}" for name, s in declared.items()]
        model = build(
            f"net ({', '.join(inputs)}) => (float[Y_] {output}) <{', '.join(values)}>"
            f"{{ {' '.join(nodes)} {text} }}",
            self.constants,
            opset=self.opset,
            domain=self.domain,
        )
        declared_type = model.graph.output[0].type.tensor_type
        declared_type.ClearField("shape")
        if rank is not None:
            declared_type.shape.SetInParent()
        for axis in range(rank or 0):
            declared_type.shape.dim.add(dim_param=f"y{axis}")
        return model

    def _fed(self, shape: Shape) -> str:
        batch = DYNAMIC if self.batch is None else str(self.batch)
        sizes = (*shape[:-1], READ_OUT) if self._is_last(shape) else (READ_OUT, *shape[1:])
        return ",".join([batch, *map(str, sizes)])

    def _is_last(self, shape: Shape) -> bool:
        return self.last or len(shape) == 1

    def _writer(self, shape: Shape) -> Shape:
        if self._is_last(shape):
            return READ_OUT, shape[-1]
        return (shape[0], READ_OUT) + (1,) * (len(shape) - 1)

    def _write(self, name: str, shape: Shape) -> str:
        return f"{name} = {'MatMul' if self._is_last(shape) else 'Conv'}(x_{name}, w_{name})"
