"""The tools that compare criteria: what they prune, measure, write and read again."""

from __future__ import annotations

import argparse
import importlib
import runpy
from typing import TYPE_CHECKING

import numpy as np
import pytest
from conftest import ROOT
from helpers import analyse, load_tool
from nets import draw_samples, model_of

from obc_onnx.saliency.options import Scoring

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

TOOLS = sorted(ROOT.glob("tools/*.py"))
COMMANDS = [path for path in TOOLS if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    return load_tool("compare_criteria")


@pytest.fixture(scope="module")
def setting(compare: ModuleType) -> object:
    graph = analyse(model_of("dense")).graph
    samples = draw_samples(graph, 24, labelled=True)
    held = draw_samples(graph, 16, seed=1, labelled=True)
    return compare.Setting(graph, samples, held, (0.8, 0.6), "global")


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_every_tool_loads(tool: Path) -> None:
    assert importlib.import_module(tool.stem).__doc__


@pytest.mark.parametrize("tool", COMMANDS, ids=lambda path: path.stem)
def test_every_tool_answers_help(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(tool), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(tool), run_name="__main__")
    assert ended.value.code in {0, None}
    assert capsys.readouterr().out.lower().startswith(f"usage: {tool.name}")


def test_what_a_tool_needs_and_lacks_is_named(compare: ModuleType) -> None:
    graph = analyse(model_of("dense")).graph
    with pytest.raises(SystemExit, match="needs labels: an array `labels`"):
        compare.evaluate(graph, draw_samples(graph, 4))


@pytest.mark.parametrize(
    "variant", ["l2", "jacobian:rows=batch,batch_size=8", "jacobian:objective=pseudo"]
)
def test_a_network_is_pruned_step_by_step(
    compare: ModuleType, setting: object, variant: str
) -> None:
    rows = list(compare.prune(setting, variant, Scoring(), 0))
    assert [row.target for row in rows] == [0.8, 0.6]
    assert all(row.macs <= row.target for row in rows)
    assert all(0 <= row.accuracy <= 1 and np.isfinite(row.loss) for row in rows)
    assert rows[1].params < rows[0].params < 1


def test_rows_are_written_and_read_and_made_a_table(
    compare: ModuleType, setting: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    for repeat in (0, 1):
        compare.append(path, list(compare.prune(setting, "random", Scoring(), repeat)))
    rows = compare.read(path, compare.Row)
    assert [(row.repeat, row.target) for row in rows] == [(0, 0.8), (0, 0.6), (1, 0.8), (1, 0.6)]
    compare.table(argparse.Namespace(csv=path))
    assert "| random | global | 2 |" in capsys.readouterr().out


def test_a_variant_names_a_criterion_and_what_differs(compare: ModuleType) -> None:
    text = "jacobian:rows=batch,batches=5,depthwise=no,amp=yes"
    name, scoring = compare.parse_variant(text, Scoring(batch_size=3))
    assert name == "jacobian"
    assert scoring == Scoring(rows="batch", batches=5, batch_size=3, depthwise=False, amp=True)


def test_loss_and_accuracy_are_those_of_the_outputs(compare: ModuleType, setting: object) -> None:
    from torch import from_numpy
    from torch.nn.functional import cross_entropy

    from obc_onnx.graph.session import Session

    samples = setting.held
    logits = Session(setting.original).run(dict(samples.inputs))["y"]
    accuracy, loss = compare.evaluate(setting.original, samples)
    assert accuracy == (logits.argmax(1) == samples.labels).mean()
    expected = float(cross_entropy(from_numpy(logits), from_numpy(samples.labels)))
    assert loss == pytest.approx(expected, rel=1e-5)


def test_ranks_correlate_as_spearman_says() -> None:
    spearman = load_tool("rank_criteria").spearman
    x = np.array([3.0, 1.0, 2.0, 5.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, np.ones(4)) == 0
    tied = np.array([1.0, 1.0, 2.0, 3.0])  # ranks 1.5, 1.5, 3, 4 against 3, 1, 2, 4
    assert spearman(tied, x) == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [3, 1, 2, 4])[0, 1])


def test_masking_a_unit_changes_the_loss_as_pruning_it_does(compare: ModuleType) -> None:
    from obc_onnx.surgery.cut import remove_units

    tool = load_tool("rank_criteria")
    coupling = analyse(model_of("dense")).coupling
    samples = draw_samples(coupling.graph, 12, labelled=True)
    changes = tool.loss_changes(coupling, samples)
    group = coupling.groups[0]
    pruned = remove_units(coupling, {group.dim: np.arange(group.size) != 2})
    expected = compare.evaluate(pruned, samples)[1] - compare.evaluate(coupling.graph, samples)[1]
    assert changes[group.name][2] == pytest.approx(expected, abs=1e-6)
