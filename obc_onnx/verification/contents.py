"""What two models hold, compared piece by piece; every function says where the first difference is.

Nodes are found by what they compute, so their order does not matter.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from obc_onnx.graph.export import FIRST_IR_WITH_DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx
    from google.protobuf.message import Message

    from obc_onnx.graph.model import Graph
    from obc_onnx.graph.node import Node
    from obc_onnx.ops.base.rule import RuleSet


def other_structure(
    expected: Graph,
    result: Graph,
    merged: Mapping[str, str],
    rules: RuleSet,
    *,
    repaired: bool,
) -> str:
    """Compare nodes, what they read, and the numbers that are no weights.

    Weights may differ, but not in size or type.

    Args:
        expected: With a name of its own for each copy of an initializer.
        result: In which copies may be merged.
        merged: Under which name copies of `expected` are written.
        rules: What is known of operators.
        repaired: Whether a product may have gained a bias: repair and training put there what a
            unit or a norm has left.
    """
    there = {node.key: node for node in result.nodes}
    known = {node.key: node for node in expected.nodes}
    lacking = [f"{known[key].label} is missing" for key in known if key not in there]
    lacking += [f"{there[key].label} is not planned" for key in there if key not in known]
    if lacking:
        return f"{len(there)} nodes, planned {len(known)}: {lacking[0]}"
    for node in expected.nodes:
        gained = _gained(expected, node, result, there[node.key], rules) if repaired else ""
        fault = (
            _other_message(expected, result, node.key)
            or _other_inputs(node, there[node.key], result, merged, gained)
            or ("its opset is another one" if node.opset != there[node.key].opset else "")
        )
        if fault:
            return f"{there[node.key].label} differs from the planned one: {fault}"
    return _other_constants(expected, result, merged)


def _other_message(expected: Graph, result: Graph, key: str) -> str:
    """Compare all of two nodes but their inputs; subgraphs to the byte."""
    planned, found = expected.messages[key], result.messages[key]
    what = _other_field(planned, found, {"input", "attribute", "metadata_props"})
    if what:
        return f"its {what} is '{getattr(found, what)}'"
    before, after = ({entry.name: entry for entry in m.attribute} for m in (planned, found))
    other = _other_entries(before, after)
    return f"attribute '{other}'" if other else _other_metadata(planned, found)


def _other_inputs(
    planned: Node, found: Node, result: Graph, merged: Mapping[str, str], gained: str
) -> str:
    inputs = tuple(name for name in found.inputs if not gained or name != gained)
    written = tuple(result.merged.get(name, name) for name in inputs)
    wanted = tuple(merged.get(name, name) for name in planned.inputs)
    return "" if written == wanted else f"it reads {list(written)}, planned {list(wanted)}"


def _gained(expected: Graph, planned: Node, result: Graph, found: Node, rules: RuleSet) -> str:
    """Return the name of a bias that only the result has."""
    rule = rules.find(planned)
    slot = rule.bias_slot if rule is not None and rule.is_linear(planned) else None
    if slot is None or planned.has_input(slot) or not found.has_input(slot):
        return ""
    name = found.inputs[slot]
    fresh = name in result.initializers and name not in expected.initializers
    return name if fresh and len(result.consumers[name]) == 1 else ""


def _other_constants(expected: Graph, result: Graph, merged: Mapping[str, str]) -> str:
    """Compare constants; where they are no weights, their numbers too."""
    for name, array in expected.initializers.items():
        found = result.stored.get(merged.get(name, name))
        if found is None or found.shape != array.shape or found.dtype != array.dtype:
            return f"initializer '{name}' differs"
        if not expected.may_change(name) and found.tobytes() != array.tobytes():
            return f"numbers in '{name}' differ"
    return ""


def other_description(original: Graph, result: Graph, copies: Mapping[str, str]) -> str:
    """Compare what is said of a model, of its inputs and outputs, and of its constants.

    Args:
        original: The model before.
        result: The one after.
        copies: What initializers of the result are copies of.
    """
    before, after = original.header, result.header
    imports = [sorted((e.domain, e.version) for e in m.opset_import) for m in (before, after)]
    if imports[0] != imports[1]:
        return f"operators are of {imports[1]}, and were of {imports[0]}"
    scopes: tuple[tuple[Any, Any, set[str]], ...] = (
        (before, after, {"graph", "opset_import", "metadata_props"}),
        (before.graph, after.graph, {"input", "output", "metadata_props"}),
    )
    for one, other, apart in scopes:
        what = _other_field(one, other, apart)
        if what:
            return f"its {what} differs"
        fault = _other_metadata(one, other)
        if fault:
            return fault
    for kind in ("input", "output"):
        ports = (_ports(original, kind), _ports(result, kind))
        fault = _other_entries(*ports)
        if fault:
            return f"{kind} '{fault}' is described otherwise"
    return _other_notes(original, result, copies)


def _ports(graph: Graph, kind: str) -> dict[str, Message]:
    """List inputs or outputs by name; those that initializers stand for have the sizes of these.

    Old models have to list every initializer: there it says nothing.
    """
    ports: Iterable[onnx.ValueInfoProto] = getattr(graph.header.graph, kind)
    found = {port.name: port for port in ports}
    for name in found.keys() & graph.held if kind == "input" else ():
        if graph.header.ir_version < FIRST_IR_WITH_DEFAULTS:
            del found[name]
        else:
            found[name] = deepcopy(found[name])
            found[name].type.tensor_type.ClearField("shape")
    return found


def _other_notes(original: Graph, result: Graph, copies: Mapping[str, str]) -> str:
    """Compare doc strings and metadata of constants, and those that nothing uses to the byte."""
    fault = _other_entries(original.aside, result.aside)
    if fault:
        return f"initializer '{fault}', which no node of the graph uses, differs"
    for name in result.stored:
        before, after = original.notes.get(copies.get(name, name)), result.notes.get(name)
        if before is not None and after is not None and before != after:
            return f"what is said of initializer '{name}' differs"
    return ""


def _other_field(one: Message, other: Message, apart: set[str]) -> str:
    """Name the first field that differs, of those that are not compared apart."""
    names = {field.name for m in (one, other) for field, _ in m.ListFields()} - apart
    return next((n for n in sorted(names) if getattr(one, n) != getattr(other, n)), "")


def _other_metadata(one: Any, other: Any) -> str:
    before, after = ({e.key: e.value for e in m.metadata_props} for m in (one, other))
    keys = [key for key in before | after if before.get(key) != after.get(key)]
    return f"metadata '{keys[0]}'" if keys else ""


def _other_entries(before: Mapping[str, Message], after: Mapping[str, Message]) -> str:
    """Name the first message that only one side has, or that differs."""
    for name in [*before, *after]:
        if name not in before or name not in after or not _equal(before[name], after[name]):
            return name
    return ""


def _equal(one: Message, other: Message) -> bool:
    """Compare by content: NaN equals itself."""
    return bool(
        one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    )
