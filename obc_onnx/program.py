"""The twin on its own: a module of torch, and a program that torch can run without this package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from obc_onnx.analysis import Model, load_model
from obc_onnx.errors import ModelError
from obc_onnx.feeds import random_feed
from obc_onnx.files import replacing
from obc_onnx.noise import Reference
from obc_onnx.ops import DEFAULT_RULES, RuleSet
from obc_onnx.shapes import infer_shapes, input_shapes
from obc_onnx.tensors import to_tensor
from obc_onnx.twin import build_twin, run_module
from obc_onnx.verify import compare, require

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.graph import Graph
    from obc_onnx.module import TorchTwin


@dataclass(frozen=True)
class TwinProgram:
    """A twin that gives what ONNX Runtime gives.

    Attributes:
        graph: The model.
        twin: The module.
        feed: What it was compared on, and what an exported program is traced with.
        reference: What ONNX Runtime computes from it.
    """

    graph: Graph
    twin: TorchTwin
    feed: Mapping[str, NDArray[Any]]
    reference: Reference

    @classmethod
    def of(
        cls,
        model: Model,
        input_shape: Mapping[str, tuple[int, ...]] | None = None,
        rules: RuleSet = DEFAULT_RULES,
    ) -> TwinProgram:
        """Build the twin of a model, and compare it with ONNX Runtime on random inputs.

        Args:
            model: A file, a loaded model, or a graph.
            input_shape: Sizes of dynamic inputs, by input name.
            rules: How torch computes each operator.
        Raises:
            UnsupportedOperatorError: Operators that torch cannot compute, all in one message.
            VerificationError: The twin computes something else than ONNX Runtime.
        """
        graph = load_model(model)
        shapes = input_shapes(graph, input_shape)
        twin = build_twin(graph, infer_shapes(graph, shapes), rules)
        feed = random_feed(graph, shapes, 0)
        program = cls(graph, twin, feed, Reference.of_outputs(graph, feed))
        program.check(twin)
        return program

    def export(self) -> torch.export.ExportedProgram:
        """Trace the twin; axes that the model leaves open stay so.

        Raises:
            ModelError: torch cannot trace it.
            VerificationError: The program computes something else than ONNX Runtime.
        """
        samples = tuple(to_tensor(self.feed[port.name]) for port in self.graph.inputs)
        dynamic = tuple(
            {
                axis: torch.export.Dim.AUTO
                for axis, size in enumerate(port.shape or ())
                if isinstance(size, str) and sample.shape[axis] > 1
            }
            for port, sample in zip(self.graph.inputs, samples, strict=True)
        )
        try:
            program = torch.export.export(self.twin, samples, dynamic_shapes=dynamic)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"torch cannot export the twin: {str(error).splitlines()[0]}"
            ) from error
        self.check(program.module())
        self._check_other_sizes(program.module())
        return program

    def _check_other_sizes(self, module: torch.nn.Module) -> None:
        """Check that axes stayed open; sizes that ONNX Runtime refuses say nothing.

        Raises:
            ModelError: The program is for the sizes that it was traced with alone.
            VerificationError: It computes something else at other sizes.
        """
        shapes = {
            port.name: tuple(
                2 * have if isinstance(size, str) else have
                for size, have in zip(port.shape or (), self.feed[port.name].shape, strict=True)
            )
            for port in self.graph.inputs
        }
        if all(self.feed[name].shape == shape for name, shape in shapes.items()):
            return
        try:
            feed = random_feed(self.graph, shapes, 0)
            reference = Reference.of_outputs(self.graph, feed)
        except ModelError:
            return
        try:
            found = run_module(module, self.graph, feed)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                f"torch cannot export the twin with open axes: {str(error).splitlines()[0]}; give "
                f"a model whose axes are static"
            ) from error
        require([compare("twin equals ONNX Runtime", found, reference)])

    def save(self, path: Path) -> None:
        """Export, and write the program, which `torch.export.load` reads."""
        program = self.export()
        with replacing(path) as temporary:
            torch.export.save(program, temporary)

    def check(self, module: torch.nn.Module) -> None:
        """Compare a module with ONNX Runtime.

        Raises:
            VerificationError: They differ.
        """
        found = run_module(module, self.graph, self.feed)
        require([compare("twin equals ONNX Runtime", found, self.reference)])
