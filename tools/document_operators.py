"""Write docs/operators.md: what is done with each operator, as its rule does it.

The rules are run on the rows of the conformance table in tests/ops, so the page says what they do
and not what someone noted down.

    python tools/document_operators.py           write the page
    python tools/document_operators.py --check   fail where it is not what would be written
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from pages import write_or_check

from obc_onnx.errors import UnsupportedOperatorError
from obc_onnx.graph.node import Node
from obc_onnx.graph.shapes import ElementTypes
from obc_onnx.ops.base.context import ForwardContext
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obc_onnx.coupling.model import Coupling
    from obc_onnx.ops.base.rule import Rule, Shape

    Operator = tuple[str, str]
    """Domain and name."""

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operators.md"
TESTS = ROOT / "tests"
COUPLES, FROZEN, UNKNOWN = "couples", "frozen on purpose", "unknown"
NOTHING = "-"
HEAD = """# Operators

Written by `tools/document_operators.py` from the rules and from onnx {version} (opset {opset}): do
not edit it by hand.

{counts}

- **Domain**: `ai.onnx` is the standard.
- **Versions**: the opsets of the domain that changed the operator; {nothing} where onnx has no
  schema of it.
- **State**: what happens to the axes that an operator touches. *couples*: a rule says which axes
  lose the same positions. A form of the operator that the rule cannot be sure of is frozen, and the
  report names the node and why. *frozen on purpose*: nothing may be removed from any of its inputs
  and outputs, for the reason that follows; the rest of a model is pruned. *unknown*: there is no
  rule, so the same happens, and the report counts the node.
- **Exact**: whether removing units gives just what zeros in their places would. Where it says *no*,
  that is so along the axes that the operator takes what follows over (a mean, a largest value);
  they are pruned with `--allow-inexact` only. Along all other axes it is exact.
- **Twin**: whether torch computes it, in some of its forms at least. Without, a model is pruned
  with `--criterion l2` and without training.
- **MACs**: whether its multiply-accumulates count.

The last three columns come from running the rules on the conformance table (`tests/ops`).

| Operator | Domain | Versions | State | Exact | Twin | MACs |
|---|---|---|---|---|---|---|
"""


@dataclass
class Observed:
    """What the rule of an operator did in the rows that have the operator.

    Attributes:
        inexact: What it took over axes that may lose positions.
        has_twin: Whether it told torch how to compute a node.
        counts: Whether it counted multiply-accumulates.
    """

    inexact: set[str] = field(default_factory=set)
    has_twin: bool = False
    counts: bool = False


def observe() -> dict[Operator, Observed]:
    """Run the rules on every row of the conformance table."""
    seen: dict[Operator, Observed] = defaultdict(Observed)
    for path in sorted((TESTS / "ops").glob("cases_*.py")):
        for case in importlib.import_module(f"ops.{path.stem}").CASES:
            graph, shapes, coupling = case.analysed
            for node in graph.nodes:
                rule = DEFAULT_RULES.find(node)
                if rule is not None:
                    own = seen[node.domain, node.op_type]
                    own.inexact.update(inexact_along(coupling, node))
                    own.has_twin |= has_twin(rule, node, coupling, shapes)
                    own.counts |= coupling.node_macs(node, {}) > 0
    return seen


def inexact_along(coupling: Coupling, node: Node) -> Iterator[str]:
    """Yield why units may only be removed on request because of a node."""
    for group in coupling.groups:
        why, _, label = (group.inexact or "").rpartition(" in ")
        if label == node.label:
            yield why


def has_twin(rule: Rule, node: Node, coupling: Coupling, shapes: dict[str, Shape]) -> bool:
    """Say whether a rule tells torch how to compute a node."""
    arrays = coupling.graph.initializers
    context = ForwardContext(
        node=node,
        arrays=tuple(arrays.get(name) for name in node.inputs),
        input_shapes=tuple(shapes.get(name) for name in node.inputs),
        output_shape=shapes.get(node.key),
        types=ElementTypes(coupling.graph),
    )
    try:
        rule.forward(context)
    except UnsupportedOperatorError:
        return False
    return True


def versions() -> dict[Operator, list[str]]:
    """List the opsets that changed each operator that onnx knows."""
    found: dict[Operator, dict[int, str]] = defaultdict(dict)
    for schema in onnx.defs.get_all_schemas_with_history():
        mark = " (deprecated)" if schema.deprecated else ""
        number = schema.since_version
        found[schema.domain, schema.name][number] = f"{number}{mark}"
    return {key: [texts[number] for number in sorted(texts)] for key, texts in found.items()}


def rule_of(operator: Operator) -> Rule | None:
    """Look up the rule of an operator."""
    domain, name = operator
    return DEFAULT_RULES.find(Node("", name, domain, 0, (), (), {}))


def state_of(rule: Rule | None) -> str:
    """Say which of the three states an operator is in."""
    if rule is None:
        return UNKNOWN
    return FROZEN if isinstance(rule, Frozen) else COUPLES


def cells(rule: Rule | None, seen: Observed) -> tuple[str, ...]:
    """Return the columns that follow the versions."""
    state = state_of(rule)
    if state == UNKNOWN:
        return state, NOTHING, NOTHING, NOTHING
    exact = f"no: {', '.join(sorted(seen.inexact))}" if seen.inexact else "yes"
    if isinstance(rule, Frozen):
        state, exact = f"{state}: {rule.why}", NOTHING
    return state, exact, *("yes" if flag else "no" for flag in (seen.has_twin, seen.counts))


def page() -> str:
    """Write the page as it should be."""
    changed, seen = versions(), observe()
    operators = sorted({*DEFAULT_RULES.operators, *changed})
    tally = Counter(state_of(rule_of(operator)) for operator in operators)
    counts = ", ".join(f"{state} {tally[state]}" for state in (COUPLES, FROZEN, UNKNOWN))
    head = HEAD.format(
        version=onnx.__version__,
        opset=onnx.defs.onnx_opset_version(),
        counts=f"{len(operators)} operators: {counts}.",
        nothing=NOTHING,
    )
    lines = []
    for operator in operators:
        domain, name = operator
        columns = (
            f"`{name}`",
            f"`{domain or 'ai.onnx'}`",
            ", ".join(changed.get(operator, [NOTHING])),
            *cells(rule_of(operator), seen.get(operator, Observed())),
        )
        lines.append(f"| {' | '.join(columns)} |\n")
    return head + "".join(lines)


def main() -> int:
    """Write the page, or compare it."""
    return write_or_check(PAGE, page, __doc__)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    sys.exit(main())
