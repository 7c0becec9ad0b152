"""The twin: the same network as a torch module, built node by node from the graph.

Initializers are its parameters and buffers, under their own names; `weights` says how. The twin
prints as code, moves and pickles like any `torch.fx.GraphModule`.
"""

from __future__ import annotations

import operator
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx import TensorProto, helper
from torch import fx, nn

from obc_onnx.errors import InvariantError, RequestError, UnsupportedOperatorError
from obc_onnx.graph.shapes import ElementTypes, infer_shapes
from obc_onnx.memory import make_room
from obc_onnx.ops.base.context import ForwardContext
from obc_onnx.ops.base.effect import Effect
from obc_onnx.ops.base.host import as_tensor, host_call, read_sizes
from obc_onnx.ops.elementwise import cast
from obc_onnx.ops.quantised.linear import quantize
from obc_onnx.twin.control import control_module
from obc_onnx.twin.module import TorchTwin
from obc_onnx.twin.single import in_single
from obc_onnx.twin.tensors import module_name, parameter_name, to_array, to_tensor, wide
from obc_onnx.twin.weights import Holdings

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from numpy.typing import NDArray

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node, Port
    from obc_onnx.ops.base.rule import Call, RuleSet, Shape

    Numbers = fx.Node | tuple[int, ...]


def build_twin(
    graph: Graph, shapes: Mapping[str, Shape], rules: RuleSet, *, frozen: bool = False
) -> TorchTwin:
    """Build the twin of a graph, in evaluation mode.

    Args:
        graph: The model.
        shapes: A shape for every tensor of this very graph, from `infer_shapes`; ranks are used,
            and the shapes of numbers. `derived_twin` finds those of a graph that was cut or masked.
        rules: How torch computes each operator.
        frozen: Whether weights stay as they are: none requires a gradient, and they take no memory
            of their own, so that the twin must not be written to.
    Returns:
        A module that takes the graph's inputs in order and returns a tuple of its outputs. `meta`
        of each of its nodes holds the key of the ONNX node that it computes under "onnx", and the
        name of the ONNX value that it gives under "value".
    Raises:
        InvariantError: The shapes are those of another graph.
        UnsupportedOperatorError: An input that torch does not take, operators without a rule or,
            where all have one, those that torch cannot compute; all of them in one message.
    """
    for name, array in graph.initializers.items():
        if shapes.get(name, array.shape) != array.shape:
            raise InvariantError(
                f"the shapes are those of another graph: '{name}' has {array.shape} here, and not "
                f"{shapes[name]}"
            )
    other = [port.name for port in graph.inputs if port.dtype.kind == "O"]
    if other:
        raise UnsupportedOperatorError(
            f"torch takes no input such as '{other[0]}', which holds strings or is no tensor; such "
            f"a model can be pruned with `criterion='l2'` and without training"
        )
    unknown = [node.label for node in graph.nodes if rules.find(node) is None]
    if unknown:
        raise UnsupportedOperatorError(
            f"the twin has no rule for {len(unknown)} nodes: {', '.join(unknown)}; such a model "
            f"can be pruned with `criterion='l2'` and without training, or with a rule of your own"
        )
    make_room(sum(array.nbytes for array in graph.initializers.values()))
    return _Builder(graph, shapes, rules, frozen=frozen).build()


def derived_twin(
    graph: Graph, coupling: Coupling, *, frozen: bool = False, rounds: bool = False
) -> TorchTwin:
    """Build the twin of the graph that a coupling is of, or of what was cut or masked after it.

    Surgery changes sizes, and adds values where numbers are written again, so that only the shapes
    of the graph itself will do.

    Args:
        graph: The model.
        coupling: Of that, or of what it was made from.
        frozen: As in `build_twin`.
        rounds: Whether a model in half precision computes in that, and not in float32.
    Raises:
        UnsupportedOperatorError: As in `build_twin`.
    """
    shapes = coupling.shapes
    if graph is not coupling.graph:
        shapes = infer_shapes(graph, {port.name: shapes[port.name] for port in graph.inputs})
    twin = build_twin(graph, shapes, coupling.rules, frozen=frozen)
    if not rounds:
        in_single(twin, graph.inputs)
    return twin


def run_module(module: nn.Module, graph: Graph, feed: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Run a twin, or what stands for one, as ONNX Runtime would run its graph.

    Args:
        module: Takes the graph's inputs in order and returns its outputs in order.
        graph: What they are called.
        feed: An array for each input.
    Returns:
        Arrays by output name.
    """
    with torch.no_grad():
        outputs = module(*(to_tensor(feed[port.name]) for port in graph.inputs))
    return {p.name: to_array(o, p.dtype) for p, o in zip(graph.outputs, outputs, strict=True)}


def run_inside(
    twin: TorchTwin, graph: Graph, feed: Mapping[str, NDArray[Any]], names: Container[str]
) -> dict[str, NDArray[Any]]:
    """Run a twin, and return some of the floats that it computes, in float32 or wider.

    Args:
        twin: The network.
        graph: What its inputs are called.
        feed: An array for each input.
        names: ONNX values to return; those that the twin does not compute one by one are left out.
    """
    found: dict[str, NDArray[Any]] = {}

    class Run(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            name = n.meta.get("value", "")
            if name in names and isinstance(value, torch.Tensor) and value.is_floating_point():
                found[name] = to_array(wide(value), np.dtype(np.float64))
            return value

    with torch.no_grad():
        Run(twin).run(*(to_tensor(feed[port.name]) for port in graph.inputs))
    return found


def check_device(device: str) -> None:
    """Check that torch can compute on a device and read the result.

    Raises:
        RequestError: torch does not know it, it is not there, or it holds no numbers.
    """
    try:
        torch.ones(2, device=device).sum().item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise RequestError(f"torch cannot use device '{device}' here") from error


_WIDENED = frozenset({"uint16", "uint32", "uint64"})
"""Types that torch does not compute with: a caller may still feed tensors of them."""
_QUANTISED = frozenset({"int8", "uint8", "int16", "int32"}) | _WIDENED
"""Types of which a computed tensor may be one of floats that are whole numbers."""
_MOST_NUMBERS = 64
"""Integers in an initializer that may describe shapes; more than that are indices."""


class _Builder:
    def __init__(
        self, graph: Graph, shapes: Mapping[str, Shape], rules: RuleSet, *, frozen: bool
    ) -> None:
        self.frozen = frozen
        self.graph, self.shapes, self.rules = graph, shapes, rules
        self.root = nn.Module()
        self.fx = fx.Graph()
        self.values: dict[str, fx.Node] = {}
        self.numbers: dict[str, Numbers] = {}  # what is computed on the host
        self.types = ElementTypes(graph)
        self.training: fx.Node | None = None
        self.holdings = Holdings(graph, rules, frozen=frozen)

    def build(self) -> TorchTwin:
        taken: set[str] = set()
        for port in self.graph.inputs:
            argument = re.sub(r"\W", "_", f"input_{port.name}")
            while argument in taken:
                argument += "_"
            taken.add(argument)
            self._hold(port.name, self._cast(self.fx.placeholder(argument), port, _WIDENED))
        refusals = [refusal for node in self.graph.nodes if (refusal := self._try(node))]
        if refusals:
            raise UnsupportedOperatorError("; ".join(dict.fromkeys(refusals)))
        self.fx.output(tuple(map(self._output, self.graph.outputs)))
        twin = TorchTwin(self.root, self.fx, class_name="TorchTwin")
        twin.eval()
        return twin

    def _try(self, node: Node) -> str:
        """Add a node; say why torch cannot compute it, and go on with nothing in its place."""
        try:
            self._add(node)
        except UnsupportedOperatorError as error:
            self.values |= dict.fromkeys(node.outputs, self._tensor((), (0,), TensorProto.FLOAT))
            return str(error)
        return ""

    def _output(self, port: Port) -> fx.Node:
        """Give an output its declared type.

        A weight that is an output is copied: a parameter requires a gradient even under `no_grad`.
        """
        value = self._cast(self._value(port.name), port, _QUANTISED)
        return self.fx.call_function(torch.clone, (value,)) if _is_constant(value) else value

    def _cast(self, value: fx.Node, port: Port, kinds: Container[str]) -> fx.Node:
        """Convert to the type of a port where that is one of some types."""
        if port.dtype.name not in kinds:
            return value
        to = helper.np_dtype_to_tensor_dtype(port.dtype)
        return self.fx.call_function(cast, (value,), {"to": to})

    def _add(self, node: Node) -> None:
        rule = self.rules.find(node)
        if rule is None:
            raise UnsupportedOperatorError(f"{node.label}: no rule")
        context = ForwardContext(
            node=node,
            arrays=tuple(self._array(name) for name in node.inputs),
            input_shapes=tuple(self._shape(name) for name in node.inputs),
            output_shape=self._shape(node.key),
            types=self.types,
        )
        if self._add_on_host(context):
            return
        made = self._call(node, rule.forward(context))
        if len(node.outputs) == 1:
            self._hold(node.key, made)
            return
        for i, name in enumerate(node.outputs):
            if name:
                item = self.fx.call_function(operator.getitem, (made, i))
                item.meta["onnx"] = (node.key, i)
                self._hold(name, item)

    def _hold(self, name: str, value: fx.Node) -> fx.Node:
        """Note what gives an ONNX value."""
        value.meta["value"] = name
        self.values[name] = value
        return value

    def _shape(self, name: str) -> Shape | None:
        if name in self.graph.initializers:
            return self.graph.initializers[name].shape
        return self.shapes.get(name)

    def _add_on_host(self, context: ForwardContext) -> bool:
        """Let Python compute a node that is about sizes alone; say whether it is."""
        node = context.node
        reads = Effect.MEASURES in self.rules.effect(node)
        names = [name for name in node.inputs if name]
        operands: list[Any] = [self._numbers(name) for name in names]
        if not names or None in operands:
            if not reads:
                return False
            operands, call = [self._value(names[0])], read_sizes(node)
        elif reads:  # numbers have the shape that they had when the model was analysed
            operands, call = [np.empty(context.input_shapes[0] or ())], read_sizes(node)
        else:
            fixed = not any(isinstance(operand, fx.Node) for operand in operands)
            found = host_call(context, fixed=fixed)
            if found is None:
                return False
            call = found
        operands = [operands[slot] for slot in call.inputs]
        if any(isinstance(operand, fx.Node) for operand in operands):
            made = self.fx.call_function(call.function, tuple(operands), dict(call.constants))
            made.meta["onnx"] = (node.key, None)
            self.numbers[node.key] = made
        else:
            self.numbers[node.key] = call.function(*operands, **call.constants)
        return True

    def _array(self, name: str) -> NDArray[Any] | None:
        """Return what does not run with the model: an initializer, or numbers made of some."""
        numbers = self.numbers.get(name)
        if isinstance(numbers, tuple):
            return np.asarray(numbers, np.int64).reshape(self._shape(name) or ())
        return self.graph.initializers.get(name)

    def _numbers(self, name: str) -> Numbers | None:
        """Return integers as Python has them, computed or constant; None for a tensor."""
        if name in self.numbers:
            return self.numbers[name]
        array = self.graph.initializers.get(name)
        if array is None or array.size > _MOST_NUMBERS or array.dtype not in (np.int32, np.int64):
            return None
        return tuple(array.reshape(-1).tolist())

    def _call(self, node: Node, call: Call) -> fx.Node:
        """Add a call and what stands around it; taps see the call itself."""
        given = [slot for slot in call.inputs if node.has_input(slot)]
        order = tuple(range(max(given, default=-1) + 1)) if call.order is None else call.order
        passed = given if call.order is None else order
        arguments = [
            self._operand(node, slot, call) if slot in passed and node.has_input(slot) else None
            for slot in order
        ]
        if call.bodies:
            made = self._control(node, call, arguments)
        else:
            made = self.fx.call_function(call.function, tuple(arguments), self._constants(call))
        made.meta |= {"onnx": (node.key, None), "slots": order}
        if call.result is None:
            return made
        beside = [self._operand(node, slot, call) for slot in call.result.order or ()]
        constants = self._constants(call.result)
        return self.fx.call_function(call.result.function, (made, *beside), constants)

    def _control(self, node: Node, call: Call, arguments: list[Any]) -> fx.Node:
        """Add a module that runs the twins of a node's subgraphs."""
        module, captured = control_module(
            self.graph,
            node,
            call,
            lambda name: (self.types[name], self._shape(name) or ()),
            lambda body, shapes: build_twin(body, shapes, self.rules, frozen=self.frozen),
        )
        target = module_name(f"body {node.key}".replace(".", "_"))
        self.root.add_module(target, module)
        return self.fx.call_module(target, (*arguments, *map(self._value, captured)))

    def _constants(self, call: Call) -> dict[str, Any]:
        constants = dict(call.constants)
        if call.makes:
            constants["beside"] = self._beside()
        if call.trains:
            constants["training"] = self._training()
        return constants

    def _operand(self, node: Node, slot: int, call: Call) -> Any:
        """Return what a call takes from a slot; an update in place may reach no other use."""
        if slot in call.prepared:
            own = call.prepared[slot]
            arguments = [self._operand(node, other, own) for other in own.order or ()]
            return self.fx.call_function(own.function, tuple(arguments), dict(own.constants))
        if not node.has_input(slot):
            return None
        value = self._argument(node.inputs[slot], as_numbers=slot in call.numbers)
        if call.trains and node.inputs[slot] in self.holdings.mixed:
            return self.fx.call_function(torch.clone, (value,))
        return value

    def _training(self) -> fx.Node:
        """Read the module's own mode, so that `train()` and `eval()` switch the operators."""
        if self.training is None:
            with self.fx.inserting_before(next(iter(self.fx.nodes))):
                self.training = self.fx.get_attr("training")
        return self.training

    def _argument(self, name: str, *, as_numbers: bool) -> Any:
        numbers = self._numbers(name) if as_numbers else None
        return self._value(name) if numbers is None else numbers

    def _value(self, name: str) -> fx.Node:
        if name in self.numbers and name not in self.values:
            to = helper.np_dtype_to_tensor_dtype(self.types[name])
            self._hold(name, self._tensor(self.numbers[name], self._shape(name), to))
        return self.values.get(name) or self._hold(name, self._register(name))

    def _tensor(self, numbers: Numbers, shape: Shape | None, data_type: int) -> fx.Node:
        """Put numbers into a tensor, where the inputs are."""
        constants: dict[str, Any] = {"shape": shape, "data_type": data_type}
        return self.fx.call_function(as_tensor, (numbers, self._beside()), constants)

    def _beside(self) -> fx.Node | None:
        """Return a tensor that is where the module is, None where it has no input."""
        return next((node for node in self.fx.nodes if node.op == "placeholder"), None)

    def _register(self, name: str) -> fx.Node:
        """Hold an initializer, and return what the graph's nodes read of it."""
        held = self.holdings.held(name)
        key = parameter_name(name)
        if held.learns:
            parameter = nn.Parameter(held.tensor, requires_grad=not self.frozen)
            self.root.register_parameter(key, parameter)
        else:
            self.root.register_buffer(key, held.tensor)
        value = self.fx.get_attr(key)
        if held.encoding is None:
            return value
        beside = [held.encoding.scale, held.encoding.zero]
        operands = [self._value(name) if name else None for name in beside]
        return self.fx.call_function(quantize, (value, *operands), held.encoding.constants)


def _is_constant(node: fx.Node) -> bool:
    """Say whether a value depends on no input."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        found = stack.pop()
        if found.op == "placeholder":
            return False
        stack.extend(source for source in found.all_input_nodes if source not in seen)
        seen.update(found.all_input_nodes)
    return True
