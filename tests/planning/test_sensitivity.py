"""What each group can lose alone: against cuts made by hand, and as text, JSON and a picture."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from helpers import analyse, build
from nets import draw_samples, model_of
from small import CHAIN, archive, assert_done, assert_refused, chain, classes, images, invoke, saved

from obc_onnx.graph.session import Session
from obc_onnx.measuring.outputs import accuracy
from obc_onnx.planning.scope import Scope
from obc_onnx.report.pictures import sensitivity_svg
from obc_onnx.run.api import score
from obc_onnx.run.sensitivity import measure_sensitivity
from obc_onnx.samples.options import DataOptions
from obc_onnx.surgery.mask import mask_reads

if TYPE_CHECKING:
    from pathlib import Path

EIGHTHS = [number / 8 for number in range(1, 8)]


def test_points_are_what_masking_by_hand_measures() -> None:
    """The oracle masks the original and computes the error by its formula."""
    of = analyse(chain()).coupling
    samples = draw_samples(of.graph, 60, labelled=True)
    scores = score(chain(), criterion="l2").groups
    found = measure_sensitivity(chain(), data=samples, criterion="l2")
    _, held = samples.split(0.2)
    assert found.n_samples == 12
    assert found.accuracy == accuracy(of.graph, held)
    feed = held.feed(slice(0, 12))
    expected = Session(of.graph).run(feed)["y"].astype(np.float64)
    assert [group.name for group in found.groups] == ["a:0", "b:0"]
    for group in found.groups:
        assert [point.share for point in group.points] == EIGHTHS
        for point in group.points:
            kept = np.ones(group.size, np.bool_)
            kept[np.argsort(scores[group.name])[: int(point.share * group.size)]] = False
            masked = mask_reads(of, {of.by_name[group.name].dim: kept})
            outputs = Session(masked).run(feed)["y"]
            errors = np.mean((outputs - expected) ** 2, 0) / expected.var(0, ddof=1)
            assert point.removed == (~kept).sum()
            assert point.error == pytest.approx(np.exp(np.log1p(errors).mean()) - 1, rel=1e-3)
            assert point.accuracy == accuracy(masked, held)


def test_shares_of_less_than_a_unit_are_left_out_and_nothing_is_emptied() -> None:
    model = model_of("residual")  # groups of 5 and 6 units
    found = measure_sensitivity(model, data=draw_samples(analyse(model).graph, 20), criterion="l1")
    for group in found.groups:
        removed = [point.removed for point in group.points]
        assert removed == [n for n in (group.size * k // 8 for k in range(1, 8)) if n]
        assert max(removed) < group.size
        assert all(point.accuracy is None for point in group.points), "there are no labels"
    assert found.accuracy is None


def test_a_static_batch_is_filled() -> None:
    model = build(CHAIN.replace("float[N", "float[4"))
    data = DataOptions(draw_samples(analyse(model).graph, 40))
    assert measure_sensitivity(model, data=data, criterion="l2", n_samples=6).n_samples == 4


def test_only_the_groups_that_were_asked_for_are_measured() -> None:
    samples = draw_samples(analyse(chain()).graph, 20)
    found = measure_sensitivity(chain(), data=samples, scope=Scope(only=("a:0",)))
    assert [group.name for group in found.groups] == ["a:0"]
    assert found.criterion == "jacobian"


def test_the_command_shows_every_number_and_draws_it(tmp_path: Path) -> None:
    data = archive(tmp_path, x=images(40), labels=classes(40))
    plot = tmp_path / "s.svg"
    command = ("sensitivity", saved(tmp_path), "--data", data, "--criterion", "l2")
    text, structured = invoke(*command, "--plot", plot), invoke(*command, "--json")
    assert_done(text)
    found = json.loads(structured.stdout)
    points = [point for group in found["groups"] for point in group["points"]]
    assert len(points) == 2 * 7
    for point in points:
        assert f"{point['error']:.3g}" in text.stdout
        assert f"{100 * point['accuracy']:.2f}" in text.stdout
    drawn = ET.parse(plot).getroot()
    titles = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 1 + len(points)
    assert f"a:0: 6 of 12 units: error {points[3]['error']:.4g}" in str(titles[4])
    cells = [r.get("fill") for r in drawn.iter("{http://www.w3.org/2000/svg}rect")][1:]
    by_error = np.argsort([point["error"] for point in points])
    assert int(str(cells[by_error[0]])[4:].split(",")[0]) >= int(
        str(cells[by_error[-1]])[4:].split(",")[0]
    ), "the darker the worse"


def test_names_are_escaped_in_the_picture(tmp_path: Path) -> None:
    model = build(CHAIN)
    for node in model.graph.node:
        node.input[:] = ["<&>" if name == "a" else name for name in node.input]
    for tensor in model.graph.initializer:
        tensor.name = "<&>" if tensor.name == "a" else tensor.name
    samples = draw_samples(analyse(model).graph, 20)
    root = ET.fromstring(sensitivity_svg(measure_sensitivity(model, data=samples)))
    assert any(element.text == "<&>:0" for element in root.iter())


def test_sensitivity_needs_samples(tmp_path: Path) -> None:
    assert_refused(invoke("sensitivity", saved(tmp_path)), "give --data")
