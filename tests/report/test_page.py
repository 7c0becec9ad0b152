"""The report as a page: what it holds, that it needs nothing else, and what it takes to make it."""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx
import pytest
from helpers import build
from report.page_parts import ORIGIN, Page, pages, report, swept
from run.test_zoo import ZOO, load
from small import TWO_CONVS, archive, assert_refused, chain, classes, images, invoke, saved

from obc_onnx.recover.methods import LayerFit, Recovery
from obc_onnx.report.page import compression_page, inspection_page
from obc_onnx.run.inspection import inspect

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("compression", "plan", "inspection", "sensitivity", "sweep")
COMMANDS = ("compress", "apply", "finetune", "plan", "sensitivity", "inspect")
SECONDS = 3.0
"""A page of 6,000 layers takes less."""
EVIL = "<script>alert(1)</script>\" onload='x"


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_whole_and_refers_to_nothing_outside(kind: str) -> None:
    text = pages()[kind]
    page = Page(text)
    assert not page.unbalanced
    assert not page.refers
    assert len(page.ids) == len(set(page.ids))
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|@import", text)
    assert page.tags.count("script") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_says_how_it_was_made(kind: str) -> None:
    page = Page(pages()[kind])
    assert ORIGIN.command in page.text
    assert "obc-onnx 1.2, onnx 3.4" in page.text
    assert "Seed7" in page.text.replace("\n", "")


def test_a_compression_shows_every_value_that_it_has() -> None:
    page, found = Page(pages()["compression"]), report()
    assert found.verdict in page.text
    assert all(sentence in page.text for sentence in (*found.warnings, *found.notes))
    rows = {row[0]: row for row in page.rows if row}
    for check in found.verification:
        assert rows[check.name][1] == "ok"
    for epoch in found.epochs:
        assert rows[str(epoch.number)][-1] == ("kept" if epoch.kept else "")
    for group in found.groups:
        assert rows[group.name][2] == f"{group.size} → {group.kept}"
    for fit in (fit for step in found.recovery for fit in step.layers):
        assert rows[fit.layer][2:] == [f"{fit.before:.3g}", f"{fit.after:.3g}"]
    for change in (found.macs, found.params, found.file_bytes):
        assert f"{change.before:,.0f}" in page.text
        assert f"{change.after:,.0f}" in page.text
    assert f"{100 * found.accuracy.after:.2f} %" in page.text
    ids = {"network", "costs", "groups", "repair", "training", "outputs", "verification", "frozen"}
    assert ids <= set(page.ids)


def test_a_sweep_shows_every_target() -> None:
    page, found = Page(pages()["sweep"]), swept()
    rows = {row[0]: row for row in page.rows if row}
    for point in found.points:
        assert rows[f"{point.target:g}"][3] == f"{point.macs.after:,.0f}"
        assert ("picked" in rows[f"{point.target:g}"][-1]) == (point.target == 0.5)
    assert found.unreachable[0.001] in page.text


def test_a_page_says_only_what_was_measured() -> None:
    bare = replace(report(), recovery=[], epochs=[], outputs=[], fed=[], saliency=[])
    page = Page(compression_page(bare, ORIGIN))
    assert not {"repair", "training", "outputs", "fed"} & set(page.ids)
    assert "saliency" not in page.text.replace(ORIGIN.command, "").lower()


def test_a_check_that_failed_is_not_shown_as_good() -> None:
    first, *rest = report().verification
    page = Page(
        compression_page(
            replace(report(), verification=[replace(first, passed=False), *rest]), ORIGIN
        )
    )
    rows = {row[0]: row for row in page.rows if row}
    assert rows[first.name][1] == "FAILED"


def test_no_bar_leaves_its_room_whatever_the_numbers_are() -> None:
    (layer, *_) = report().layers
    step = Recovery(
        "step", 1.0, 2.0, False, [LayerFit("w", 1.0, 5.0), LayerFit("v", 0.1, math.inf)]
    )
    odd = replace(report(), recovery=[step], layers=[replace(layer, width=0, kept=0, macs=0)])
    text = compression_page(odd, ORIGIN)
    lengths = [float(found) for found in re.findall(r"--(?:was|is):([^;\"]*)", text)]
    assert len(lengths) > 20
    assert all(0 <= length <= 1 for length in lengths)


def test_names_are_escaped() -> None:
    model = build(TWO_CONVS)
    for node in model.graph.node:
        node.name = f"{EVIL}{node.output[0]}"
    for kind in (model.graph.initializer, model.graph.output):
        kind[0].name = EVIL if kind is model.graph.output else kind[0].name
    model.graph.node[1].output[0] = EVIL
    page = Page(inspection_page(inspect(model), replace(ORIGIN, command=EVIL)))
    assert page.tags.count("script") == 1
    assert not page.refers
    assert f"{EVIL}p" in page.text
    assert f"graph output '{EVIL}'" in page.text


def test_where_nothing_can_go_and_nothing_costs_a_page_is_made_all_the_same() -> None:
    model = build("net (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    page = Page(inspection_page(inspect(model), ORIGIN))
    assert not page.unbalanced
    assert "0 layers" in page.text


def test_a_page_of_six_thousand_layers_is_made_at_once() -> None:
    found = inspect(chain())
    many = [replace(v, node=f"{v.node}{i}") for i in range(2000) for v in found.layers]
    start = time.process_time()
    text = inspection_page(replace(found, layers=many), ORIGIN)
    assert time.process_time() - start < SECONDS
    assert len(text) < 6000 * 800


@pytest.mark.slow
@pytest.mark.skipif(not (ZOO / "fill.py").is_file(), reason=f"no zoo in '{ZOO}'")
def test_a_page_of_a_transformer_is_made_at_once() -> None:
    model = load(ZOO / "fill.py").fill(onnx.load(ZOO / "swin_t.ts.onnx"))
    found = inspect(model)
    start = time.process_time()
    text = inspection_page(found, ORIGIN)
    assert time.process_time() - start < SECONDS
    assert len(text) < 300_000
    assert not Page(text).unbalanced
    assert sum(layer.params for layer in found.layers) <= found.params


def command_of(name: str, folder: Path) -> tuple[object, ...]:
    model, small = saved(folder), folder / "small.onnx"
    data = ("--data", archive(folder, x=images(), labels=classes()))
    plan = folder / "plan.json"
    assert invoke("plan", model, "-o", plan).exit_code == 0
    return {
        "compress": ("compress", model, "-o", small),
        "apply": ("apply", model, "-o", small, "--plan", plan),
        "finetune": ("finetune", model, "-o", small, "--plan", plan, "--epochs", "1", *data),
        "plan": ("plan", model, "-o", folder / "other.json"),
        "sensitivity": ("sensitivity", model, *data),
        "inspect": ("inspect", model),
    }[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_write_a_page_that_names_them(name: str, tmp_path: Path) -> None:
    command, page = command_of(name, tmp_path), tmp_path / "page.html"
    done = invoke(*command, "--report", page)
    assert done.exit_code == 0, done.output
    text = Page(page.read_text(encoding="utf-8")).text
    assert shlex.join(map(str, ("obc-onnx", *command, "--report", page))) in text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_is_never_written_over_the_model(name: str, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    refused = invoke(*command_of(name, tmp_path), "--report", model, "--force")
    assert_refused(refused, f"'{model}' is read, and would be destroyed")


def test_a_page_speaks_of_options_and_shows_what_json_has(tmp_path: Path) -> None:
    command = command_of("compress", tmp_path)
    found = json.loads(invoke(*command, "--report", tmp_path / "page.html", "--json").stdout)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert found["verdict"] in page.text
    assert "`" not in page.text
    names = [layer["node"] for layer in found["layers"]]
    assert all(f"<bdi>{name}</bdi>" in text for name in names)


def test_a_run_that_goes_on_writes_its_page_again_but_over_no_other_file(tmp_path: Path) -> None:
    data, page = archive(tmp_path, x=images(), labels=classes()), tmp_path / "page.html"
    command = ("compress", saved(tmp_path), "-o", tmp_path / "small.onnx", "--data", data)
    run = ("--epochs", "1", "--run-dir", tmp_path / "run", "--report", page)
    assert invoke(*command, *run).exit_code == 0
    done = invoke(*command, *run, "--resume")
    assert done.exit_code == 0, done.output
    assert "--resume" in Page(page.read_text(encoding="utf-8")).text
    page.write_text("notes of mine")
    assert_refused(invoke(*command, *run, "--resume"), f"'{page}' exists")
    assert page.read_text() == "notes of mine"


def test_a_page_is_not_written_over_a_plan_that_is_read(tmp_path: Path) -> None:
    command = command_of("apply", tmp_path)
    plan = tmp_path / "plan.json"
    assert_refused(invoke(*command, "--report", plan, "--force"), "is read, and would be destroyed")
    assert json.loads(plan.read_text())["format"]
