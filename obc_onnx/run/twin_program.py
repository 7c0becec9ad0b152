"""The twin on its own: a module of torch, and a program that torch can run without this package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from obc_onnx.coupling.analysis import Model, load_model, settled, told
from obc_onnx.errors import ModelError, UnsupportedOperatorError
from obc_onnx.files import replacing
from obc_onnx.graph.feeds import random_feed
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import infer_shapes, input_shapes
from obc_onnx.measuring.noise import Reference
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.twin.build import build_twin, run_module
from obc_onnx.twin.tensors import to_tensor
from obc_onnx.verification.checks import compare, compare_twin, require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from obc_onnx.graph.batch_axes import Axes
    from obc_onnx.graph.model import Graph
    from obc_onnx.ops.base.rule import RuleSet
    from obc_onnx.twin.module import TorchTwin


@dataclass(frozen=True)
class TwinProgram:
    """A twin that gives what ONNX Runtime gives.

    Attributes:
        graph: The model.
        twin: The module.
        feed: What it was compared on, and what an exported program is traced with.
        doubt: Why the comparison proves little though it held, and what to do.
    """

    graph: Graph
    twin: TorchTwin
    feed: Mapping[str, NDArray[Any]]
    doubt: str = ""

    @classmethod
    def of(
        cls,
        model: Model,
        input_shape: Mapping[str, tuple[int, ...]] | None = None,
        rules: RuleSet = DEFAULT_RULES,
        batch_axes: Axes | None = None,
    ) -> TwinProgram:
        """Build the twin of a model, and compare it with ONNX Runtime on random inputs.

        Args:
            model: A file, a loaded model, or a graph.
            input_shape: Sizes of dynamic inputs, by input name.
            rules: How torch computes each operator.
            batch_axes: The axis of each input that holds samples, or None.
        Raises:
            UnsupportedOperatorError: Operators that torch cannot compute, all in one message.
            VerificationError: The twin computes something else than ONNX Runtime.
        """
        graph = load_model(model)
        if graph.opaque.labels:
            raise UnsupportedOperatorError(
                f"there is no program without {', '.join(graph.opaque.labels)}, of which ONNX "
                f"Runtime and torch know nothing"
            )
        with told(graph, input_shape):
            graph = settled(graph, input_shape, batch_axes or {})
            shapes = input_shapes(graph, input_shape)
            twin = build_twin(graph, infer_shapes(graph, shapes), rules)
            feed = random_feed(graph, shapes, 0)
            check = compare_twin(twin, graph, feed)
        require([check])
        return cls(graph, twin, feed, check.doubt)

    def export(self) -> torch.export.ExportedProgram:
        """Trace the twin; axes that the model leaves open stay so.

        Raises:
            ModelError: torch cannot trace it.
            VerificationError: The program computes something else than ONNX Runtime.
        """
        return self._trace(self._open_axes)

    def save(self, path: Path) -> str:
        """Export, and write the program, which `torch.export.load` reads.

        Where torch cannot keep all axes open, those of the batch stay so.

        Returns:
            Which sizes the program is for alone, empty where all axes stay open.
        """
        opened, note = self._open_axes, ""
        batch = self.graph.batch_axes.inputs
        alone = {name: [a for a in own if a == batch[name]] for name, own in opened.items()}
        try:
            program = self.export()
        except ModelError as error:
            if alone == opened or not any(alone.values()):
                raise
            program = self._trace(alone)
            sizes = ", ".join(
                f"'{name}' of {self._written(name)}"
                for name, own in opened.items()
                if own != alone[name]
            )
            note = (
                f"the program takes any batch, but only inputs {sizes}: {error}; give other sizes "
                f"with `input_shape`"
            )
        with replacing(path) as temporary:
            torch.export.save(program, temporary)
        return note

    @property
    def _open_axes(self) -> dict[str, list[int]]:
        """Those of each input that the model leaves open."""
        return {
            port.name: [axis for axis, size in enumerate(port.shape or ()) if isinstance(size, str)]
            for port in self.graph.inputs
        }

    def _written(self, name: str) -> str:
        """Write the shape of an input, with the batch open."""
        batch = self.graph.batch_axes.inputs[name]
        sizes = enumerate(self.feed[name].shape)
        return "x".join("?" if axis == batch else str(size) for axis, size in sizes)

    def _trace(self, opened: Mapping[str, Sequence[int]]) -> torch.export.ExportedProgram:
        """Trace with some axes of each input open, and compare at two sizes of them."""
        # torch takes an axis of one position for one that always has one
        feed = self._feed(opened, lambda size: max(size, 2)) or self.feed
        samples = tuple(to_tensor(feed[port.name]) for port in self.graph.inputs)
        dynamic = tuple(
            {axis: torch.export.Dim.AUTO for axis in opened[port.name] if sample.shape[axis] > 1}
            for port, sample in zip(self.graph.inputs, samples, strict=True)
        )
        try:
            program = torch.export.export(self.twin, samples, dynamic_shapes=dynamic)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"torch cannot export the twin{self._place(error)}: {str(error).splitlines()[0]}"
            ) from error
        self.check(program.module(), self.feed)
        self._check_other_sizes(program.module(), opened)
        return program

    def _place(self, error: Exception) -> str:
        """Name the node that torch was at, where it says so."""
        found = re.search(r"While executing %(\w+)", str(error))
        calls = {node.name.lstrip("_"): node for node in self.twin.graph.nodes}
        call = calls.get(found[1].lstrip("_")) if found else None
        node = self.graph.producers.get(call.meta.get("onnx", ("",))[0]) if call else None
        return f" at {node.label}" if node else ""

    def _check_other_sizes(
        self, module: torch.nn.Module, opened: Mapping[str, Sequence[int]]
    ) -> None:
        """Check that axes stayed open; sizes that ONNX Runtime refuses say nothing.

        Raises:
            ModelError: The program is for the sizes that it was traced with alone.
            VerificationError: It computes something else at other sizes.
        """
        feed = self._feed(opened, lambda size: 2 * size)
        if feed is None:
            return
        try:
            require([compare_twin(self.twin, self.graph, feed)])
            self.check(module, feed)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                f"torch cannot export the twin with open axes: {str(error).splitlines()[0]}; give "
                f"a model whose axes are static"
            ) from error

    def _feed(
        self, opened: Mapping[str, Sequence[int]], resized: Callable[[int], int]
    ) -> Mapping[str, NDArray[Any]] | None:
        """Draw inputs whose open axes have other sizes; None where that changes nothing or fails.

        Args:
            opened: The open axes of each input.
            resized: Gives the size of an open axis from that it was analysed with.
        """
        shapes = {
            name: tuple(
                resized(size) if axis in opened[name] else size
                for axis, size in enumerate(array.shape)
            )
            for name, array in self.feed.items()
        }
        if all(self.feed[name].shape == shape for name, shape in shapes.items()):
            return None
        try:
            feed = random_feed(self.graph, shapes, 0)
            Session(self.graph, optimize=False).run(feed)
        except ModelError:
            return None
        return feed

    def check(self, module: torch.nn.Module, feed: Mapping[str, NDArray[Any]]) -> None:
        """Compare a program with the twin, which is what ONNX Runtime computes.

        Raises:
            VerificationError: They differ.
        """
        expected = Reference.of(self.graph, run_module(self.twin, self.graph, feed))
        found = run_module(module, self.graph, feed)
        require([compare("program equals twin", found, expected)])
