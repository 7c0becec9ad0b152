"""What tests share: models from ONNX text, the stages in a row, and comparisons that raise."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from obc_onnx.axes.expressions import count
from obc_onnx.coupling.inference import find_coupling
from obc_onnx.graph.foreign import without_foreign
from obc_onnx.graph.model import Graph
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import infer_shapes, input_shapes
from obc_onnx.measuring.scales import Scale
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.planning.budget import Budget
from obc_onnx.planning.scope import Scope
from obc_onnx.recover.layers import find_layers
from obc_onnx.surgery.cut import remove_units
from obc_onnx.surgery.mask import mask_reads
from obc_onnx.twin.build import build_twin, derived_twin
from obc_onnx.twin.lockstep import Lockstep
from obc_onnx.twin.tensors import as_inputs, parameter_name, to_array, to_tensor
from obc_onnx.verification.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from numpy.typing import ArrayLike, NDArray

    from obc_onnx.axes.expressions import Dim
    from obc_onnx.coupling.model import Coupling, Keep

    Shape = tuple[int, ...]
    Feed = Mapping[str, NDArray]

OPSET = 17
IR_VERSION = 10
CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators; its SampleOp, an echo, stands for one without a rule."""
TO_THE_UNIT = Scope(round_to=1, min_channels=1)
"""Any width is allowed."""
TOLERANCE = 1e-4
"""Largest error over RMS between two float32 computations of the same network."""


class Analysed(NamedTuple):
    """A model after the first two stages."""

    graph: Graph
    shapes: dict[str, Shape]
    coupling: Coupling


def budget_of(**said: Any) -> Budget:
    """Return a budget of fields of its own and of its scope; any width is allowed by default."""
    own = {name: said.pop(name) for name in [*said] if name in Budget.__dataclass_fields__}
    return Budget(**own, scope=replace(TO_THE_UNIT, **said))


def build(
    text: str,
    constants: Mapping[str, ArrayLike] | None = None,
    *,
    opset: int = OPSET,
    domain: str = "",
    seed: int = 0,
) -> onnx.ModelProto:
    """Parse `name (inputs) => (outputs) <weights> { nodes }` into a checked model.

    A value that is declared but that no node makes is a weight, and is drawn from a generator.
    """
    more = f', "{domain or CONTRIB}" : 1' if domain or f"{CONTRIB}." in text else ""
    header = f'<ir_version: {IR_VERSION}, opset_import: ["" : {opset}{more}]>'
    model = onnx.parser.parse_model(text if text.lstrip().startswith("<") else header + text)
    for name, value in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(as_constant(value), name))
    fill_weights(model, np.random.default_rng(seed))
    onnx.checker.check_model(without_foreign(model))
    return model


def as_constant(value: ArrayLike) -> NDArray:
    """Give integers the type that ONNX wants for sizes, and floats float32."""
    array = np.asarray(value)
    if isinstance(value, np.ndarray):
        return array
    return array.astype(np.float32 if array.dtype.kind == "f" or array.size == 0 else np.int64)


def fill_weights(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """Turn every declared value without a producer into an initializer."""
    made = {name for node in model.graph.node for name in node.output}
    made |= {tensor.name for tensor in model.graph.initializer}
    declared = [value for value in model.graph.value_info if value.name not in made]
    for value in declared:
        shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        weight = draw_weight(value.name, shape, rng)
        model.graph.initializer.append(numpy_helper.from_array(weight, value.name))
    del model.graph.value_info[:]


def draw_weight(name: str, shape: Shape, rng: np.random.Generator) -> NDArray:
    """Draw weights that keep the size of activations; variances are positive."""
    if name.startswith("var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    fan_in = max(int(np.prod(shape[1:])), 1)
    return (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def analyse(
    model: onnx.ModelProto | Graph,
    batch: int | None = None,
    *,
    shapes: Mapping[str, Shape] | None = None,
) -> Analysed:
    """Run the stages up to the coupling, for given input shapes or another batch."""
    graph = model if isinstance(model, Graph) else Graph.from_model(model)
    given = shapes
    if batch is not None:
        dynamic = {port.name for port in graph.inputs if isinstance(port.shape[0], str)}
        known = input_shapes(graph)
        given = {n: (batch, *s[1:]) if n in dynamic else s for n, s in known.items()}
    found = infer_shapes(graph, input_shapes(graph, given))
    return Analysed(graph, found, find_coupling(graph, found, DEFAULT_RULES))


def coupling_of(text: str, constants: Mapping[str, ArrayLike] | None = None) -> Coupling:
    """Analyse ONNX text."""
    return analyse(build(text, constants)).coupling


def make_feed(graph: Graph, rng: np.random.Generator, batch: int = 2) -> dict[str, NDArray]:
    """Draw an input for each port; `batch` is the size of a dynamic first axis."""
    return {
        port.name: rng.standard_normal(
            [size if isinstance(size, int) else batch for size in port.shape or ()]
        ).astype(port.dtype)
        for port in graph.inputs
    }


def run_onnx(graph: Graph, feed: Feed) -> dict[str, NDArray]:
    """Run ONNX Runtime as the graph is written, without rewriting it."""
    return Session(graph, optimize=False).run(feed)


def run_twin(graph: Graph, shapes: Mapping[str, Shape], feed: Feed) -> dict[str, NDArray]:
    """Run the torch twin; outputs by name, as `run_onnx` gives them."""
    twin = build_twin(graph, shapes, DEFAULT_RULES)
    with torch.no_grad():
        inputs = [to_tensor(feed[port.name]) for port in graph.inputs]
        with torch.device("meta"):  # a tensor that is not made where the model is meets no other
            outputs = twin(*inputs)
    return {
        p.name: to_array(y, p.dtype) if p.dtype.name.startswith("uint") else y.numpy()
        for p, y in zip(graph.outputs, outputs, strict=True)
    }


def random_keep(
    coupling: Coupling, rng: np.random.Generator, most: float = 0.8, *, inexact: bool = False
) -> dict[Dim, NDArray[np.bool_]]:
    """Draw units to keep of every exact group: at least one each, and of every tied axis."""
    for limit in np.linspace(most, 0.0, 50):
        keep = {}
        for group in coupling.groups:
            if inexact or group.inexact is None:
                kept = rng.random(group.size) >= rng.uniform(limit / 8, limit)
                kept[rng.integers(group.size)] = True
                keep[group.dim] = kept
        if leaves_no_axis_empty(coupling, keep):
            return keep
    raise AssertionError("keeping every unit leaves an axis empty")


def leaves_no_axis_empty(coupling: Coupling, keep: Keep) -> bool:
    """Say whether every axis with tied positions keeps at least one of them."""
    return all(count(expr, keep) > 0 for expr in coupling.tied_axes)


def removes_something(keep: Keep) -> bool:
    """Say whether any unit goes."""
    return any(not kept.all() for kept in keep.values())


def assert_layers_are_linear(graph: Graph, coupling: Coupling, feed: Feed) -> int:
    """Raise where a layer's weight times its inputs, and biases, is not its output; count layers."""
    twin = derived_twin(graph, coupling)
    layers = list(find_layers(coupling, graph, twin))
    for layer in layers:
        run = Lockstep(twin, [as_inputs(graph.inputs, feed)])
        call = run.call(layer.node.key)
        run.advance(run.calls[layer.node.key])
        (arguments,) = run.arguments(layer.node.key)
        x = torch.cat(list(layer.inputs(call, arguments, 4)))
        added = layer.added(call, arguments)
        run.advance(run.places[layer.output])
        (y,) = run.preview(layer.output)
        wanted = layer.outputs(y)
        weight = twin.get_parameter(parameter_name(layer.weight)).detach()
        whole = layer.matrix(weight)
        assert torch.equal(layer.weight_of(whole, tuple(weight.shape)), weight)
        operand = arguments[1 - call.meta["slots"].index(layer.slot)]  # as it is rounded
        matrix = layer.matrix(operand.reshape(weight.shape))
        rows = x.reshape(*wanted.shape[:-1], layer.blocks, -1)
        found = torch.einsum("...gi,goi->...go", rows, matrix).flatten(-2)
        if layer.bias is not None:
            bias = twin.get_parameter(parameter_name(layer.bias)).detach()
            found = found + bias.to(found.dtype)
        found = found if added is None else found + added
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    return len(layers)


def relative_error(actual: NDArray, expected: NDArray) -> float:
    """Return max|a - b| / RMS(b); where b is all zeros, max|a|."""
    if expected.size == 0:
        return 0.0
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    rms = float(np.sqrt(np.mean(expected**2)))
    return float(np.max(np.abs(actual - expected))) / (rms or 1.0)


def assert_close(
    actual: Mapping[str, NDArray],
    expected: Mapping[str, NDArray],
    tolerance: float = TOLERANCE,
) -> None:
    """Raise where two sets of outputs differ in names, shapes or values."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape, name
        assert actual[name].dtype == value.dtype, name
        assert np.isfinite(value).all(), f"'{name}' is not finite, so it cannot be compared"
        error = relative_error(actual[name], value)
        assert error <= tolerance, f"'{name}' is off by {error:.2e}, allowed {tolerance:.0e}"


def assert_valid(graph: Graph, shapes: Mapping[str, Shape] | None = None) -> None:
    """Raise where the checker or strict shape inference refuses a graph."""
    onnx.checker.check_model(without_foreign(graph.to_model()), full_check=True)
    infer_shapes(graph, shapes or input_shapes(graph))


def assert_pruned_equals_masked(
    coupling: Coupling, keep: Keep, feed: Feed, tolerance: float = TOLERANCE
) -> Graph:
    """Raise where removing units is not the same as masking what reads them, or inside of it."""
    pruned, oracle = remove_units(coupling, keep), Oracle(coupling, keep, feed)
    assert_valid(pruned, {name: value.shape for name, value in feed.items()})
    masked = oracle.run_masked(mask_reads(coupling, keep))
    assert_close(oracle.run_pruned(pruned), masked, tolerance)
    return pruned


def assert_recount_agrees(coupling: Coupling, keep: Keep, pruned: Graph) -> None:
    """Raise where the predicted cost is not the cost of the pruned graph, analysed afresh."""
    batch = None if coupling.batch is None else coupling.batch.size
    again = analyse(pruned, batch).coupling
    assert coupling.params(keep) == again.params({}) == pruned.params
    assert coupling.macs(keep) == again.macs({})


def load_tool(name: str) -> ModuleType:
    """Import a script of `tools/`, which are no package."""
    path = Path(__file__).resolve().parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def public_model(name: str) -> Path:
    """Return a model that `tools/fetch_public_models.py` downloads; skip where it is missing."""
    path = load_tool("fetch_public_models").FOLDER / name
    if not path.is_file():
        pytest.skip(f"'{path}' is missing: python tools/fetch_public_models.py")
    return path


def one_channel(
    name: str, shape: tuple[int, ...], variance: float, batch_axis: int = 0
) -> dict[str, Scale]:
    """The scale of an output of which all numbers are one channel; `shape` is that of a sample."""
    channels, size = np.zeros(shape, np.int64), float(np.prod(shape))
    spread, numbers = np.array([variance]), np.array([size])
    return {name: Scale(name, channels, ["all"], np.zeros(shape), spread, numbers, batch_axis)}


def listed(model: onnx.ModelProto, ir_version: int) -> onnx.ModelProto:
    """List every initializer as an input too, as IR 3 asks for; callers may then set it."""
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    return model


def assert_survives(graph: Graph) -> Graph:
    """Export, check and read again."""
    model = graph.to_model()
    onnx.checker.check_model(model, full_check=True)
    again = Graph.from_model(model)
    assert again.to_model() == model
    return again
