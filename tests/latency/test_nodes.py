"""Times of nodes before and after: brought together by hand, and against what an engine tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from helpers import build
from small import CHAIN, archive, images, invoke, saved

from obc_onnx.engines.engine import Layer
from obc_onnx.graph.model import Graph
from obc_onnx.latency.nodes import LAYOUT, NodeTime, compared
from obc_onnx.report.terminal import node_lines

if TYPE_CHECKING:
    from pathlib import Path


def test_layers_that_share_a_node_are_one_part() -> None:
    """The original runs p and q as one; the result runs q with r, and reorders in between."""
    before = [Layer(("p", "q"), 1.0), Layer(("r",), 2.0), Layer(("s",), 0.25), Layer((), 0.5)]
    after = [Layer(("p",), 0.5), Layer(("q", "r"), 0.75), Layer(("s",), 0.25), Layer((), 0.125)]
    after.append(Layer((), 0.5))
    graph = Graph.from_model(build(CHAIN))
    label = {node.key: node.label for node in graph.nodes}
    assert compared(graph, before, after) == [
        NodeTime(label["p"], 3, 3.0, 1.25),
        NodeTime(LAYOUT, 0, 0.5, 0.625),
        NodeTime(label["s"], 1, 0.25, 0.25),
    ]


def test_the_report_names_the_nodes_that_gained_most_and_those_that_did_not() -> None:
    times = [NodeTime(f"n{place}", 1, 10.0, float(place)) for place in range(12)]
    faster, others = node_lines(times)
    assert faster == "faster: n0 10 -> 0 ms, n1 10 -> 1 ms, n2 10 -> 2 ms, and 7 more"
    assert others == "not faster: n11 10 -> 11 ms, n10 10 -> 10 ms"
    assert node_lines([]) == []


@pytest.mark.parametrize("option", ["--latency", "--no-latency", None])
def test_nodes_are_timed_where_speed_was_asked_for(option: str | None, tmp_path: Path) -> None:
    data = archive(tmp_path, x=images(40))
    command = ("compress", saved(tmp_path), "-o", tmp_path / "s.onnx", "--data", data)
    page, shown = tmp_path / "r.html", option == "--latency"
    result = invoke(*command, "--json", "--report", page, *filter(None, [option]))
    assert result.exit_code == 0, result.output
    times = json.loads(result.stdout)["node_times"]
    assert bool(times) == shown == ("Time of nodes" in page.read_text())
    if shown:
        assert sum(time["n_nodes"] for time in times) == len(build(CHAIN).graph.node)
        assert all(time["before"] > 0 for time in times if time["n_nodes"])
