"""Run ONNX's own backend node tests on the twin, and print passed, failed and excluded.

    python tools/backend_score.py [--only TEXT]... [--json FILE]

A test is a small model with inputs and the outputs that ONNX expects. The twin has to give them in
shape, type and value, within the tolerance of the test; what rounding the largest element to its
type amounts to is allowed too. ONNX Runtime is run beside it. Excluded is what no torch module can
be, with the reason that the operator's rule gives; a form of an operator that the twin refuses
counts as failed.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import torch
from given import given
from tqdm import tqdm

from obc_onnx.errors import ModelError, UnsupportedOperatorError
from obc_onnx.graph.model import Graph
from obc_onnx.graph.nested import all_nodes
from obc_onnx.graph.session import Session
from obc_onnx.graph.shapes import infer_shapes
from obc_onnx.ops.catalogue import DEFAULT_RULES
from obc_onnx.ops.frozen import Frozen
from obc_onnx.twin.build import build_twin, run_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from onnx.backend.test.case.test_case import TestCase

    Values = dict[str, Any]
    """By name: arrays, and lists of what is in them where a value is a sequence."""

CRASHES = (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What torch raises where a twin calls it in a way that it does not take."""
ROUNDINGS = 2
"""How many roundings of the largest element an output may be off by."""


@dataclass
class Row:
    """What came of one test.

    Attributes:
        operator: The operator; of the first node where the test is a function spelled out.
        runtime: Whether ONNX Runtime passes.
        twin: "passed", "failed" or "excluded".
        detail: Why not.
    """

    name: str
    operator: str
    runtime: bool
    twin: str
    detail: str = ""


def score(tests: Sequence[TestCase]) -> Iterator[Row]:
    """Run tests."""
    torch.set_num_threads(1)
    for test in tests:
        operator = model_of(test).graph.node[0].op_type
        operator += " spelled out" if "_expanded" in test.name else ""
        yield Row(test.name, operator, passes_runtime(test), *run_twin(test))


def load_tests(only: Sequence[str] = ()) -> list[TestCase]:
    """Load the node tests of the installed onnx, or those whose names hold one of some texts."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns of the infinities that tests are about
        tests = load_model_tests(kind="node")
    return [test for test in tests if not only or any(text in test.name for text in only)]


def model_of(test: TestCase) -> onnx.ModelProto:
    """Return the model of a test."""
    return given(test.model, f"a model for {test.name}")


def passes_runtime(test: TestCase) -> bool:
    """Say whether ONNX Runtime gives what is expected."""
    try:
        session = Session(Graph.from_model(model_of(test)), optimize=False)
        return not any(
            difference(session.run(feed), expected, test) for feed, expected in samples(test)
        )
    except ModelError:
        return False


def run_twin(test: TestCase) -> tuple[str, str]:
    """Return what came of the twin, and why it did not pass."""
    graph = Graph.from_model(model_of(test))
    why = reason_to_exclude(graph)
    if why:
        return "excluded", why
    for feed, expected in samples(test):
        try:
            shapes = infer_shapes(graph, {n: array.shape for n, array in feed.items()}, feed)
            twin = build_twin(graph, shapes, DEFAULT_RULES)
        except (UnsupportedOperatorError, ModelError) as error:
            return "failed", str(error)
        try:
            found = difference(run_module(twin, graph, feed), expected, test)
        except CRASHES as error:
            found = f"{type(error).__name__}: {error}"
        if found:
            return "failed", found
    return "passed", ""


def reason_to_exclude(graph: Graph) -> str:
    """Say why no torch module can be what a graph is; empty where one can."""
    top = {node.key for node in graph.nodes}
    for node in all_nodes(graph.to_model().graph):
        if node.op_type == "Constant" and node.output[0] not in top:
            continue  # one in a subgraph, which becomes an initializer there
        rule = DEFAULT_RULES.find(node)
        if rule is None:
            return f"{node.op_type} has no rule"
        if type(rule).forward is Frozen.forward:
            return rule.why
    if any(port.dtype == np.dtype(object) for port in (*graph.inputs, *graph.outputs)):
        return "a value that is no tensor of numbers"
    return ""


def samples(test: TestCase) -> Iterator[tuple[Values, Values]]:
    """Yield inputs and expected outputs by name; what is left out is in neither."""
    graph = model_of(test).graph
    for inputs, outputs in given(test.data_sets, f"inputs for {test.name}"):
        yield _by_name(graph.input, inputs), _by_name(graph.output, outputs)


def _by_name(ports: Iterable[onnx.ValueInfoProto], values: Iterable[Any]) -> Values:
    return {
        port.name: _array(value)
        for port, value in zip(ports, values, strict=False)
        if value is not None
    }


def _array(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value if isinstance(value, list) else np.asarray(value)


def difference(found: Values, expected: Values, test: TestCase) -> str:
    """Say how outputs differ from what is expected; empty where they do not."""
    for name, due in expected.items():
        if isinstance(due, list):
            differs = len(due) != len(found[name]) or any(
                difference({"": _array(a)}, {"": _array(b)}, test)
                for a, b in zip(found[name], due, strict=True)
            )
            if differs:
                return f"'{name}': another sequence"
            continue
        own = np.asarray(found[name])
        if (own.dtype, own.shape) != (due.dtype, due.shape):
            return f"'{name}': {own.dtype}{list(own.shape)}, expected {due.dtype}{list(due.shape)}"
        if not _is_close(own, due, test):
            return f"'{name}': other values"
    return ""


def _is_close(own: NDArray[Any], due: NDArray[Any], test: TestCase) -> bool:
    if due.dtype.kind in "OSUb" or "int" in due.dtype.name:
        return bool((own == due).all())
    wide = np.complex128 if due.dtype.kind == "c" else np.float64
    own_wide, due_wide = own.astype(wide), due.astype(wide)
    finite = np.abs(due_wide[np.isfinite(due_wide)])
    step = float(ml_dtypes.finfo(due.dtype).eps)  # type: ignore[no-untyped-call]
    atol = max(test.atol, ROUNDINGS * step * float(finite.max(initial=0)))
    return bool(np.allclose(own_wide, due_wide, test.rtol, atol, equal_nan=True))


def table(rows: Sequence[Row]) -> str:
    """Write counts for each operator, in Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts[row.operator][row.twin] += 1
    lines = ["| operator | passed | failed | excluded |", "|---|---:|---:|---:|"]
    for operator, own in sorted(counts.items()):
        lines.append(f"| {operator} | {own['passed']} | {own['failed']} | {own['excluded']} |")
    return "\n".join(lines)


def summary(rows: Sequence[Row]) -> str:
    """Write what the table comes to, with every reason to exclude and every failure."""
    passed = [row for row in rows if row.twin == "passed"]
    judged = [row for row in rows if row.runtime]
    both = [row for row in judged if row.twin == "passed"]
    open_to_twin = [row for row in judged if row.twin != "excluded"]
    reasons = Counter(row.detail for row in rows if row.twin == "excluded")
    return "\n".join(
        [
            f"{len(rows)} tests: the twin passes {len(passed)}, ONNX Runtime {len(judged)}",
            f"of those that ONNX Runtime passes: {_share(both, judged)}",
            f"of those that are not excluded either: {_share(both, open_to_twin)}",
            *(f"excluded: {count:4d} {reason}" for reason, count in reasons.most_common()),
            *(f"failed: {row.name}: {row.detail}" for row in rows if row.twin == "failed"),
        ]
    )


def _share(part: Sequence[Row], whole: Sequence[Row]) -> str:
    percent = 100 * len(part) / max(len(whole), 1)
    return f"{len(part)} of {len(whole)} ({percent:.1f} %)"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", help="Part of a name; may be repeated.")
    parser.add_argument("--json", type=Path, help="Also write the rows to this file.")
    options = parser.parse_args()
    tests = load_tests(options.only or ())
    rows = list(tqdm(score(tests), total=len(tests)))
    print(table(rows))
    print()
    print(summary(rows))
    if options.json:
        text = json.dumps([asdict(row) for row in rows], indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    # onnx lists tests of opsets that are not released yet, which ONNX Runtime refuses by default
    os.environ.setdefault("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    main()
