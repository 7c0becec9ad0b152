"""Nodes that ONNX Runtime does not know, such as plugins of TensorRT, set apart from the model.

Nothing can be run, differentiated or verified through such a node. So a graph in canonical form is
without them: what they read is an output of it, and what they give is an input, which is fed
stand-ins. All that lies in front of them and behind them is then a model like any other, and stages
need not know of them. What is written has them again, to the byte.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from obc_onnx.errors import ModelError
from obc_onnx.graph.export import first_output
from obc_onnx.graph.foreign import inferred_types
from obc_onnx.graph.known import unknown_nodes
from obc_onnx.graph.nested import names_read
from obc_onnx.graph.operators import CONSTANT
from obc_onnx.graph.ordering import sort_nodes
from obc_onnx.graph.outline import outlined
from obc_onnx.graph.runtime import load_refusals, output_types

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Opaque:
    """What was set apart; nothing for most models.

    Attributes:
        nodes: As the file has them, with the Constant nodes that only they read.
        labels: How messages call those that ONNX Runtime does not know.
        readers: Which of them reads a value that the rest computes or uses too, by its name.
        givers: Which of them gives a value that the rest reads, by its name.
        outputs: All outputs of the file, as it describes them.
        values: What the file says of values that the nodes give.
    """

    nodes: tuple[onnx.NodeProto, ...] = ()
    labels: tuple[str, ...] = ()
    readers: Mapping[str, str] = field(default_factory=dict)
    givers: Mapping[str, str] = field(default_factory=dict)
    outputs: tuple[onnx.ValueInfoProto, ...] = ()
    values: tuple[onnx.ValueInfoProto, ...] = ()

    @property
    def names(self) -> set[str]:
        """All values that the nodes read or give."""
        return {n for node in self.nodes for n in (*names_read(node), *node.output) if n}

    @property
    def unrun_outputs(self) -> dict[str, str]:
        """The outputs of the file that the nodes give, and which of them gives each."""
        made = {name: label_of(node) for node in self.nodes for name in node.output}
        return {port.name: made[port.name] for port in self.outputs if port.name in made}

    @property
    def coverage(self) -> str:
        """Say what of the file can be verified by running it, and what only by comparing nodes."""
        unrun = self.unrun_outputs
        run = [port.name for port in self.outputs if port.name not in unrun]
        parts = [
            f"by running: {_listed(dict.fromkeys((*run, *self.readers)))}",
            *([f"with stand-ins for {_listed(self.givers)}"] if self.givers else []),
            *([f"by structure alone: {_listed(unrun)}"] if unrun else []),
        ]
        return f"verified {'; '.join(parts)}"

    def port_called(self, name: str) -> str:
        """Name an input of the rest, as messages do."""
        giver = self.givers.get(name)
        return f"input '{name}'" if giver is None else f"value '{name}', which {giver} gives,"

    def input_called(self, name: str) -> str:
        """Say what an input of the rest is, as a reason for what it freezes."""
        giver = self.givers.get(name)
        return f"graph input '{name}'" if giver is None else f"{_unknown(giver)}, gives '{name}'"

    def output_called(self, name: str) -> str:
        """Say what an output of the rest is, as a reason for what it freezes."""
        is_own = name not in self.readers or any(port.name == name for port in self.outputs)
        return f"graph output '{name}'" if is_own else f"{_unknown(self.readers[name])}, reads it"

    def rejoined(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Put the nodes back into the rest of the model, which is changed."""
        if not self.nodes:
            return model
        graph = model.graph
        graph.node.extend(self.nodes)
        own = [port for port in graph.input if port.name not in self.givers]
        for ports, kept in ((graph.input, own), (graph.output, self.outputs)):
            copies = [deepcopy(port) for port in kept]
            del ports[:]
            ports.extend(copies)
        graph.value_info.extend(self.values)
        sort_nodes(model)
        return model


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _unknown(label: str) -> str:
    return f"{label}, which ONNX Runtime does not know"


def set_apart(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Opaque]:
    """Take out the nodes that ONNX Runtime does not know.

    Args:
        model: Whose local functions are inlined.
    Returns:
        The rest, which is the model itself where there are none, and what was taken out.
    Raises:
        ModelError: There is no rest.
    """
    unknown = unknown_nodes(model)
    if not unknown:
        return model, Opaque()
    graph = model.graph
    taken = {first_output(node) for node in unknown}
    taken |= _constants_of(graph, taken)
    apart = [node for node in graph.node if first_output(node) in taken]
    rest = [node for node in graph.node if first_output(node) not in taken]
    if not rest:
        raise ModelError(
            f"ONNX Runtime knows no node of the model, such as {label_of(unknown[0])}: there is "
            f"nothing that could be pruned and verified"
        )
    given = {name for node in apart for name in node.output if name}
    used = {name for node in rest for name in names_read(node)}
    known = {name for node in rest for name in node.output} | (used & _held(graph))
    readers = {n: label_of(node) for node in apart for n in names_read(node) if n in known}
    givers = {n: label_of(node) for node in apart for n in node.output if n in used - {""}}
    described = {port.name: port for port in (*graph.value_info, *graph.output)}
    own = [port for port in graph.output if port.name not in given]
    made = dict.fromkeys(readers.keys() - {port.name for port in own})
    stand_ins = [_stand_in(name, described.get(name)) for name in givers]
    bare = _rest_of(model, rest, stand_ins, own, [name for name in readers if name in made])
    return bare, Opaque(
        nodes=tuple(apart),
        labels=tuple(map(label_of, unknown)),
        readers=readers,
        givers=givers,
        outputs=tuple(graph.output),
        values=tuple(port for port in graph.value_info if port.name in given),
    )


def label_of(node: onnx.NodeProto) -> str:
    """Call a node as `Node.label` does."""
    return f"{node.op_type} '{node.name or first_output(node)}'"


def _constants_of(graph: onnx.GraphProto, taken: Collection[str]) -> set[str]:
    """Name the Constant nodes that nodes which are taken out read, and nothing else does."""
    used = {port.name for port in graph.output}
    for node in graph.node:
        if first_output(node) not in taken:
            used.update(names_read(node))
    constants = {node.output[0] for node in graph.node if node.op_type == CONSTANT and node.output}
    read = {n for node in graph.node if first_output(node) in taken for n in names_read(node)}
    return (constants & read) - used


def _held(graph: onnx.GraphProto) -> set[str]:
    """Name the constants that the graph holds beside its nodes."""
    sparse = (tensor.values for tensor in graph.sparse_initializer)
    return {tensor.name for tensor in (*graph.initializer, *sparse)}


def _stand_in(name: str, described: onnx.ValueInfoProto | None) -> onnx.ValueInfoProto:
    """Describe an input that stands for a value: floats, where the file says nothing of it."""
    if described is not None and described.type.WhichOneof("value") is not None:
        return deepcopy(described)
    port = onnx.ValueInfoProto(name=name)
    port.type.tensor_type.elem_type = TensorProto.FLOAT
    return port


def _rest_of(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    stand_ins: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
    read: Sequence[str],
) -> onnx.ModelProto:
    """Copy a model with some of its nodes.

    Args:
        model: The whole.
        nodes: Of the copy.
        stand_ins: Inputs that it has besides.
        outputs: Those of the model that the nodes still give.
        read: Values that are outputs too; their types are inferred, and their shapes are left
            open, so that a smaller model has the same interface.
    """
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    for ports, kept in ((rest.graph.node, nodes), (rest.graph.output, outputs)):
        copies = [deepcopy(message) for message in kept]
        del ports[:]
        ports.extend(copies)
    del rest.graph.value_info[:]
    rest.graph.input.extend(stand_ins)
    kinds = _types_of(rest, read)
    rest.graph.output.extend(helper.make_tensor_value_info(n, kinds[n], None) for n in read)
    return rest


def _types_of(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, int]:
    """Find the element types of values, by inference or else by ONNX Runtime.

    Raises:
        ModelError: ONNX Runtime is asked, and refuses the model.
    """
    found = inferred_types(outlined(model))
    missing = [name for name in names if name not in found]
    if missing:
        asked = outlined(model)
        del asked.graph.output[:]
        asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
        try:
            found |= output_types(asked)
        except load_refusals() as error:
            raise ModelError(f"ONNX Runtime cannot load the model: {error}") from error
    return found
